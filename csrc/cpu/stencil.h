// First half of every CPU warp: for a run of pixels, where they read from and
// with what weight. Computed once, used for all channels, forward and backward.
#pragma once

#include "common.h"

namespace tcwarp::cpu {

// index[i]: flat source pixel of pixel i of the run, or kOutside.
template <int D, Padding padding, typename T, typename Index>
TCWARP_MULTIVERSION void nearest_sources(const Run<D, T>& run,
                                         Index* __restrict index) {
  const int64_t count = run.count;
  for (int64_t i = 0; i < count; ++i) {
    int32_t outside = 0;  // negative if any axis is; a bool is not vectorized
    Index flat = 0;
    for (int k = 0; k < D; ++k) {
      const T displacement = run.displacement[k][i];
      const int32_t along = k == D - 1 ? static_cast<int32_t>(i) : 0;
      const int32_t source = pad_index<padding>(
          run.position[k] + along + nearest_offset(bounded(displacement)),
          run.size[k]);
      outside |= is_finite(displacement) ? source : kOutside;
      flat = flat * run.size[k] + source;
    }
    index[i] = outside < 0 ? kOutside : flat;
  }
}

// The 2^D taps of a run of pixels. A tap of weight 0 is skipped by its users:
// infinities and NaN beside it do not leak.
template <int D, typename T, typename Index>
struct LinearStencil {
  static constexpr int kTaps = 1 << D;
  Index index[kTaps][kChunk];
  T weight[kTaps][kChunk];
};

// slope_axis < 0 gives the weights; otherwise their derivative by the
// displacement along that axis.
template <int D, Padding padding, typename T, typename Index>
TCWARP_MULTIVERSION void linear_stencil(
    const Run<D, T>& run, int slope_axis,
    LinearStencil<D, T, Index>& __restrict stencil) {
  const int64_t count = run.count;
  for (int64_t i = 0; i < count; ++i) {
    LinearTaps<T> taps[D];
    bool finite = true;
    for (int k = 0; k < D; ++k) {
      const T displacement = run.displacement[k][i];
      const int32_t along = k == D - 1 ? static_cast<int32_t>(i) : 0;
      taps[k] = linear_taps<padding>(displacement, run.position[k] + along,
                                     run.size[k]);
      finite &= is_finite(displacement);
    }
    for (int corner = 0; corner < 1 << D; ++corner) {
      Index flat = 0;
      T weight = finite ? T(1) : T(0);
      for (int k = 0; k < D; ++k) {
        const int t = corner >> k & 1;
        flat = flat * run.size[k] + taps[k].index[t];
        weight *= k == slope_axis ? taps[k].slope[t] : taps[k].weight[t];
      }
      stencil.index[corner][i] = flat;
      stencil.weight[corner][i] = weight;
    }
  }
}

}  // namespace tcwarp::cpu
