// The solver behind align and invert, for one pixel, on host and device.
#pragma once

#include "index.h"

namespace tcwarp {

// u(x + a) and its derivative by a, interpolated linearly, clamped at the
// border. `field` is (D, *size), `at` the pixel x, `offset` a. False outside
// the field, where the derivative is that of its continuation. V is what the
// field is stored in, here and below, T what is computed in.
template <int D, typename V, typename T>
TCWARP_HOST_DEVICE bool sample_field(const V* field, const int32_t (&size)[D],
                                     const int32_t (&at)[D],
                                     const T (&offset)[D], T (&value)[D],
                                     T (&jacobian)[D][D]) {
  AxisTaps<2, T> taps[D], slopes[D];
  int64_t pixels = 1;
  bool inside = true;
  for (int k = 0; k < D; ++k) {
    taps[k] = linear_taps<Padding::kBorder>(offset[k], at[k], size[k], false);
    slopes[k] = linear_taps<Padding::kBorder>(offset[k], at[k], size[k], true);
    inside &= size[k] == 1 || taps[k].index[0] != taps[k].index[1];
    pixels *= size[k];
  }
  for (int c = 0; c < D; ++c) {
    value[c] = 0;
    for (int k = 0; k < D; ++k) jacobian[c][k] = 0;
  }
  for (int corner = 0; corner < 1 << D; ++corner) {
    int64_t index = 0;
    T weight = 1;
    for (int k = 0; k < D; ++k) {
      const int t = corner >> k & 1;
      index = index * size[k] + taps[k].index[t];
      weight *= taps[k].weight[t];
    }
    for (int c = 0; c < D; ++c) {
      const T u = static_cast<T>(field[c * pixels + index]);
      value[c] += weight * u;
      for (int k = 0; k < D; ++k) {
        T slope = u;
        for (int j = 0; j < D; ++j) {
          const int t = corner >> j & 1;
          slope *= j == k ? slopes[j].weight[t] : taps[j].weight[t];
        }
        jacobian[c][k] += slope;
      }
    }
  }
  return inside;
}

// What a solution leaves to be known: how far from solved it is, and how the
// map folds, as one minus the determinant of its Jacobian: 1 or more at a fold.
template <typename T>
struct Report {
  T residual = 0;
  T fold = 0;

  TCWARP_HOST_DEVICE void add(const Report& other) {
    residual = other.residual > residual ? other.residual : residual;
    fold = other.fold > fold ? other.fold : fold;
  }
};

// Solves (I + jacobian) step = residual by Cramer's rule; gives the
// determinant. Where it is small, close to folding, the step is not to be
// trusted.
template <int D, typename T>
TCWARP_HOST_DEVICE T newton_step(T (&m)[D][D], const T (&residual)[D],
                                 T (&step)[D]) {
  for (int k = 0; k < D; ++k) m[k][k] += T(1);
  if constexpr (D == 2) {
    const T determinant = m[0][0] * m[1][1] - m[0][1] * m[1][0];
    step[0] = (residual[0] * m[1][1] - residual[1] * m[0][1]) / determinant;
    step[1] = (residual[1] * m[0][0] - residual[0] * m[1][0]) / determinant;
    return determinant;
  } else {
    T cofactor[3][3];
    for (int r = 0; r < 3; ++r) {
      for (int c = 0; c < 3; ++c) {
        const int r1 = (r + 1) % 3, r2 = (r + 2) % 3;
        const int c1 = (c + 1) % 3, c2 = (c + 2) % 3;
        cofactor[r][c] = m[r1][c1] * m[r2][c2] - m[r1][c2] * m[r2][c1];
      }
    }
    const T determinant = m[0][0] * cofactor[0][0] + m[0][1] * cofactor[0][1] +
                          m[0][2] * cofactor[0][2];
    for (int k = 0; k < 3; ++k) {
      step[k] = (cofactor[0][k] * residual[0] + cofactor[1][k] * residual[1] +
                 cofactor[2][k] * residual[2]) /
                determinant;
    }
    return determinant;
  }
}

// One minus the smallest determinant of the map at a pixel, over the cells of
// pixels that meet there: the map is multilinear in each, so that in 2-D no
// point of a cell folds more than one of its corners.
template <int D, typename T, typename V>
TCWARP_HOST_DEVICE T fold_at(const V* field, const int32_t (&size)[D],
                             const int32_t (&at)[D]) {
  int64_t step[D], here = 0, pixels = 1;
  for (int k = D - 1; k >= 0; --k) {
    step[k] = pixels;
    here += at[k] * pixels;
    pixels *= size[k];
  }
  // Differences to the neighbours before (0) and behind (1) along each axis;
  // at a border both are that to the one there is.
  T slope[D][2][D];
  for (int k = 0; k < D; ++k) {
    for (int side = 0; side < 2; ++side) {
      const bool behind = side == 1 ? at[k] + 1 < size[k] : at[k] == 0;
      const int64_t low = here - (behind ? 0 : step[k]);
      for (int c = 0; c < D; ++c) {
        const auto u = [&](int64_t i) {
          return static_cast<T>(field[c * pixels + i]);
        };
        slope[k][side][c] = size[k] == 1 ? T(0) : u(low + step[k]) - u(low);
      }
    }
  }
  T fold = 0;
  for (int cell = 0; cell < 1 << D; ++cell) {
    T m[D][D], none[D] = {}, step_unused[D];
    for (int k = 0; k < D; ++k) {
      for (int c = 0; c < D; ++c) m[c][k] = slope[k][cell >> k & 1][c];
    }
    const T determinant = newton_step<D>(m, none, step_unused);
    if (T(1) - determinant > fold) fold = T(1) - determinant;
  }
  return fold;
}

// Offset a with a + u(x + a) = target, i.e. where phi = id + u takes the pixel
// x + target from. Newton's method: a step that does not bring the residual
// down is halved, and after some halvings, or where the map is close to
// folding, replaced by the plain fixed-point step a = target - u(x + a).
// Everything is relative to x, so precision does not depend on the image size.
template <int D, typename V, typename T>
TCWARP_HOST_DEVICE void solve_offset(const V* field, const int32_t (&size)[D],
                                     const int32_t (&at)[D],
                                     const T (&target)[D], T tolerance,
                                     int steps, T (&offset)[D],
                                     Report<T>& report) {
  constexpr T smallest = T(0.05);  // determinant of a trusted step
  constexpr int patience = 5;      // halvings
  T value[D] = {}, step[D] = {}, plain[D] = {};
  T jacobian[D][D], residual[D], best[D];
  for (int k = 0; k < D; ++k) offset[k] = best[k] = target[k];
  T left = T(INFINITY), previous = T(INFINITY), fold = 0;
  int halved = 0;
  for (int i = 0; i < steps; ++i) {
    const bool again = i >= steps / 2;
    if (i == steps / 2) {
      for (int k = 0; k < D; ++k) offset[k] = target[k];
    }
    const bool inside =
        sample_field<D>(field, size, at, offset, value, jacobian);
    T norm = 0;
    for (int k = 0; k < D; ++k) {
      residual[k] = offset[k] + value[k] - target[k];
      const T size_k = residual[k] < 0 ? -residual[k] : residual[k];
      // Written so that NaN is kept, not dropped.
      norm = size_k <= norm || norm != norm ? norm : size_k;
    }
    // Nothing finite to start from.
    if (!is_finite(norm) && !is_finite(left)) break;
    T newton[D];
    const T determinant = newton_step<D>(jacobian, residual, newton);
    if (inside && T(1) - determinant > fold) fold = T(1) - determinant;
    if (norm < left) {
      left = norm;
      for (int k = 0; k < D; ++k) {
        best[k] = offset[k];
        plain[k] = residual[k];
        step[k] = determinant > smallest ? newton[k] : residual[k];
      }
      if (norm <= tolerance) break;
      halved = 0;
    } else {
      ++halved;
      for (int k = 0; k < D; ++k) {
        step[k] = halved == patience ? plain[k] : step[k] * T(0.5);
      }
    }
    if (again) {
      const bool trusted = norm <= T(0.5) * previous && determinant > smallest;
      for (int k = 0; k < D; ++k) {
        offset[k] -= trusted ? newton[k] : residual[k];
      }
      previous = norm;
    } else {
      for (int k = 0; k < D; ++k) offset[k] = best[k] - step[k];
    }
  }
  // Not solved in vain where nothing is finite. There NaN is left: outside the
  // image for every warp.
  const bool found = is_finite(left);
  const T own = fold_at<D, T>(field, size, at);
  report.add({found ? left : T(0), own > fold ? own : fold});
  for (int k = 0; k < D; ++k) offset[k] = found ? best[k] : T(NAN);
}

}  // namespace tcwarp
