// Warp, backward by the displacement: a gather again.
#include "spline.h"
#include "taps.h"

namespace tcwarp::cpu {
namespace {

// sum[axis][i] += gradient * derivative of the interpolated value along that
// axis, one channel. Row by row of the taps: what the last axis makes of a row
// serves all derivatives.
template <Mode mode, int D, typename V, typename S, typename W, typename Index,
          int64_t tile>
TCWARP_MULTIVERSION void add_slopes(
    const V* __restrict gradient, const S* __restrict values,
    const TileTaps<mode, D, W, Index, true>& taps, W (&__restrict sum)[D][tile],
    int64_t count) {
  constexpr int kTaps = taps.kTaps;
  const auto first = [&](int64_t i) TCWARP_INLINE {
    return values + taps.corner_index(0, i);
  };
  const auto add = [](W sum, W weight, W value) TCWARP_INLINE {
    return weight != 0 ? sum + weight * value : sum;
  };
  for_each_prefetched(count, first, [&](int64_t i) TCWARP_INLINE {
    W slope[D] = {};
#pragma GCC unroll 4
    for (int row = 0; row < taps.kRows; ++row) {
      Index flat = 0;
      W weight = 1, tilted[D];  // with the slope of one axis in its place
      for (int k = 0; k < D - 1; ++k) tilted[k] = 1;
      for (int k = D - 2, r = row; k >= 0; --k, r /= kTaps) {
        const auto& axis = taps.axis[k];
        flat += axis.index[r % kTaps][i];
        weight *= axis.weight[r % kTaps][i];
        for (int j = 0; j < D - 1; ++j) {
          const auto& factor = j == k ? axis.slope : axis.weight;
          tilted[j] *= factor[r % kTaps][i];
        }
      }
      W level = 0, along = 0;
      TCWARP_UNROLL
      for (int t = 0; t < kTaps; ++t) {
        const auto& axis = taps.axis[D - 1];
        const W value = static_cast<W>(values[flat + axis.index[t][i]]);
        level = add(level, axis.weight[t][i], value);
        along = add(along, axis.slope[t][i], value);
      }
      for (int k = 0; k < D - 1; ++k)
        slope[k] = add(slope[k], tilted[k], level);
      slope[D - 1] = add(slope[D - 1], weight, along);
    }
    for (int k = 0; k < D; ++k) {
      sum[k][i] += slope[k] * static_cast<W>(gradient[i]);
    }
  });
}

// The same for all channels of a tile, channels last.
template <Mode mode, int D, typename V, typename S, typename W, typename Index,
          int64_t tile>
void add_slopes_of_pixels(const V* gradient, const S* values, int64_t channels,
                          const TileTaps<mode, D, W, Index, true>& taps,
                          W (&sum)[D][tile], int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const V* const from = gradient + i * channels;
    for (int c = 0; c < taps.kCorners; ++c) {
      W weight[D];
      bool used = false;
      for (int axis = 0; axis < D; ++axis) {
        weight[axis] = taps.corner_slope(c, i, axis);
        used |= weight[axis] != 0;
      }
      if (!used) continue;
      const S* const pixel = values + taps.corner_index(c, i) * channels;
      W product = 0;
      for (int64_t k = 0; k < channels; ++k) {
        product += static_cast<W>(pixel[k]) * static_cast<W>(from[k]);
      }
      for (int axis = 0; axis < D; ++axis) {
        if (weight[axis] != 0) sum[axis][i] += weight[axis] * product;
      }
    }
  }
}

// Stores values in a tensor of any floating dtype, from element `at` on.
template <typename W>
void store(const W* from, int64_t count, Tensor& to, int64_t at) {
  THO_DISPATCH_V2(to.scalar_type(), "warp_backward_displacement", AT_WRAP([&] {
                    scalar_t* const target = to.mutable_data_ptr<scalar_t>();
                    for (int64_t i = 0; i < count; ++i) {
                      target[at + i] = static_cast<scalar_t>(from[i]);
                    }
                  }),
                  AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
}

// Sample n of the images is read at the pixels of sample first_sample + n of
// the field, one of `output`; a shared field sums over all samples of the
// images.
template <Mode mode, int D, typename V, typename S, typename W, typename Index>
void backward_displacement(
    const V* gradient, const S* values,
    const Fill<TileTaps<mode, D, W, Index, true>&>& fill_taps, bool shared,
    const Layout& image, int64_t pixels, Tensor& output,
    int64_t first_sample = 0) {
  using Taps = TileTaps<mode, D, W, Index, true>;
  struct Tile {
    Taps taps;
    W sum[D][Taps::kTile];
  };
  const Layout grid = image.with_pixels(pixels);
  const int64_t together = shared ? image.samples : 1;
  Layout fields = grid;
  fields.samples /= together;
  parallel_over_tiles(
      fields, Taps::kTile, together * image.channels * Taps::kCorners,
      [&](int64_t n, int64_t begin, int64_t end) {
        auto& [taps, sum] = scratch<Tile>();
        const int64_t count = end - begin;
        const auto add_sample = [&](int64_t m) {
          const S* const source = values + image.sample_offset(m);
          const V* const from =
              gradient + grid.sample_offset(m) + begin * grid.pixel_stride;
          if (grid.pixel_stride != 1) {
            add_slopes_of_pixels(from, source, grid.channels, taps, sum, count);
            return;
          }
          for (int64_t c = 0; c < grid.channels; ++c) {
            add_slopes(from + c * grid.channel_stride,
                       source + c * image.channel_stride, taps, sum, count);
          }
        };
        for (auto& component : sum) std::fill_n(component, count, W(0));
        fill_taps(first_sample + n, begin, end, taps);
        for (int64_t m = n; m < n + together; ++m) add_sample(m);
        for (int axis = 0; axis < D; ++axis) {
          store(sum[axis], count, output,
                ((first_sample + n) * D + axis) * grid.pixels + begin);
        }
      });
}

// The same through a spline: the values are its coefficients.
template <int D, typename V, typename W, typename Index>
void backward_cubic(
    const V* gradient, const V* values,
    const Fill<TileTaps<Mode::kCubic, D, W, Index, true>&>& taps, bool shared,
    const Layout& image, int64_t pixels, const int32_t (&size)[D],
    Padding padding, Tensor& output) {
  const Layout grid = image.with_pixels(pixels);
  Tensor buffer = coefficient_buffer<W>(image, shared);
  W* const coefficients = buffer.mutable_data_ptr<W>();
  const auto add = [&](const Layout& part, int64_t n) {
    spline_filter(values + image.sample_offset(n), coefficients, part, size,
                  padding, false);
    backward_displacement(gradient + grid.sample_offset(n), coefficients, taps,
                          shared, part, pixels, output, n);
  };
  for_few_samples(image, add, shared);
}

}  // namespace

Tensor warp_backward_displacement(const Tensor& gradient_, const Tensor& input_,
                                  const Tensor& displacement_, int64_t mode,
                                  int64_t padding_mode) {
  STD_TORCH_CHECK(static_cast<Mode>(mode) != Mode::kNearest,
                  "warp_backward_displacement: mode nearest has no gradient");
  const Tensor input = dense(input_);
  const Tensor displacement = as_contiguous(displacement_);
  const Tensor gradient = with_layout_of(gradient_, input);
  Tensor output = empty_as(displacement);
  if (output.numel() == 0) return output;
  if (gradient.numel() == 0) return torch::stable::zero_(output);
  prefer_huge_pages(output);
  const Layout layout = layout_of(input);
  THO_DISPATCH_V2(
      input.scalar_type(), "warp_backward_displacement", AT_WRAP([&] {
        const auto* const source = input.const_data_ptr<scalar_t>();
        const auto* const from = gradient.const_data_ptr<scalar_t>();
        dispatch_warp(
            displacement, spatial_size(input), layout.channels, padding_mode,
            [&](const auto& field, auto padding, auto index) {
              using Index = decltype(index);
              using W = SumOf<scalar_t>;
              if (static_cast<Mode>(mode) == Mode::kLinear) {
                return backward_displacement(
                    from, source,
                    taps_of<padding(), Mode::kLinear, W, Index, true>(field),
                    field.is_shared(), layout, field.pixels, output);
              }
              backward_cubic(
                  from, source,
                  taps_of<padding(), Mode::kCubic, W, Index, true>(field),
                  field.is_shared(), layout, field.pixels, field.image_size,
                  padding(), output);
            });
      }),
      AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("warp_backward_displacement",
         TCWARP_BOX(tcwarp::cpu::warp_backward_displacement));
}
