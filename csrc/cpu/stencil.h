// First half of every CPU warp: for a tile of pixels, where they read from and
// with what weight. Computed once, used for all channels, forward and backward.
#pragma once

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

template <int D, Padding padding, typename T, typename Index>
TCWARP_MULTIVERSION void nearest_sources_of_run(const Run<D, T>& run,
                                                Index* __restrict index) {
  const int64_t count = run.count;
  for (int64_t i = 0; i < count; ++i) {
    T displacement[D];
    int32_t position[D];
    load_pixel(run, i, displacement, position);
    index[i] =
        nearest_source<D, padding, Index>(displacement, position, run.size);
  }
}

// index[i]: flat source of pixel begin + i of sample n, or kOutside.
template <Padding padding, int D, typename T, typename Index>
void nearest_sources(const Field<D, T>& field, int64_t n, int64_t begin,
                     int64_t end, Index* index) {
  for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
    nearest_sources_of_run<D, padding>(run, index + (run.first - begin));
  });
}

template <int D, typename T, typename Index>
struct LinearStencil {
  static constexpr int kTaps = 1 << D;
  Index index[kTaps][kLinearTile];
  T weight[kTaps][kLinearTile];
};

template <int D, Padding padding, typename T, typename Index>
TCWARP_MULTIVERSION void linear_stencil_of_run(
    const Run<D, T>& run, int slope_axis, int64_t at,
    LinearStencil<D, T, Index>& __restrict stencil) {
  const int64_t count = run.count;
  for (int64_t i = 0; i < count; ++i) {
    T displacement[D], weight[1 << D];
    int32_t position[D];
    Index index[1 << D];
    load_pixel(run, i, displacement, position);
    linear_corners<D, padding>(displacement, position, run.size, slope_axis,
                               index, weight);
    for (int t = 0; t < stencil.kTaps; ++t) {
      stencil.index[t][at + i] = index[t];
      stencil.weight[t][at + i] = weight[t];
    }
  }
}

// The taps of pixels [begin, end) of sample n; slope_axis as for
// linear_corners.
template <Padding padding, int D, typename T, typename Index>
void linear_stencil(const Field<D, T>& field, int64_t n, int64_t begin,
                    int64_t end, int slope_axis,
                    LinearStencil<D, T, Index>& stencil) {
  for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
    linear_stencil_of_run<D, padding>(run, slope_axis, run.first - begin,
                                      stencil);
  });
}

}  // namespace tcwarp::cpu
