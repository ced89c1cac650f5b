// Index arithmetic of every warp: rounding, splitting and padding, once, for
// host and device, so that tests on the CPU cover what the GPU computes.
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define TCWARP_HOST_DEVICE __host__ __device__ __forceinline__
#else
// Forced: a function that is not inlined into a multiversioned caller would
// run its baseline code there.
#define TCWARP_HOST_DEVICE inline __attribute__((always_inline))
#endif

// Before a loop over a few taps inside one over pixels: only unrolled does GCC
// take several pixels at once.
#if defined(__CUDACC__)
#define TCWARP_UNROLL _Pragma("unroll")
#elif defined(__GNUC__) && !defined(__clang__)
#define TCWARP_UNROLL _Pragma("GCC unroll 16")
#else
#define TCWARP_UNROLL
#endif

namespace tcwarp {

// The codes that Python sends. String arguments of stable operators leak with
// headers before torch 2.14, so names are mapped to numbers in Python.
enum class Mode : int64_t { kNearest = 0, kLinear = 1, kCubic = 2 };
enum class Padding : int64_t { kZeros = 0, kBorder = 1, kReflection = 2 };

constexpr int32_t kOutside = -1;

// Finite displacements are clamped to this many pixels before they become
// integers; every axis is shorter by a few, so that position + displacement +
// tap fits 32 bits.
constexpr int32_t kLargestDisplacement = 1 << 30;
constexpr int32_t kLongestAxis = kLargestDisplacement - 4;

template <typename T>
TCWARP_HOST_DEVICE bool is_finite(T value) {
  return value - value == T(0);
}

// The displacement in range; NaN too, whose pixels callers mask by is_finite.
// (Clamped to constants, GCC carries these through all that follows, as vectors
// of their own.)
template <typename T>
TCWARP_HOST_DEVICE T bounded(T displacement) {
  constexpr T limit = static_cast<T>(kLargestDisplacement);
  const T end = std::copysign(limit, displacement);
  return std::abs(displacement) < limit ? displacement : end;
}

// Floor of a bounded value. The CPU truncates and corrects: unlike std::floor,
// that is a vector instruction on every x86-64 level.
template <typename T>
TCWARP_HOST_DEVICE int32_t floor_to_int(T value) {
#if defined(__CUDA_ARCH__)
  return static_cast<int32_t>(std::floor(value));  // one instruction
#endif
  const int32_t truncated = static_cast<int32_t>(value);
  return truncated - static_cast<int32_t>(static_cast<T>(truncated) > value);
}

// A displacement along one axis as whole pixels and the fraction of a pixel
// beyond them, 0 to 1. It is always the displacement that is split, never the
// position: that is exact for any image size. NaN and infinities become whole
// pixels beyond any image.
template <typename T>
struct SplitDisplacement {
  int32_t whole;
  T fraction;
};

template <typename T>
TCWARP_HOST_DEVICE SplitDisplacement<T> split(T displacement) {
  const T value = bounded(displacement);
  const int32_t whole = floor_to_int(value);
  return {whole, value - static_cast<T>(whole)};
}

// floor(u + 1/2) without the rounding of that sum: 0.49999997f goes to 0.
template <typename T>
TCWARP_HOST_DEVICE int32_t nearest_offset(T displacement) {
  const SplitDisplacement<T> u = split(displacement);
  return u.whole + static_cast<int32_t>(u.fraction >= T(0.5));
}

// The index that stands for `index` on an axis of `size` pixels, or kOutside.
template <Padding padding>
TCWARP_HOST_DEVICE int32_t pad_index(int32_t index, int32_t size) {
  if constexpr (padding == Padding::kZeros) {
    return (index >= 0) & (index < size) ? index : kOutside;
  } else if constexpr (padding == Padding::kBorder) {
    const int32_t low = index < 0 ? 0 : index;
    return low >= size ? size - 1 : low;
  } else {
    if (index >= 0 && index < size) return index;
    // The mirror image beyond the first pixel; then periods of 32 bits.
    const auto at = static_cast<uint32_t>(index < 0 ? -1 - index : index);
    const uint32_t period = 2 * static_cast<uint32_t>(size);
    const uint32_t folded = at % period;
    return static_cast<int32_t>(
        folded < static_cast<uint32_t>(size) ? folded : period - 1 - folded);
  }
}

// Taps along one axis.
TCWARP_HOST_DEVICE constexpr int tap_count(Mode mode) {
  return mode == Mode::kLinear ? 2 : 4;
}

// One axis of an interpolation: where its taps stand, always valid, and their
// weights, or the derivative of the weights by the displacement. Taps of weight
// 0 are to be skipped, so that infinities and NaN beside a tap do not leak.
template <int K, typename T>
struct AxisTaps {
  int32_t index[K];
  T weight[K];
};

// The two pixels that a linear interpolation lies between.
template <Padding padding, typename T>
struct LinearCell {
  int32_t index[2];  // always valid
  T used[2];         // 1, or 0 where there is no pixel: no branches
  T fraction;

  TCWARP_HOST_DEVICE LinearCell(T displacement, int32_t position,
                                int32_t size) {
    // Zeros begin where NaN and infinities are taken to.
    const bool led = padding == Padding::kZeros || is_finite(displacement);
    const SplitDisplacement<T> u = split(displacement);
    fraction = u.fraction;
    for (int t = 0; t < 2; ++t) {
      const int32_t source = pad_index<padding>(position + u.whole + t, size);
      const int32_t is_used = led & (source >= 0);
      index[t] = source & -is_used;
      used[t] = static_cast<T>(is_used);
    }
  }

  TCWARP_HOST_DEVICE AxisTaps<2, T> taps(bool derivative) const {
    AxisTaps<2, T> taps;
    for (int t = 0; t < 2; ++t) {
      const T weight = t == 0 ? T(1) - fraction : fraction;
      const T slope = t == 0 ? T(-1) : T(1);
      taps.index[t] = index[t];
      taps.weight[t] = used[t] * (derivative ? slope : weight);
    }
    return taps;
  }
};

// Flat index of the pixel that the nearest warp reads from, or kOutside.
template <int D, Padding padding, typename Index, typename T>
TCWARP_HOST_DEVICE Index nearest_source(const T (&displacement)[D],
                                        const int32_t (&position)[D],
                                        const int32_t (&size)[D]) {
  int32_t outside = 0;  // negative if any axis is; a bool is not vectorized
  Index flat = 0;
  for (int k = 0; k < D; ++k) {
    const int32_t offset = nearest_offset(displacement[k]);
    const int32_t source = pad_index<padding>(position[k] + offset, size[k]);
    const bool led = padding == Padding::kZeros || is_finite(displacement[k]);
    outside |= led ? source : kOutside;
    flat = flat * size[k] + source;
  }
  return outside < 0 ? kOutside : flat;
}

}  // namespace tcwarp
