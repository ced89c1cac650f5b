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
    const Index source = nearest_source<D, padding, Index>(
        displacement, position, run.image_size);
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

// The taps of consecutive pixels along one axis. W is what is summed in.
template <Mode mode, typename W, typename Index>
struct AxisTileTaps {
  static constexpr int kTaps = tap_count(mode);
  static constexpr int64_t kTile =
      mode == Mode::kLinear ? kLinearTile : kCubicTile;

  Index index[kTaps][kTile];  // times the pixels of one step of the axis
  W weight[kTaps][kTile];

  template <typename T>
  TCWARP_HOST_DEVICE void set(int64_t i, const AxisTaps<kTaps, T>& taps,
                              Index step) {
    TCWARP_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      index[t][i] = taps.index[t] * step;
      weight[t][i] = static_cast<W>(taps.weight[t]);
    }
  }
};

// Of all axes: the weight of a corner is the product of those of its taps, its
// flat index their sum.
template <Mode mode, int D, typename W, typename Index>
struct TileTaps {
  static constexpr int kTaps = tap_count(mode);
  static constexpr int kCorners =
      D == 2 ? kTaps * kTaps : kTaps * kTaps * kTaps;
  static constexpr int64_t kTile = AxisTileTaps<mode, W, Index>::kTile;

  AxisTileTaps<mode, W, Index> axis[D];

  TCWARP_HOST_DEVICE Index corner_index(int corner, int64_t i) const {
    Index flat = 0;
    for (int k = D - 1; k >= 0; --k, corner /= kTaps) {
      flat += axis[k].index[corner % kTaps][i];
    }
    return flat;
  }

  TCWARP_HOST_DEVICE W corner_weight(int corner, int64_t i) const {
    W product = 1;
    for (int k = D - 1; k >= 0; --k, corner /= kTaps) {
      product *= axis[k].weight[corner % kTaps][i];
    }
    return product;
  }
};

// One axis of a run: the taps of `displacement` at `position`, which changes by
// `advance` from pixel to pixel.
template <Padding padding, bool derivative, Mode mode, typename T, typename W,
          typename Index>
TCWARP_MULTIVERSION void taps_of_run(const T* displacement, int32_t position,
                                     int32_t advance, int32_t size, Index step,
                                     int64_t at, int64_t count,
                                     AxisTileTaps<mode, W, Index>& taps) {
  if constexpr (mode == Mode::kLinear) {
    for (int64_t i = 0; i < count; ++i) {
      const int32_t x = position + advance * static_cast<int32_t>(i);
      taps.set(at + i,
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
        taps.set(at + i,
                 inner_cubic_taps(displacement[i], x, size, derivative, inside),
                 step);
        near_border |= static_cast<int32_t>(!inside);
      }
      if (near_border == 0) continue;
      for (int64_t i = begin; i < end; ++i) {
        const int32_t x = position + advance * static_cast<int32_t>(i);
        taps.set(at + i,
                 cubic_taps<padding>(displacement[i], x, size, derivative),
                 step);
      }
    }
  }
}

// Pixels that are copied have no share in the spline.
template <int D, typename T, typename W, typename Index>
TCWARP_MULTIVERSION void drop_whole(const Run<D, T>& run, int64_t at,
                                    TileTaps<Mode::kCubic, D, W, Index>& taps) {
  const int64_t count = run.count;
  for (int64_t i = 0; i < count; ++i) {
    T displacement[D];
    int32_t position[D];
    load_pixel(run, i, displacement, position);
    const W kept = is_whole(displacement) ? W(0) : W(1);
    TCWARP_UNROLL
    for (int t = 0; t < 4; ++t) taps.axis[0].weight[t][at + i] *= kept;
  }
}

template <Padding padding, bool slopes, Mode mode, int D, typename T,
          typename W, typename Index>
void fill_run(const Run<D, T>& run, int slope_axis, int64_t at,
              TileTaps<mode, D, W, Index>& taps) {
  Index step = 1;
  for (int k = D - 1; k >= 0; --k) {
    const auto fill = [&](auto derivative) {
      taps_of_run<padding, derivative()>(run.displacement[k], run.position[k],
                                         k == D - 1 ? 1 : 0, run.image_size[k],
                                         step, at, run.count, taps.axis[k]);
    };
    if (slopes && k == slope_axis) {
      fill(std::bool_constant<slopes>{});
    } else {
      fill(std::false_type{});
    }
    step *= run.image_size[k];
  }
  if constexpr (mode == Mode::kCubic && !slopes) drop_whole(run, at, taps);
}

// The taps of pixels [begin, end) of sample n.
template <Padding padding, Mode mode, int D, typename T, typename W,
          typename Index>
void fill_taps(const Field<D, T>& field, int64_t n, int64_t begin, int64_t end,
               TileTaps<mode, D, W, Index>& taps) {
  for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
    fill_run<padding, false>(run, -1, run.first - begin, taps);
  });
}

// The same with the derivative of the weights along one axis.
template <Padding padding, Mode mode, int D, typename T, typename W,
          typename Index>
void fill_slopes(const Field<D, T>& field, int64_t n, int64_t begin,
                 int64_t end, int axis, TileTaps<mode, D, W, Index>& taps) {
  for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
    fill_run<padding, true>(run, axis, run.first - begin, taps);
  });
}

}  // namespace tcwarp::cpu
