// CUDA on the host, as far as the kernels of csrc/cuda need it: the language
// and its intrinsics; scheduler.h runs the threads. What this shows is that
// indices, bounds and sums are right and, under ThreadSanitizer, that nothing
// races; nothing about speed.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "scheduler.h"

#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// A block runs in one thread of the host. What is `extern __shared__` in a
// kernel is defined, with the most that it may need, where it is compiled.
#define __shared__ thread_local
#define __syncthreads() emulation::barrier(__LINE__)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

namespace emulation {

template <typename To, typename From>
To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// A device faults where the host only may.
template <typename T>
void check_alignment(const T* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) {
    fail(*current, "misaligned address");
  }
}

// Relaxed, as atomics of a GPU are: they order no other access.
template <typename T, typename Change>
T update(T* target, const Change& change) {
  check_alignment(target);
  T before, after;
  __atomic_load(target, &before, __ATOMIC_RELAXED);
  do {
    after = change(before);
  } while (!__atomic_compare_exchange(target, &before, &after, false,
                                      __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}

// The value of lane `from`, which has to be one of the mask.
template <typename T>
T shuffle(const char* call, unsigned mask, T value, unsigned from) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) >= 4 && sizeof(T) <= 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* const seen = exchange(call, mask, bits);
  if ((mask >> from & 1) == 0) fail(*current, "source lane outside the mask");
  std::memcpy(&value, seen + from, sizeof(T));
  return value;
}

inline unsigned ballot(const char* call, unsigned mask, bool predicate) {
  const uint64_t* const seen = exchange(call, mask, predicate);
  unsigned bits = 0;
  for (unsigned l = 0; l < warpSize; ++l) {
    if ((mask >> l & 1) != 0) bits |= static_cast<unsigned>(seen[l]) << l;
  }
  return bits;
}

}  // namespace emulation

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu) {
  emulation::warp_barrier(mask);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return emulation::shuffle("__shfl_sync", mask, value, lane & 31);
}

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = emulation::current->lane();
  return emulation::shuffle("__shfl_up_sync", mask, value,
                            lane < by ? lane : lane - by);
}

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  const unsigned lane = emulation::current->lane();
  return emulation::shuffle("__shfl_down_sync", mask, value,
                            lane + by > 31 ? lane : lane + by);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int by) {
  return emulation::shuffle("__shfl_xor_sync", mask, value,
                            (emulation::current->lane() ^ by) & 31);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return emulation::ballot("__ballot_sync", mask, predicate != 0);
}

inline int __any_sync(unsigned mask, int predicate) {
  return emulation::ballot("__any_sync", mask, predicate != 0) != 0;
}

inline int __all_sync(unsigned mask, int predicate) {
  return emulation::ballot("__all_sync", mask, predicate != 0) == mask;
}

inline unsigned __activemask() { return emulation::live_lanes(); }

template <typename T>
T atomicAdd(T* target, T value) {
  return emulation::update(target,
                           [=](T before) -> T { return before + value; });
}

// Vectors are added part by part, as on a GPU.
inline float2 atomicAdd(float2* target, float2 value) {
  emulation::check_alignment(target);
  return {atomicAdd(&target->x, value.x), atomicAdd(&target->y, value.y)};
}

inline float4 atomicAdd(float4* target, float4 value) {
  emulation::check_alignment(target);
  return {atomicAdd(&target->x, value.x), atomicAdd(&target->y, value.y),
          atomicAdd(&target->z, value.z), atomicAdd(&target->w, value.w)};
}

template <typename T>
T atomicMax(T* target, T value) {
  static_assert(std::is_integral_v<T>);
  return emulation::update(
      target, [=](T before) -> T { return value > before ? value : before; });
}

// Loads and stores with a hint for the caches.
template <typename T>
T __ldg(const T* from) {
  emulation::check_alignment(from);
  return *from;
}
template <typename T>
T __ldcs(const T* from) {
  return __ldg(from);
}
template <typename T>
T __ldcg(const T* from) {
  return __ldg(from);
}
template <typename T>
void __stcs(T* to, std::common_type_t<T> value) {
  emulation::check_alignment(to);
  *to = value;
}
template <typename T>
void __stcg(T* to, std::common_type_t<T> value) {
  __stcs(to, value);
}

inline float __uint_as_float(unsigned bits) {
  return emulation::bit_cast<float>(bits);
}
inline unsigned __float_as_uint(float value) {
  return emulation::bit_cast<unsigned>(value);
}
inline double __longlong_as_double(int64_t bits) {
  return emulation::bit_cast<double>(bits);
}
inline int64_t __double_as_longlong(double value) {
  return emulation::bit_cast<int64_t>(value);
}

inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }

// Of two types as well; of a number and NaN, the number.
template <typename A, typename B>
std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B>
std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
