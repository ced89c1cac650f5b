// The solver behind align and invert, for one pixel, on host and device.
#pragma once

#include "index.h"

namespace tcwarp {

template <int D, typename T>
TCWARP_HOST_DEVICE T largest_component(const T (&v)[D]) {
  T norm = 0;
  for (int k = 0; k < D; ++k) {
    const T size = v[k] < 0 ? -v[k] : v[k];
    // Written so that NaN is kept, not dropped.
    norm = size <= norm || norm != norm ? norm : size;
  }
  return norm;
}

// How a displacement goes on beyond the border: as it is there, which is what
// all operators do, or along the slope that it has there.
enum class Beyond { kConstant, kLinear };

// u(x + a) and its derivative by a, interpolated linearly. `field` is
// (D, *size), `at` the pixel x, `offset` a. V is what the field is stored in,
// here and below, T what is computed in. Gives how far outside the image it is.
template <Beyond beyond, int D, typename V, typename T>
TCWARP_HOST_DEVICE T sample_field(const V* field, const int32_t (&size)[D],
                                  const int32_t (&at)[D], const T (&offset)[D],
                                  T (&value)[D], T (&jacobian)[D][D]) {
  int32_t index[D][2];
  T fraction[D], outside[D];
  int64_t pixels = 1;
  for (int k = 0; k < D; ++k) {
    const T first = T(-at[k]), last = T(size[k] - 1 - at[k]);
    const T low = offset[k] < first ? first : offset[k];
    const T within = low > last ? last : low;
    outside[k] = offset[k] - within;
    const SplitDisplacement<T> u = split(within);
    // The last pixel is the end of the cell before it.
    const int32_t cell =
        at[k] + u.whole > size[k] - 2 ? size[k] - 2 : at[k] + u.whole;
    fraction[k] = cell == at[k] + u.whole ? u.fraction : T(1);
    index[k][0] = cell < 0 ? 0 : cell;
    index[k][1] = size[k] == 1 ? 0 : index[k][0] + 1;
    pixels *= size[k];
  }
  for (int c = 0; c < D; ++c) {
    value[c] = 0;
    for (int k = 0; k < D; ++k) jacobian[c][k] = 0;
  }
  for (int corner = 0; corner < 1 << D; ++corner) {
    int64_t flat = 0;
    T weight[D], product = 1;
    for (int k = 0; k < D; ++k) {
      const int t = corner >> k & 1;
      flat = flat * size[k] + index[k][t];
      weight[k] = t == 1 ? fraction[k] : T(1) - fraction[k];
      product *= weight[k];
    }
    for (int c = 0; c < D; ++c) {
      const T u = static_cast<T>(field[c * pixels + flat]);
      value[c] += product * u;
      for (int k = 0; k < D; ++k) {
        T slope = corner >> k & 1 ? u : -u;
        for (int j = 0; j < D; ++j) slope *= j == k ? T(1) : weight[j];
        jacobian[c][k] += slope;
      }
    }
  }
  for (int c = 0; c < D; ++c) {
    for (int k = 0; k < D; ++k) {
      if constexpr (beyond == Beyond::kLinear) {
        value[c] += outside[k] * jacobian[c][k];
      } else if (outside[k] != 0) {
        jacobian[c][k] = 0;
      }
    }
  }
  return largest_component(outside);
}

// What a solution leaves to be known: how far from solved it is, and how the
// map folds, as one minus the determinant of its Jacobian, whose sign is that
// in the middle of the image (mirror images do not fold): 1 or more at a fold.
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

// The determinant of the map's Jacobian at a pixel, by central differences, at
// a border one-sided: what `jacobian_determinant` gives.
template <int D, typename T, typename V>
TCWARP_HOST_DEVICE T determinant_at(const V* field, const int32_t (&size)[D],
                                    const int32_t (&at)[D]) {
  int64_t step[D], here = 0, pixels = 1;
  for (int k = D - 1; k >= 0; --k) {
    step[k] = pixels;
    here += at[k] * pixels;
    pixels *= size[k];
  }
  T slope[D][D], none[D] = {}, unused[D];
  for (int k = 0; k < D; ++k) {
    const int64_t before = at[k] > 0 ? step[k] : 0;
    const int64_t behind = at[k] + 1 < size[k] ? step[k] : 0;
    const T scale = before > 0 && behind > 0 ? T(0.5) : T(1);
    for (int c = 0; c < D; ++c) {
      const V* const u = field + c * pixels + here;
      slope[c][k] =
          scale * (static_cast<T>(u[behind]) - static_cast<T>(u[-before]));
    }
  }
  return newton_step<D>(slope, none, unused);
}

// What the map does on the whole: the affine map that takes the lines through
// the middle of the image to where their ends go.
template <int D, typename T>
struct Overall {
  T slope[D][D], middle[D];  // of the displacement, and its value
  T orientation;             // -1 for a mirror image, else 1
};

template <int D, typename T, typename V>
TCWARP_HOST_DEVICE Overall<D, T> overall(const V* field,
                                         const int32_t (&size)[D]) {
  int64_t step[D], middle = 0, pixels = 1;
  for (int k = D - 1; k >= 0; --k) {
    step[k] = pixels;
    middle += size[k] / 2 * pixels;
    pixels *= size[k];
  }
  Overall<D, T> map;
  for (int c = 0; c < D; ++c) {
    const V* const u = field + c * pixels + middle;
    map.middle[c] = static_cast<T>(*u);
    for (int k = 0; k < D; ++k) {
      const int64_t first = -(size[k] / 2), last = size[k] - 1 + first;
      map.slope[c][k] = (static_cast<T>(u[last * step[k]]) -
                         static_cast<T>(u[first * step[k]])) /
                        static_cast<T>(size[k] > 1 ? size[k] - 1 : 1);
    }
  }
  T m[D][D], none[D] = {}, unused[D];
  for (int c = 0; c < D; ++c) {
    for (int k = 0; k < D; ++k) m[c][k] = map.slope[c][k];
  }
  map.orientation = newton_step<D>(m, none, unused) < 0 ? T(-1) : T(1);
  return map;
}

// One equation, a + u(x + a) = target, by a.
template <int D, typename V, typename T>
struct Equation {
  const V* field;
  Overall<D, T> map;
  int32_t size[D] = {}, at[D] = {};
  T target[D] = {};
};

// Where it is read, and Newton's step from there.
template <int D, typename T>
struct Iterate {
  T offset[D] = {}, residual[D] = {}, step[D] = {};
  T norm = T(INFINITY);  // largest component of the residual
  bool regular = false;  // far enough from folding for the step to be trusted
  T outside = 0;         // the image, in pixels

  // Too far out for a step or two to lead back.
  TCWARP_HOST_DEVICE bool leads_outside() const {
    return outside > 2 * largest_component(step);
  }

  TCWARP_HOST_DEVICE bool better_than(const Iterate& other, T tolerance) const {
    const bool solved = norm <= tolerance,
               solved_there = other.norm <= tolerance;
    return solved && solved_there ? outside < other.outside : norm < other.norm;
  }
};

template <Beyond beyond, int D, typename V, typename T>
TCWARP_HOST_DEVICE void evaluate(const Equation<D, V, T>& equation,
                                 Iterate<D, T>& here) {
  constexpr T smallest = T(0.05);  // determinant of a trusted step
  T value[D], jacobian[D][D];
  here.outside = sample_field<beyond>(
      equation.field, equation.size, equation.at, here.offset, value, jacobian);
  for (int k = 0; k < D; ++k) {
    here.residual[k] = here.offset[k] + value[k] - equation.target[k];
  }
  here.norm = largest_component(here.residual);
  const T determinant = newton_step<D>(jacobian, here.residual, here.step);
  here.regular = equation.map.orientation * determinant > smallest;
}

// Newton's method from a = target: a step that does not bring the residual down
// is halved, and after some halvings, or where the map is close to folding,
// replaced by the plain fixed-point step a = target - u(x + a).
template <int D, typename V, typename T>
TCWARP_HOST_DEVICE void descend(const Equation<D, V, T>& equation, T tolerance,
                                int steps, Iterate<D, T>& best) {
  constexpr int patience = 5;  // halvings
  Iterate<D, T> next;
  T step[D] = {};
  int halved = 0;
  for (int k = 0; k < D; ++k) next.offset[k] = equation.target[k];
  for (int i = 0; i < steps; ++i) {
    evaluate<Beyond::kConstant>(equation, next);
    if (next.norm < best.norm) {
      best = next;
      if (best.norm <= tolerance) break;
      halved = 0;
      for (int k = 0; k < D; ++k) {
        step[k] = best.regular ? best.step[k] : best.residual[k];
      }
    } else {
      if (!is_finite(best.norm)) break;  // nothing finite to start from
      ++halved;
      for (int k = 0; k < D; ++k) {
        step[k] = halved == patience ? best.residual[k] : step[k] * T(0.5);
      }
    }
    for (int k = 0; k < D; ++k) next.offset[k] = best.offset[k] - step[k];
  }
}

// The fixed-point iteration a = target - u(x + a), from a = target, with
// Newton's step in its place as long as that halves the residual: near folds it
// ends where descending does not.
template <int D, typename V, typename T>
TCWARP_HOST_DEVICE void iterate(const Equation<D, V, T>& equation, T tolerance,
                                int steps, Iterate<D, T>& best) {
  Iterate<D, T> next;
  T previous = T(INFINITY);
  for (int k = 0; k < D; ++k) next.offset[k] = equation.target[k];
  for (int i = 0; i < steps && !(best.norm <= tolerance); ++i) {
    evaluate<Beyond::kConstant>(equation, next);
    if (next.norm < best.norm) best = next;
    const bool trusted = next.regular && next.norm <= T(0.5) * previous;
    previous = next.norm;
    for (int k = 0; k < D; ++k) {
      next.offset[k] -= trusted ? next.step[k] : next.residual[k];
    }
  }
}

// Newton's path from where the root would be if the map were affine: along it
// the residual shrinks in its own direction, so that it leads to the one root
// inside where the map is one to one. For that the field goes on along its
// slope beyond the border. A step is taken when it keeps to the path, which it
// does once it is short enough.
template <int D, typename V, typename T>
TCWARP_HOST_DEVICE void follow(const Equation<D, V, T>& equation, T tolerance,
                               int steps, Iterate<D, T>& here) {
  constexpr T shortest = T(0.125);  // pixels that are stepped in any case
  constexpr Beyond kBeyond = Beyond::kLinear;
  T m[D][D], residual[D], step[D];
  for (int k = 0; k < D; ++k) {
    const auto middle = T(equation.size[k] / 2 - equation.at[k]);
    residual[k] = middle + equation.map.middle[k] - equation.target[k];
    here.offset[k] = middle;
    for (int j = 0; j < D; ++j) m[k][j] = equation.map.slope[k][j];
  }
  newton_step<D>(m, residual, step);
  const bool guessed = is_finite(largest_component(step));
  for (int k = 0; k < D; ++k)
    here.offset[k] = guessed ? here.offset[k] - step[k] : T(0);
  evaluate<kBeyond>(equation, here);
  Iterate<D, T> next;
  T part = 1;
  for (int i = 0; i < steps && here.norm > tolerance; ++i) {
    if (here.leads_outside()) break;
    T astray[D];
    for (int k = 0; k < D; ++k) {
      next.offset[k] = here.offset[k] - part * here.step[k];
    }
    evaluate<kBeyond>(equation, next);
    for (int k = 0; k < D; ++k) {
      astray[k] = next.residual[k] - (T(1) - part) * here.residual[k];
    }
    const bool keeps = largest_component(astray) <= T(0.5) * part * here.norm;
    if (keeps || part * largest_component(here.step) <= shortest) {
      here = next;
      part = part < T(0.5) ? 2 * part : T(1);
      if (!is_finite(here.norm)) break;
    } else {
      part *= T(0.5);
    }
  }
}

// One minus the determinant of the map at the pixel itself, where it is one.
template <int D, typename V, typename T>
TCWARP_HOST_DEVICE T fold_at(const Equation<D, V, T>& equation) {
  for (int k = 0; k < D; ++k) {
    if (equation.at[k] >= equation.size[k]) return T(0);
  }
  const T determinant =
      determinant_at<D, T>(equation.field, equation.size, equation.at);
  const T fold = T(1) - equation.map.orientation * determinant;
  return is_finite(fold) ? fold : T(0);
}

// Offset a with a + u(x + a) = target, i.e. where phi = id + u takes the pixel
// x + target from: inside the image if there is such a root, else where the
// field is continued. Everything is relative to x, so precision does not depend
// on the image size.
template <int D, typename V, typename T>
TCWARP_HOST_DEVICE void solve_offset(const Equation<D, V, T>& equation,
                                     T tolerance, int steps, T (&offset)[D],
                                     Report<T>& report) {
  constexpr T edge = T(1e-3);  // pixels that count as rounding
  Iterate<D, T> best;
  descend(equation, tolerance, steps, best);
  if (is_finite(best.norm)) iterate(equation, tolerance, steps, best);
  const bool found = is_finite(best.norm);
  if (found && !(best.norm <= tolerance && best.outside <= edge)) {
    Iterate<D, T> other = best;
    evaluate<Beyond::kLinear>(equation, other);
    if (!other.leads_outside()) {
      follow(equation, tolerance, 2 * steps, other);
      evaluate<Beyond::kConstant>(equation, other);
      if (other.better_than(best, tolerance)) best = other;
    }
  }
  report.add({found ? best.norm : T(0), fold_at(equation)});
  // Where nothing is finite NaN is left: outside the image for every warp.
  for (int k = 0; k < D; ++k) offset[k] = found ? best.offset[k] : T(NAN);
}

}  // namespace tcwarp
