// Cubic B-splines (Unser, Aldroubi, Eden, "B-spline signal processing", 1993),
// on host and device: the filter from pixels to coefficients, and the taps.
//
// The spline goes through the image continued without end as the padding says,
// and both ends are exact in closed form. Coefficients c and pixels f are tied
// by c[x - 1] + 4 c[x] + c[x + 1] = 6 f[x]. Where the continued image is flat
// they decay towards it by the pole z = sqrt(3) - 2 a pixel:
//   zeros       c[-k] = z^k c[0]
//   border      c[-k] = f[0] + z^k (c[0] - f[0])
//   reflection  c[-k] = c[k - 1]
// so the equations inside the image are those of a symmetric tridiagonal
// matrix, 1 beside 4, with its corners 4 + z (reflection: 4 + 1), and for
// border the corners of the right-hand side are scaled.
#pragma once

#include "index.h"

namespace tcwarp {

constexpr double kPole = -0.26794919243112270647;

// Gaussian elimination of that matrix for an axis of n pixels: one sweep down
// the rows, which eliminates, and one back up, which substitutes. The steps of
// both stand here, once; the loops around them differ, as each is shaped by the
// memory that it walks. Pivots converge by z^2 a row.
template <typename T>
struct SplineFilter {
  static constexpr int kVarying = 16;

  int64_t n;
  T reciprocals[kVarying];  // of the pivots of the first rows
  T last;                   // of the pivot of the last row
  T corner;                 // scale of the first and the last right-hand side

  SplineFilter(int64_t n_, Padding padding) : n(n_) {
    const double extra = padding == Padding::kReflection ? 1 : kPole;
    double reciprocal = 1 / (4 + extra);
    for (int64_t k = 0; k < kVarying; ++k) {
      reciprocals[k] = static_cast<T>(reciprocal);
      if (k < n - 2) reciprocal = 1 / (4 - reciprocal);
    }
    last = static_cast<T>(1 / (n > 1 ? 4 + extra - reciprocal : 4 + 2 * extra));
    const double outside = padding == Padding::kBorder ? (1 - kPole) / 6 : 0;
    corner = static_cast<T>(n > 1 ? 1 - outside : 1 - 2 * outside);
  }

  // Steps are made for a row and then used for many lines. They hold their
  // numbers by value: read from the filter, these might alias the lines that
  // are written, and the loop over lines would not be vectorized.
  struct Elimination {
    T scale, factor;

    // `before` is what the row before was left with, 0 in the first row.
    TCWARP_HOST_DEVICE T operator()(T pixel, T before) const {
      return scale * pixel - factor * before;
    }
  };

  struct Substitution {
    T factor;

    // `after` is the solution of the row after, 0 in the last row.
    TCWARP_HOST_DEVICE T operator()(T eliminated, T after) const {
      return (eliminated - after) * factor;
    }
  };

  TCWARP_HOST_DEVICE Elimination elimination(int64_t k, bool transposed) const {
    return {T(6) * scale(k, !transposed), k == 0 ? T(0) : reciprocal(k - 1)};
  }

  TCWARP_HOST_DEVICE Substitution substitution(int64_t k) const {
    return {k == n - 1 ? last : reciprocal(k)};
  }

  TCWARP_HOST_DEVICE T reciprocal(int64_t k) const {
    return reciprocals[k < kVarying ? k : kVarying - 1];
  }

  // Scale of right-hand side k: the first and the last where `corners` is set.
  TCWARP_HOST_DEVICE T scale(int64_t k, bool corners) const {
    return corners && (k == 0 || k == n - 1) ? corner : T(1);
  }
};

// z^k for k >= 0; 0 from z^32, below the rounding of a double, on.
template <typename T>
TCWARP_HOST_DEVICE T pole_power(int32_t k) {
  constexpr double z = kPole, z2 = z * z, z4 = z2 * z2, z8 = z4 * z4;
  T power = k > 31 ? T(0) : T(1);
  power *= k & 1 ? static_cast<T>(z) : T(1);
  power *= k & 2 ? static_cast<T>(z2) : T(1);
  power *= k & 4 ? static_cast<T>(z4) : T(1);
  power *= k & 8 ? static_cast<T>(z8) : T(1);
  return power * (k & 16 ? static_cast<T>(z8 * z8) : T(1));
}

// The cubic B-spline, or its derivative, at the four pixels around a position.
template <typename T>
TCWARP_HOST_DEVICE void cubic_weights(T fraction, bool derivative,
                                      T (&weight)[4]) {
  const T f = fraction, r = T(1) - f;
  if (derivative) {
    weight[0] = r * r * T(-0.5);
    weight[1] = f * (T(1.5) * f - T(2));
    weight[2] = r * (T(2) - T(1.5) * r);
    weight[3] = f * f * T(0.5);
  } else {
    constexpr T sixth = T(1) / T(6);
    weight[0] = r * r * r * sixth;
    weight[1] = (f * f * (T(3) * f - T(6)) + T(4)) * sixth;
    weight[2] = (r * r * (T(3) * r - T(6)) + T(4)) * sixth;
    weight[3] = f * f * f * sixth;
  }
}

// The four neighbours, on an axis without ends, that a spline is read from, and
// their weights: 0 where the displacement is not finite.
template <typename T>
struct CubicWindow {
  int32_t first;
  T weight[4];

  TCWARP_HOST_DEVICE CubicWindow(T displacement, int32_t position,
                                 bool derivative) {
    const SplitDisplacement<T> u = split(displacement);
    first = position + u.whole - 1;
    cubic_weights(u.fraction, derivative, weight);
    const bool finite = is_finite(displacement);
    TCWARP_UNROLL
    for (int t = 0; t < 4; ++t) weight[t] = finite ? weight[t] : T(0);
  }
};

// Well inside an axis the taps are four neighbours, and clamping them is right;
// `inside` says so.
template <typename T>
TCWARP_HOST_DEVICE AxisTaps<4, T> inner_cubic_taps(T displacement,
                                                   int32_t position,
                                                   int32_t size,
                                                   bool derivative,
                                                   bool& inside) {
  const CubicWindow<T> window(displacement, position, derivative);
  inside = (window.first >= 0) & (window.first < size - 3);
  AxisTaps<4, T> taps;
  TCWARP_UNROLL
  for (int t = 0; t < 4; ++t) {
    taps.index[t] = pad_index<Padding::kBorder>(window.first + t, size);
    taps.weight[t] = window.weight[t];
  }
  return taps;
}

template <Padding padding, typename T>
TCWARP_HOST_DEVICE AxisTaps<4, T> cubic_taps(T displacement, int32_t position,
                                             int32_t size, bool derivative) {
  const CubicWindow<T> window(displacement, position, derivative);
  const int32_t first = window.first;
  AxisTaps<4, T> taps;
  if constexpr (padding == Padding::kReflection) {
    for (int t = 0; t < 4; ++t) {
      taps.index[t] = pad_index<padding>(first + t, size);
      taps.weight[t] = window.weight[t];
    }
  } else {
    // Taps outside are shares of the first or last two coefficients, which all
    // stand in one window of four.
    const int32_t end = size > 4 ? size - 4 : 0;
    const int32_t low = first < 0 ? 0 : first;
    const int32_t start = low > end ? end : low;
    for (int s = 0; s < 4; ++s) {
      taps.index[s] = start + s < size ? start + s : size - 1;
      taps.weight[s] = T(0);
    }
    // At a border f[0] = edge_share c[0] + inner_share c[1].
    constexpr T z = static_cast<T>(kPole);
    const T edge_share = size > 1 ? (T(4) + z) / (T(5) + z) : T(1);
    const T inner_share = size > 1 ? T(1) / (T(5) + z) : T(0);
    for (int t = 0; t < 4; ++t) {
      const int32_t index = first + t;
      const int32_t left = -index, right = index - (size - 1);
      const int32_t beyond = left > right ? left : right;
      const T power = pole_power<T>(beyond > 0 ? beyond : 0);
      const int32_t edge = pad_index<Padding::kBorder>(index, size);
      const int32_t inner = left > 0 ? 1 : size - 2;
      const T flat = padding == Padding::kBorder ? T(1) - power : T(0);
      const T own = window.weight[t];
      for (int s = 0; s < 4; ++s) {
        const T to_edge = own * (power + flat * edge_share);
        const T to_inner = own * flat * inner_share;
        taps.weight[s] += start + s == edge ? to_edge : T(0);
        taps.weight[s] += start + s == inner ? to_inner : T(0);
      }
    }
  }
  return taps;
}

// The taps of one axis in either mode.
template <Mode mode, Padding padding, typename T>
TCWARP_HOST_DEVICE AxisTaps<tap_count(mode), T> axis_taps(T displacement,
                                                          int32_t position,
                                                          int32_t size,
                                                          bool derivative) {
  if constexpr (mode == Mode::kLinear) {
    return LinearCell<padding, T>(displacement, position, size)
        .taps(derivative);
  } else {
    return cubic_taps<padding>(displacement, position, size, derivative);
  }
}

// Whether a displacement leads from pixel to pixel: there a spline has the very
// value of the pixel, which is copied, so that zero is the identity bit for
// bit.
template <int D, typename T>
TCWARP_HOST_DEVICE bool is_whole(const T (&displacement)[D]) {
  bool whole = true;
  for (int k = 0; k < D; ++k) whole &= split(displacement[k]).fraction == T(0);
  return whole;
}

}  // namespace tcwarp
