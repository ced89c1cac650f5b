// Warp, forward: a gather.
#include "spline.h"
#include "stencil.h"

namespace tcwarp::cpu {
namespace {

// One channel of a tile, planes: the index is clamped so that the load is
// always valid and the compiler can use gather instructions.
template <typename V, typename Index>
TCWARP_MULTIVERSION void gather_plane(const V* __restrict input,
                                      const Index* __restrict index,
                                      V* __restrict output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const V value = input[index[i] < 0 ? 0 : index[i]];
    output[i] = index[i] < 0 ? V{} : value;
  }
}

// All channels of a tile, channels last.
template <typename V, typename Index>
void gather_pixels(const V* input, const Index* index, V* output,
                   int64_t channels, int64_t count) {
  for (int64_t i = 0; i < count; ++i, output += channels) {
    if (index[i] < 0) {
      std::fill_n(output, channels, V{});
    } else {
      std::copy_n(input + index[i] * channels, channels, output);
    }
  }
}

template <Padding padding, typename Index, int D, typename V, typename T>
void warp_nearest(const V* input, const Field<D, T>& field,
                  const Layout& layout, V* output) {
  parallel_over_tiles(layout, kNearestTile, layout.channels,
                      [&](int64_t n, int64_t begin, int64_t end) {
                        alignas(64) Index index[kNearestTile];
                        const V* const source = input + layout.sample_offset(n);
                        V* const target = output + layout.sample_offset(n);
                        nearest_sources<padding>(field, n, begin, end, index);
                        if (layout.pixel_stride != 1) {
                          gather_pixels(source, index,
                                        target + begin * layout.channels,
                                        layout.channels, end - begin);
                          return;
                        }
                        for (int64_t c = 0; c < layout.channels; ++c) {
                          const int64_t plane = c * layout.channel_stride;
                          gather_plane(source + plane, index,
                                       target + plane + begin, end - begin);
                        }
                      });
}

// The value before the first tap is added: a pixel that reads from nowhere is
// +0; anywhere else -0 is neutral for every sum, so that a displacement of 0
// returns -0 as -0.
template <Mode mode, int D, typename T, typename Index>
TCWARP_MULTIVERSION void initial_values(
    const Stencil<mode, D, T, Index>& stencil, T* __restrict initial,
    int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    T used = 0;
    for (int c = 0; c < stencil.kCorners; ++c) {
      used += stencil.corner_weight(c, i);
    }
    initial[i] = used > 0 ? T(-0.0) : T(0);
  }
}

// One channel of a tile. `values` are those that are interpolated: pixels, or
// coefficients of a spline.
template <typename Sum, Mode mode, int D, typename V, typename S, typename T,
          typename Index, typename Stride>
TCWARP_MULTIVERSION void blend(const S* __restrict values, Stride pixel_stride,
                               const Stencil<mode, D, T, Index>& stencil,
                               const T* __restrict initial,
                               V* __restrict output, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    Sum sum = initial[i];
#pragma GCC unroll 16
    for (int c = 0; c < stencil.kCorners; ++c) {
      const Sum weight = stencil.corner_weight(c, i);
      const Sum value =
          static_cast<Sum>(values[stencil.corner_index(c, i) * pixel_stride]);
      sum = weight != 0 ? sum + weight * value : sum;
    }
    output[i * pixel_stride] = static_cast<V>(sum);
  }
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

template <Mode mode, Padding padding, typename Index, int D, typename V,
          typename S, typename T>
void warp_interpolated(const V* input, const S* values,
                       const Field<D, T>& field, const Layout& layout,
                       V* output) {
  using Sum = std::conditional_t<std::is_same_v<V, double>, double, T>;
  using Taps = Stencil<mode, D, T, Index>;
  parallel_over_tiles(
      layout, Taps::kTile, layout.channels * Taps::kCorners,
      [&](int64_t n, int64_t begin, int64_t end) {
        Taps stencil;
        T initial[Taps::kTile];
        Index whole[mode == Mode::kCubic ? Taps::kTile : 1];
        const int64_t sample = layout.sample_offset(n), count = end - begin;
        fill_stencil<padding>(field, n, begin, end, -1, stencil);
        initial_values(stencil, initial, count);
        if constexpr (mode == Mode::kCubic) {
          nearest_sources<padding, true>(field, n, begin, end, whole);
        }
        for (int64_t c = 0; c < layout.channels; ++c) {
          const int64_t plane = sample + c * layout.channel_stride;
          dispatch_stride(layout.pixel_stride, [&](auto stride) {
            V* const target = output + plane + begin * stride;
            blend<Sum>(values + plane, stride, stencil, initial, target, count);
            if constexpr (mode == Mode::kCubic) {
              copy_whole(input + plane, stride, whole, target, count);
            }
          });
        }
      });
}

template <typename V>
void launch_nearest(const Tensor& input, const Tensor& displacement,
                    int64_t padding_mode, Tensor& output) {
  const Layout layout = layout_of(input);
  const auto* const source = static_cast<const V*>(input.const_data_ptr());
  auto* const target = static_cast<V*>(output.mutable_data_ptr());
  dispatch_warp(displacement, layout, padding_mode,
                [&](const auto& field, auto padding, auto index) {
                  warp_nearest<padding(), decltype(index)>(source, field,
                                                           layout, target);
                });
}

template <typename V>
void launch_interpolated(const Tensor& input, const Tensor& displacement,
                         int64_t mode, int64_t padding_mode, Tensor& output) {
  const Layout layout = layout_of(input);
  const V* const source = input.const_data_ptr<V>();
  V* const target = output.mutable_data_ptr<V>();
  if (static_cast<Mode>(mode) == Mode::kLinear) {
    dispatch_warp(
        displacement, layout, padding_mode,
        [&](const auto& field, auto padding, auto index) {
          warp_interpolated<Mode::kLinear, padding(), decltype(index)>(
              source, source, field, layout, target);
        });
    return;
  }
  using S = SumOf<V>;
  Tensor buffer = coefficient_buffer<S>(input);
  S* const coefficients = buffer.mutable_data_ptr<S>();
  dispatch_warp(displacement, layout, padding_mode,
                [&](const auto& field, auto padding, auto index) {
                  spline_filter(source, coefficients, layout, field.size,
                                padding(), false);
                  warp_interpolated<Mode::kCubic, padding(), decltype(index)>(
                      source, coefficients, field, layout, target);
                });
}

}  // namespace

Tensor warp(const Tensor& input_, const Tensor& displacement_, int64_t mode,
            int64_t padding_mode) {
  const Tensor input = dense(input_);
  const Tensor displacement = torch::stable::contiguous(displacement_);
  Tensor output = torch::stable::empty_like(input);
  if (output.numel() == 0) return output;
  prefer_huge_pages(output);
  if (static_cast<Mode>(mode) == Mode::kNearest) {
    dispatch_width(input.element_size(), [&](auto bits) {
      launch_nearest<decltype(bits)>(input, displacement, padding_mode, output);
    });
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
  m.impl("warp", TORCH_BOX(&tcwarp::cpu::warp));
}
