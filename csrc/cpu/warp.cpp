// Warp, forward: a gather.
#include <cstring>

#include "spline.h"
#include "taps.h"

namespace tcwarp::cpu {
namespace {

// One channel of a tile, planes: the index is clamped so that the load is
// always valid and the compiler can use gather instructions.
template <typename V, typename Index>
TCWARP_MULTIVERSION void gather_plane(const V* __restrict input,
                                      const Index* __restrict index,
                                      V* __restrict output, int64_t count) {
  const auto at = [=](int64_t i) TCWARP_INLINE {
    return input + (index[i] < 0 ? 0 : index[i]);
  };
  for_each_prefetched(count, at, [=](int64_t i) TCWARP_INLINE {
    const V value = *at(i);
    output[i] = index[i] < 0 ? V{} : value;
  });
}

// All channels of a tile, channels last.
template <typename V, typename Index>
void gather_pixels(const V* input, const Index* index, V* output,
                   int64_t channels, int64_t count) {
  const auto at = [=](int64_t i) TCWARP_INLINE {
    return input + (index[i] < 0 ? 0 : index[i]) * channels;
  };
  for_each_prefetched(count, at, [=](int64_t i) TCWARP_INLINE {
    V* const target = output + i * channels;
    if (index[i] < 0) {
      std::fill_n(target, channels, V{});
    } else {
      const V* const source = at(i);
      for (int64_t k = 0; k < channels; ++k) target[k] = source[k];
    }
  });
}

template <typename V, typename Index>
void warp_nearest(const V* input, const Fill<Index*>& sources,
                  const Layout& image, int64_t pixels, V* output) {
  const Layout grid = image.with_pixels(pixels);
  parallel_over_tiles(
      grid, kNearestTile, grid.channels,
      [&](int64_t n, int64_t begin, int64_t end) {
        auto& index = scratch<Index[kNearestTile]>();
        const V* const source = input + image.sample_offset(n);
        V* const target = output + grid.sample_offset(n);
        sources(n, begin, end, index);
        if (grid.pixel_stride != 1) {
          gather_pixels(source, index, target + begin * grid.channels,
                        grid.channels, end - begin);
          return;
        }
        for (int64_t c = 0; c < grid.channels; ++c) {
          gather_plane(source + c * image.channel_stride, index,
                       target + c * grid.channel_stride + begin, end - begin);
        }
      });
}

// The value before the first tap is added: a pixel that reads from nowhere is
// +0; anywhere else -0 is neutral for every sum, so that a displacement of 0
// returns -0 as -0.
template <Mode mode, int D, typename W, typename Index>
TCWARP_MULTIVERSION void initial_values(const TileTaps<mode, D, W, Index>& taps,
                                        W* __restrict initial, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    W used = 0;
    for (int c = 0; c < taps.kCorners; ++c) {
      used += taps.corner_weight(c, i);
    }
    initial[i] = used > 0 ? W(-0.0) : W(0);
  }
}

// One channel of a tile, planes. `values` are those that are interpolated:
// pixels, or coefficients of a spline.
template <Mode mode, int D, typename V, typename S, typename W, typename Index>
TCWARP_MULTIVERSION void blend(const S* __restrict values,
                               const TileTaps<mode, D, W, Index>& taps,
                               const W* __restrict initial,
                               V* __restrict output, int64_t count) {
  const auto at = [&](int64_t i, int c) TCWARP_INLINE {
    return values + taps.corner_index(c, i);
  };
  const auto first = [&](int64_t i) TCWARP_INLINE { return at(i, 0); };
  for_each_prefetched(count, first, [&](int64_t i) TCWARP_INLINE {
    W sum = initial[i];
#pragma GCC unroll 16
    for (int c = 0; c < taps.kCorners; ++c) {
      const W weight = taps.corner_weight(c, i);
      const W value = static_cast<W>(*at(i, c));
      sum = weight != 0 ? sum + weight * value : sum;
    }
    output[i] = static_cast<V>(sum);
  });
}

// Four numbers side by side.
template <typename W>
using Four __attribute__((vector_size(4 * sizeof(W)))) = W;

// What a cubic warp needs for planes: the taps of a pixel along the last axis
// are neighbours, save near a border that reflects, so that a row of them is
// one load instead of four.
template <int D, typename W, typename Index>
struct RowTaps {
  static constexpr int64_t kTile = TileTaps<Mode::kCubic, D, W, Index>::kTile;
  static constexpr int kRows = D == 2 ? 4 : 16;

  Four<W> weight[kTile];   // of the taps along the last axis
  bool neighbours[kTile];  // whether they stand side by side
  bool used[kTile];        // whether the pixel reads anything

  TCWARP_MULTIVERSION void fill(const TileTaps<Mode::kCubic, D, W, Index>& taps,
                                int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const Index first = taps.axis[D - 1].index[0][i];
      bool side_by_side = true;
      for (int t = 0; t < 4; ++t) {
        weight[i][t] = taps.axis[D - 1].weight[t][i];
        side_by_side &= taps.axis[D - 1].index[t][i] == first + t;
      }
      neighbours[i] = side_by_side;
      bool any = true;
      for (int k = 0; k < D; ++k) {
        bool along = false;
        for (int t = 0; t < 4; ++t) along |= taps.axis[k].weight[t][i] != 0;
        any &= along;
      }
      used[i] = any;
    }
  }
};

// The same as blend, for coefficients of a spline: one that is not finite makes
// all of its plane so, and that a weight is 0 matters only where all are.
template <int D, typename V, typename W, typename Index>
TCWARP_MULTIVERSION void blend_rows(
    const W* __restrict values, const TileTaps<Mode::kCubic, D, W, Index>& taps,
    const RowTaps<D, W, Index>& rows, V* __restrict output, int64_t count) {
  constexpr int kRows = RowTaps<D, W, Index>::kRows;
  const auto first = [&](int64_t i) TCWARP_INLINE {
    return values + taps.corner_index(0, i);
  };
  for_each_prefetched(count, first, [&](int64_t i) TCWARP_INLINE {
    Four<W> sum = {};
    const auto add_rows = [&](const auto& load) TCWARP_INLINE {
#pragma GCC unroll 16
      for (int row = 0; row < kRows; ++row) {
        W weight = 1;
        Index flat = 0;
        for (int k = D - 2, r = row; k >= 0; --k, r /= 4) {
          weight *= taps.axis[k].weight[r % 4][i];
          flat += taps.axis[k].index[r % 4][i];
        }
        Four<W> pixels;
        load(values + flat, pixels);
        sum += weight * pixels;
      }
    };
    const Index at = taps.axis[D - 1].index[0][i];
    if (rows.neighbours[i]) {
      add_rows([&](const W* row, Four<W>& pixels) TCWARP_INLINE {
        std::memcpy(&pixels, row + at, sizeof(pixels));
      });
    } else {
      add_rows([&](const W* row, Four<W>& pixels) TCWARP_INLINE {
        const auto& index = taps.axis[D - 1].index;
        for (int t = 0; t < 4; ++t) pixels[t] = row[index[t][i]];
      });
    }
    sum *= rows.weight[i];
    const W value = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    output[i] = static_cast<V>(rows.used[i] ? value : W(0));
  });
}

// Channels [begin, begin + M) of one pixel from its corners, channels last.
template <int M, typename V, typename S, typename W>
TCWARP_HOST_DEVICE void blend_channels(const S* const* corner, const W* weight,
                                       int corners, W initial, int64_t begin,
                                       V* output) {
  W sums[M];
  for (int k = 0; k < M; ++k) sums[k] = initial;
  for (int c = 0; c < corners; ++c) {
    for (int k = 0; k < M; ++k) {
      sums[k] += weight[c] * static_cast<W>(corner[c][begin + k]);
    }
  }
  for (int k = 0; k < M; ++k) output[begin + k] = static_cast<V>(sums[k]);
}

// All channels of a tile, channels last.
template <Mode mode, int D, typename V, typename S, typename W, typename Index>
TCWARP_MULTIVERSION void blend_pixels(const S* values, int64_t channels,
                                      const TileTaps<mode, D, W, Index>& taps,
                                      const W* initial, V* output,
                                      int64_t count) {
  const auto at = [&](int64_t i, int c) TCWARP_INLINE {
    return values + taps.corner_index(c, i) * channels;
  };
  const auto first = [&](int64_t i) TCWARP_INLINE { return at(i, 0); };
  for_each_prefetched(count, first, [&](int64_t i) TCWARP_INLINE {
    const S* corner[taps.kCorners];
    W weight[taps.kCorners];
    int used = 0;
    for (int c = 0; c < taps.kCorners; ++c) {
      corner[used] = at(i, c);
      weight[used] = taps.corner_weight(c, i);
      used += weight[used] != 0;
    }
    V* const target = output + i * channels;
    int64_t k = 0;
    for (; k + 8 <= channels; k += 8) {
      blend_channels<8>(corner, weight, used, initial[i], k, target);
    }
    for (; k + 2 <= channels; k += 2) {
      blend_channels<2>(corner, weight, used, initial[i], k, target);
    }
    if (k < channels) {
      blend_channels<1>(corner, weight, used, initial[i], k, target);
    }
  });
}

// Copies the pixels that a cubic warp reads as they are.
template <typename V, typename Index>
void copy_whole(const V* input, int64_t pixel_stride, const Index* index,
                V* output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] == kBetween) continue;
    output[i * pixel_stride] =
        index[i] == kOutside ? V(0) : input[index[i] * pixel_stride];
  }
}

// Sample n of the images is read at the pixels of sample first_sample + n of
// the field; `whole` are those that are copied, with a spline.
template <Mode mode, int D, typename V, typename S, typename Index>
void warp_interpolated(
    const V* input, const S* values,
    const Fill<TileTaps<mode, D, SumOf<V>, Index>&>& fill_taps,
    const Fill<Index*>& fill_whole, const Layout& image, int64_t pixels,
    V* output, int64_t first_sample = 0) {
  const Layout grid = image.with_pixels(pixels);
  using Taps = TileTaps<mode, D, SumOf<V>, Index>;
  struct Tile {
    Taps taps;
    SumOf<V> initial[Taps::kTile];
    Index whole[Taps::kTile];
    RowTaps<D, SumOf<V>, Index> rows;
  };
  parallel_over_tiles(
      grid, Taps::kTile, grid.channels * Taps::kCorners,
      [&](int64_t n, int64_t begin, int64_t end) {
        auto& [taps, initial, whole, rows] = scratch<Tile>();
        const int64_t sample = image.sample_offset(n), count = end - begin;
        V* const target =
            output + grid.sample_offset(n) + begin * grid.pixel_stride;
        fill_taps(first_sample + n, begin, end, taps);
        const auto source_of = [&](int64_t c) {
          return values + sample + c * image.channel_stride;
        };
        const auto target_of = [&](int64_t c) {
          return target + c * grid.channel_stride;
        };
        if (grid.pixel_stride != 1) {
          initial_values(taps, initial, count);
          blend_pixels(values + sample, grid.channels, taps, initial, target,
                       count);
        } else if constexpr (mode == Mode::kCubic) {
          rows.fill(taps, count);
          for (int64_t c = 0; c < grid.channels; ++c) {
            blend_rows(source_of(c), taps, rows, target_of(c), count);
          }
        } else {
          initial_values(taps, initial, count);
          for (int64_t c = 0; c < grid.channels; ++c) {
            blend(source_of(c), taps, initial, target_of(c), count);
          }
        }
        if constexpr (mode == Mode::kCubic) {
          fill_whole(first_sample + n, begin, end, whole);
          for (int64_t c = 0; c < grid.channels; ++c) {
            copy_whole(input + sample + c * image.channel_stride,
                       grid.pixel_stride, whole, target_of(c), count);
          }
        }
      });
}

template <int D, typename V, typename S, typename Index>
void warp_cubic(const V* input,
                const Fill<TileTaps<Mode::kCubic, D, S, Index>&>& taps,
                const Fill<Index*>& whole, const Layout& image, int64_t pixels,
                const int32_t (&size)[D], Padding padding, V* output) {
  Tensor buffer = coefficient_buffer<S>(image);
  S* const coefficients = buffer.mutable_data_ptr<S>();
  for_few_samples(image, [&](const Layout& part, int64_t n) {
    const V* const source = input + image.sample_offset(n);
    spline_filter(source, coefficients, part, size, padding, false);
    warp_interpolated(source, coefficients, taps, whole, part, pixels,
                      output + part.with_pixels(pixels).sample_offset(n), n);
  });
}

void launch_nearest(const Tensor& input, const Tensor& displacement,
                    int64_t padding_mode, Tensor& output) {
  Layout layout = layout_of(input);
  const void* const from = input.const_data_ptr();
  void* const to = output.mutable_data_ptr();
  const int64_t width = widen_channels(
      layout, static_cast<int64_t>(input.element_size()), from, to);
  dispatch_width(width, [&](auto bits) {
    using V = decltype(bits);
    dispatch_warp(
        displacement, spatial_size(input), layout.channels, padding_mode,
        [&](const auto& field, auto padding, auto index) {
          warp_nearest(static_cast<const V*>(from),
                       nearest_sources<padding(), decltype(index)>(field),
                       layout, field.pixels, static_cast<V*>(to));
        });
  });
}

template <typename V>
void launch_interpolated(const Tensor& input, const Tensor& displacement,
                         int64_t mode, int64_t padding_mode, Tensor& output) {
  const Layout layout = layout_of(input);
  const V* const source = input.const_data_ptr<V>();
  V* const target = output.mutable_data_ptr<V>();
  using S = SumOf<V>;
  if (static_cast<Mode>(mode) == Mode::kLinear) {
    dispatch_warp(
        displacement, spatial_size(input), layout.channels, padding_mode,
        [&](const auto& field, auto padding, auto index) {
          using Index = decltype(index);
          warp_interpolated(source, source,
                            taps_of<padding(), Mode::kLinear, S, Index>(field),
                            Fill<Index*>(), layout, field.pixels, target);
        });
    return;
  }
  dispatch_warp(displacement, spatial_size(input), layout.channels,
                padding_mode, [&](const auto& field, auto padding, auto index) {
                  using Index = decltype(index);
                  warp_cubic(
                      source, taps_of<padding(), Mode::kCubic, S, Index>(field),
                      nearest_sources<padding(), Index, true>(field), layout,
                      field.pixels, field.image_size, padding(), target);
                });
}

}  // namespace

Tensor warp(const Tensor& input_, const Tensor& displacement_, int64_t mode,
            int64_t padding_mode) {
  check_warp(input_, displacement_, mode);
  const Tensor input = dense(input_);
  const Tensor displacement = as_contiguous(displacement_);
  Tensor output = empty_on_grid(input, spatial_size(displacement));
  if (output.numel() == 0) return output;
  prefer_huge_pages(output);
  if (static_cast<Mode>(mode) == Mode::kNearest) {
    launch_nearest(input, displacement, padding_mode, output);
    return output;
  }
  THO_DISPATCH_V2(input.scalar_type(), "warp", AT_WRAP([&] {
                    launch_interpolated<scalar_t>(input, displacement, mode,
                                                  padding_mode, output);
                  }),
                  AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("warp", TCWARP_BOX(tcwarp::cpu::warp));
}
