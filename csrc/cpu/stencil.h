// First half of every CPU warp: for a tile of pixels, where they read from and
// with what weight. Computed once, used for all channels, forward and backward.
#pragma once

#include "../shared/spline.h"
#include "common.h"

namespace tcwarp::cpu {

// Pixel i of a run: its displacement and its position.
template <int D, typename T>
TCWARP_HOST_DEVICE void load_pixel(const Run<D, T>& run, int64_t i,
                                   T (&displacement)[D],
                                   int32_t (&position)[D]) {
  for (int k = 0; k < D; ++k) {
    displacement[k] = run.displacement[k][i];
    position[k] = run.position[k] + (k == D - 1 ? static_cast<int32_t>(i) : 0);
  }
}

constexpr int32_t kBetween = -2;

template <int D, Padding padding, bool whole_only, typename T, typename Index>
TCWARP_MULTIVERSION void nearest_sources_of_run(const Run<D, T>& run,
                                                Index* __restrict index) {
  const int64_t count = run.count;
  for (int64_t i = 0; i < count; ++i) {
    T displacement[D];
    int32_t position[D];
    load_pixel(run, i, displacement, position);
    const Index source =
        nearest_source<D, padding, Index>(displacement, position, run.size);
    index[i] = !whole_only || is_whole(displacement) ? source : kBetween;
  }
}

// index[i]: flat source of pixel begin + i of sample n, or kOutside; with
// whole_only, kBetween where the displacement does not lead to a pixel.
template <Padding padding, bool whole_only = false, int D, typename T,
          typename Index>
void nearest_sources(const Field<D, T>& field, int64_t n, int64_t begin,
                     int64_t end, Index* index) {
  for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
    nearest_sources_of_run<D, padding, whole_only>(run,
                                                   index + (run.first - begin));
  });
}

// The taps of consecutive pixels, axis by axis: the weight of a corner is the
// product of those of its taps, its flat index their sum. W is what is summed
// in.
template <Mode mode, int D, typename W, typename Index>
struct Stencil {
  static constexpr int kTaps = tap_count(mode);
  static constexpr int kCorners =
      D == 2 ? kTaps * kTaps : kTaps * kTaps * kTaps;
  static constexpr int64_t kTile =
      mode == Mode::kLinear ? kLinearTile : kCubicTile;

  Index index[D][kTaps][kTile];  // times the pixels of one step of the axis
  W weight[D][kTaps][kTile];

  TCWARP_HOST_DEVICE Index corner_index(int corner, int64_t i) const {
    Index flat = 0;
    for (int k = D - 1; k >= 0; --k, corner /= kTaps) {
      flat += index[k][corner % kTaps][i];
    }
    return flat;
  }

  TCWARP_HOST_DEVICE W corner_weight(int corner, int64_t i) const {
    W product = 1;
    for (int k = D - 1; k >= 0; --k, corner /= kTaps) {
      product *= weight[k][corner % kTaps][i];
    }
    return product;
  }

  template <int K, typename T>
  TCWARP_HOST_DEVICE void set(int axis, int64_t i, const AxisTaps<K, T>& taps,
                              Index step) {
    TCWARP_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      index[axis][t][i] = taps.index[t] * step;
      weight[axis][t][i] = static_cast<W>(taps.weight[t]);
    }
  }
};

// One axis of a run: the taps of `displacement` at `position`, which changes by
// `advance` from pixel to pixel.
template <Mode mode, int D, Padding padding, bool derivative, typename T,
          typename W, typename Index>
TCWARP_MULTIVERSION void taps_of_run(const T* displacement, int32_t position,
                                     int32_t advance, int32_t size, Index step,
                                     int axis, int64_t at, int64_t count,
                                     Stencil<mode, D, W, Index>& stencil) {
  if constexpr (mode == Mode::kLinear) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t x = position + advance * static_cast<int32_t>(i);
      stencil.set(axis, at + i,
                  linear_taps<padding>(displacement[i], x, size, derivative),
                  step);
    }
  } else {
    // A few pixels side by side; once more, with more work, near the border.
    constexpr int64_t kFew = 32;
    for (int64_t begin = 0; begin < count; begin += kFew) {
      const int64_t end = std::min(begin + kFew, count);
      int32_t near_border = 0;
      for (int64_t i = begin; i < end; ++i) {
        const int32_t x = position + advance * static_cast<int32_t>(i);
        bool inside;
        stencil.set(
            axis, at + i,
            inner_cubic_taps(displacement[i], x, size, derivative, inside),
            step);
        near_border |= static_cast<int32_t>(!inside);
      }
      if (near_border == 0) continue;
      for (int64_t i = begin; i < end; ++i) {
        const int32_t x = position + advance * static_cast<int32_t>(i);
        stencil.set(axis, at + i,
                    cubic_taps<padding>(displacement[i], x, size, derivative),
                    step);
      }
    }
  }
}

// Pixels that are copied have no share in the spline.
template <int D, typename T, typename W, typename Index>
TCWARP_MULTIVERSION void drop_whole(
    const Run<D, T>& run, int64_t at,
    Stencil<Mode::kCubic, D, W, Index>& stencil) {
  const int64_t count = run.count;
  for (int64_t i = 0; i < count; ++i) {
    T displacement[D];
    int32_t position[D];
    load_pixel(run, i, displacement, position);
    const W kept = is_whole(displacement) ? W(0) : W(1);
    TCWARP_UNROLL
    for (int t = 0; t < 4; ++t) stencil.weight[0][t][at + i] *= kept;
  }
}

template <Mode mode, int D, Padding padding, typename T, typename W,
          typename Index>
void stencil_of_run(const Run<D, T>& run, int slope_axis, int64_t at,
                    Stencil<mode, D, W, Index>& stencil) {
  Index step = 1;
  for (int k = D - 1; k >= 0; --k) {
    const auto fill = [&](auto derivative) {
      taps_of_run<mode, D, padding, derivative()>(
          run.displacement[k], run.position[k], k == D - 1 ? 1 : 0, run.size[k],
          step, k, at, run.count, stencil);
    };
    if (k == slope_axis) {
      fill(std::true_type{});
    } else {
      fill(std::false_type{});
    }
    step *= run.size[k];
  }
  if constexpr (mode == Mode::kCubic) {
    if (slope_axis < 0) drop_whole(run, at, stencil);
  }
}

// The taps of pixels [begin, end) of sample n; along slope_axis, if it is not
// negative, with the derivative of their weights.
template <Padding padding, Mode mode, int D, typename T, typename W,
          typename Index>
void fill_stencil(const Field<D, T>& field, int64_t n, int64_t begin,
                  int64_t end, int slope_axis,
                  Stencil<mode, D, W, Index>& stencil) {
  for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
    stencil_of_run<mode, D, padding>(run, slope_axis, run.first - begin,
                                     stencil);
  });
}

}  // namespace tcwarp::cpu
