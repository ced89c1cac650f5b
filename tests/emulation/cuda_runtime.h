// CUDA on the host, as far as the kernels of csrc/cuda need it: blocks run one
// after the other, the threads of a block as fibers that change at barriers.
// What this shows is that indices, bounds and sums are right; nothing about
// races, memory order or speed.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __CUDA_ARCH__ 900
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __syncthreads() emulation::barrier()

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x_, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline dim3 threadIdx(0, 0, 0), blockIdx(0, 0, 0), blockDim(1), gridDim(1);

namespace emulation {

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(1 << 17);
  bool done;
};

inline ucontext_t scheduler;
inline Fiber* current = nullptr;
inline const std::function<void()>* body = nullptr;

inline void barrier() { swapcontext(&current->context, &scheduler); }

inline void enter() {
  (*body)();
  current->done = true;
}

// A device faults where the host only may.
template <typename T>
void check_alignment(const T* pointer) {
  if (reinterpret_cast<uintptr_t>(pointer) % alignof(T) != 0) std::abort();
}

// One block: every thread runs to its next barrier in turn.
inline void run_block(unsigned threads, const std::function<void()>& kernel) {
  static std::vector<Fiber> fibers(1024);
  body = &kernel;
  for (unsigned t = 0; t < threads; ++t) {
    Fiber& fiber = fibers[t];
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = &scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (bool running = true; running;) {
    running = false;
    for (unsigned t = 0; t < threads; ++t) {
      if (fibers[t].done) continue;
      threadIdx = dim3(t, 0, 0);
      current = &fibers[t];
      swapcontext(&scheduler, &current->context);
      running = running || !fibers[t].done;
    }
  }
}

}  // namespace emulation

template <typename T>
T atomicAdd(T* target, T value) {
  const T before = *target;
  *target += value;
  return before;
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

inline void atomicAdd(float2* target, float2 value) {
  emulation::check_alignment(target);
  target->x += value.x;
  target->y += value.y;
}

inline void atomicAdd(float4* target, float4 value) {
  emulation::check_alignment(target);
  target->x += value.x;
  target->y += value.y;
  target->z += value.z;
  target->w += value.w;
}

inline unsigned long long atomicMax(unsigned long long* target,
                                    unsigned long long value) {
  const unsigned long long before = *target;
  if (value > before) *target = value;
  return before;
}

inline double __longlong_as_double(int64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline int64_t __double_as_longlong(double value) {
  int64_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
