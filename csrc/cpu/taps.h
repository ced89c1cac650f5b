// First half of every CPU warp: for a tile of pixels, where they read from and
// with what weight. Computed once, used for all channels, forward and backward.
#pragma once

#include <functional>

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

// Fills a tile with what pixels [begin, end) of sample n of a field read. Its
// padding and the type of its numbers are left behind here: the code that uses
// a tile is compiled once for all of them, and a call serves thousands of
// pixels.
template <typename Tile>
using Fill =
    std::function<void(int64_t n, int64_t begin, int64_t end, Tile tile)>;

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
// whole_only, kBetween where the displacement does not lead to a pixel. The
// field must outlive what is returned.
template <Padding padding, typename Index, bool whole_only = false, int D,
          typename T>
Fill<Index*> nearest_sources(const Field<D, T>& field) {
  return [&field](int64_t n, int64_t begin, int64_t end, Index* index) {
    for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
      nearest_sources_of_run<D, padding, whole_only>(
          run, index + (run.first - begin));
    });
  };
}

// The taps of consecutive pixels along one axis, with the derivatives of their
// weights where a gradient by the displacement asks for them. W is what is
// summed in.
template <Mode mode, typename W, typename Index, bool slopes>
struct alignas(64) AxisTileTaps {
  static constexpr int kTaps = tap_count(mode);
  static constexpr int64_t kTile =
      mode == Mode::kLinear ? kLinearTile : kCubicTile;
  // One cache line longer, so that the rows do not meet in the same sets.
  static constexpr int64_t kRoom = kTile + 64 / sizeof(W);

  Index index[kTaps][kRoom];  // times the pixels of one step of the axis
  W weight[kTaps][kRoom];
  W slope[slopes ? kTaps : 1][slopes ? kRoom : 1];

  // `make(derivative)` gives the taps of pixel i.
  template <typename Make>
  TCWARP_HOST_DEVICE void set(int64_t i, Index step, const Make& make) {
    const auto taps = make(false);
    TCWARP_UNROLL
    for (int t = 0; t < kTaps; ++t) {
      index[t][i] = taps.index[t] * step;
      weight[t][i] = static_cast<W>(taps.weight[t]);
    }
    if constexpr (slopes) {
      const auto derivatives = make(true);
      TCWARP_UNROLL
      for (int t = 0; t < kTaps; ++t) {
        slope[t][i] = static_cast<W>(derivatives.weight[t]);
      }
    }
  }
};

// Of all axes: the weight of a corner is the product of those of its taps, its
// flat index their sum.
template <Mode mode, int D, typename W, typename Index, bool slopes = false>
struct TileTaps {
  static constexpr int kTaps = tap_count(mode);
  static constexpr int kRows = D == 2 ? kTaps : kTaps * kTaps;
  static constexpr int kCorners = kRows * kTaps;
  static constexpr int64_t kTile = AxisTileTaps<mode, W, Index, slopes>::kTile;

  AxisTileTaps<mode, W, Index, slopes> axis[D];

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

  // The derivative of a corner's weight along one axis.
  TCWARP_HOST_DEVICE W corner_slope(int corner, int64_t i, int along) const {
    W product = 1;
    for (int k = D - 1; k >= 0; --k, corner /= kTaps) {
      // Named: GCC's UndefinedBehaviorSanitizer spoils an index of `?:`.
      const auto& factor = k == along ? axis[k].slope : axis[k].weight;
      product *= factor[corner % kTaps][i];
    }
    return product;
  }
};

// One axis of a run: the taps of `displacement` from `position` on, which all
// pixels of a run share but along the last axis.
template <Padding padding, Mode mode, typename T, typename W, typename Index,
          bool slopes>
TCWARP_MULTIVERSION void taps_of_run(
    const T* displacement, int32_t position, bool last_axis, int32_t size,
    Index step, int64_t at, int32_t count,
    AxisTileTaps<mode, W, Index, slopes>& taps) {
  const int32_t moves = last_axis ? -1 : 0;  // a mask: no product in the loop
  const auto set = [&](int32_t i, const auto& make)
                       TCWARP_INLINE { taps.set(at + i, step, make); };
  if constexpr (mode == Mode::kLinear) {
    for (int32_t i = 0; i < count; ++i) {
      const LinearCell<padding, T> cell(displacement[i], position + (i & moves),
                                        size);
      set(i,
          [&](bool derivative) TCWARP_INLINE { return cell.taps(derivative); });
    }
  } else {
    // A few pixels side by side; once more, with more work, near the border.
    constexpr int32_t kFew = 32;
    for (int32_t begin = 0; begin < count; begin += kFew) {
      const int32_t end = std::min(begin + kFew, count);
      int32_t near_border = 0;
      for (int32_t i = begin; i < end; ++i) {
        bool inside;
        set(i, [&](bool derivative) TCWARP_INLINE {
          return inner_cubic_taps(displacement[i], position + (i & moves), size,
                                  derivative, inside);
        });
        near_border |= static_cast<int32_t>(!inside);
      }
      if (near_border == 0) continue;
      for (int32_t i = begin; i < end; ++i) {
        set(i, [&](bool derivative) TCWARP_INLINE {
          return cubic_taps<padding>(displacement[i], position + (i & moves),
                                     size, derivative);
        });
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

// The taps of pixels [begin, end) of sample n. Slopes are of copied pixels too.
// The field must outlive what is returned.
template <Padding padding, Mode mode, typename W, typename Index,
          bool slopes = false, int D, typename T>
Fill<TileTaps<mode, D, W, Index, slopes>&> taps_of(const Field<D, T>& field) {
  return [&field](int64_t n, int64_t begin, int64_t end, auto& taps) {
    for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
      const int64_t at = run.first - begin;
      Index step = 1;
      for (int k = D - 1; k >= 0; --k) {
        taps_of_run<padding>(run.displacement[k], run.position[k], k == D - 1,
                             run.image_size[k], step, at,
                             static_cast<int32_t>(run.count), taps.axis[k]);
        step *= run.image_size[k];
      }
      if constexpr (mode == Mode::kCubic && !slopes) drop_whole(run, at, taps);
    });
  };
}

}  // namespace tcwarp::cpu
