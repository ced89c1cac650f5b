// How the backward adds: with atomics on floating numbers, whose result depends
// on their order in the last bits, or deterministically, on integers.
#pragma once

#include "common.cuh"

namespace tcwarp::cuda {

// atomicAdd on the numbers themselves; on compute capability 9.0 and up, on
// vectors of neighbouring channels at once.
template <typename S>
struct Plain {
  S* target;

  __device__ void add(int64_t at, S value) const {
    atomicAdd(target + at, value);
  }

  template <int W>
  __device__ void add(int64_t at, const S (&value)[W]) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr bool vectors = std::is_same_v<S, float>;
#else
    constexpr bool vectors = false;
#endif
    if constexpr (vectors && W == 4) {
      atomicAdd(reinterpret_cast<float4*>(target + at),
                make_float4(value[0], value[1], value[2], value[3]));
    } else if constexpr (vectors && W == 2) {
      atomicAdd(reinterpret_cast<float2*>(target + at),
                make_float2(value[0], value[1]));
    } else {
      for (int w = 0; w < W; ++w) add(at + w, value[w]);
    }
  }
};

// Fixed-point sums: integers add up to the same in any order. The unit is the
// largest finite gradient times 2^-bits; a double has a second integer for what
// is left. What is not finite is added to the target itself: the result, NaN or
// an infinity, does not depend on the order either.
template <typename S>
struct Fixed {
  using Limb = unsigned long long;  // two's complement

  S* target;
  Limb* limbs;  // (1 or 2, count), zeroed
  int64_t count;
  const Limb* largest;  // (1): the bits of a double
  int bits;

  static constexpr int kLimbs = std::is_same_v<S, double> ? 2 : 1;

  // Sums of all pixels, with cubic weights, of which the absolute values add up
  // to less than 8, stay below 2^63.
  static int bits_for(int64_t pixels) {
    int bits = 59;
    for (; pixels > 1; pixels = (pixels + 1) / 2) --bits;
    return bits;
  }

  __device__ int exponent() const {
    return bits - ilogb(__longlong_as_double(static_cast<int64_t>(*largest)));
  }

  __device__ void add(int64_t at, S value) const {
    if (value == S(0)) return;
    if (!is_finite(value)) {
      atomicAdd(target + at, value);
      return;
    }
    const double scaled = ldexp(static_cast<double>(value), exponent());
    const double whole = rint(scaled);
    atomicAdd(limbs + at, static_cast<Limb>(static_cast<int64_t>(whole)));
    if constexpr (kLimbs == 2) {
      const double rest = rint(ldexp(scaled - whole, bits));
      atomicAdd(limbs + count + at,
                static_cast<Limb>(static_cast<int64_t>(rest)));
    }
  }

  template <int W>
  __device__ void add(int64_t at, const S (&value)[W]) const {
    for (int w = 0; w < W; ++w) add(at + w, value[w]);
  }

  __device__ void store(int64_t at) const {
    if (*largest == 0) return;
    double sum = static_cast<double>(static_cast<int64_t>(limbs[at]));
    if constexpr (kLimbs == 2) {
      sum += ldexp(static_cast<double>(static_cast<int64_t>(limbs[count + at])),
                   -bits);
    }
    target[at] += static_cast<S>(ldexp(sum, -exponent()));
  }
};

template <typename V>
__global__ void largest_kernel(int64_t count, const V* __restrict__ values,
                               unsigned long long* largest) {
  double most = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = thread_index(); i < count; i += step) {
    const auto value = static_cast<double>(values[i]);
    const double size = value < 0 ? -value : value;
    if (is_finite(size) && size > most) most = size;
  }
  // Bits of doubles that are not negative have the order of their values.
  const auto bits = static_cast<unsigned long long>(__double_as_longlong(most));
  if (bits > *largest) atomicMax(largest, bits);
}

template <typename S>
__global__ void store_fixed_kernel(Fixed<S> sums) {
  const int64_t at = thread_index();
  if (at < sums.count) sums.store(at);
}

template <typename S, typename V>
__global__ void convert_kernel(int64_t count, const S* __restrict__ from,
                               V* __restrict__ to) {
  const int64_t at = thread_index();
  if (at < count) to[at] = static_cast<V>(from[at]);
}

}  // namespace tcwarp::cuda
