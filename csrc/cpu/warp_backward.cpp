// Warp, backward. By the image: a scatter, the exact adjoint of the gather.
// Whole planes go to one thread, so sums need no atomics and have one order:
// the result does not depend on the number of threads. By the displacement: a
// gather again.
#include "stencil.h"

namespace tcwarp::cpu {
namespace {

// Half precision is summed in float32, one plane at a time beside the result.
template <typename V>
using SumOf = std::conditional_t<std::is_same_v<V, double>, double, float>;

// Sums of some channels of one sample: those of the result itself, or those of
// a plane beside it.
template <typename S, typename Stride>
struct Sums {
  S* data;
  int64_t channel_stride;
  Stride pixel_stride;
};

// target[index[i]] += gradient[i] for one channel of a tile.
template <typename V, typename S, typename Index, typename From, typename To>
void scatter(const V* gradient, From from, const Index* index, S* target, To to,
             int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < 0) continue;
    target[index[i] * to] += static_cast<S>(gradient[i * from]);
  }
}

template <int D, typename V, typename S, typename T, typename Index,
          typename From, typename To>
void scatter_weighted(const V* gradient, From from,
                      const LinearStencil<D, T, Index>& stencil, S* target,
                      To to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const S value = static_cast<S>(gradient[i * from]);
    for (int t = 0; t < stencil.kTaps; ++t) {
      const S weight = static_cast<S>(stencil.weight[t][i]);
      if (weight == 0) continue;
      target[stencil.index[t][i] * to] += weight * value;
    }
  }
}

// Calls add(n, first, last, sums, gradient stride) in parallel with zeroed Sums
// for channels [first, last) of sample n, and stores them in the result.
template <typename V, typename Add>
void sum_channels(const Layout& layout, V* output, const Add& add) {
  using S = SumOf<V>;
  const auto sum = [&](int64_t n, int64_t begin, int64_t end, auto stride) {
    V* const target = output + layout.sample_offset(n);
    const int64_t plane = layout.channel_stride;
    if constexpr (std::is_same_v<V, S>) {
      for (int64_t c = begin; c < end; ++c) {
        for (int64_t i = 0; i < layout.pixels; ++i) {
          target[c * plane + i * stride] = 0;
        }
      }
      add(n, begin, end, Sums<S, decltype(stride)>{target, plane, stride},
          stride);
    } else {
      using One = std::integral_constant<int64_t, 1>;
      std::vector<S> sums(layout.pixels);
      for (int64_t c = begin; c < end; ++c) {
        std::fill(sums.begin(), sums.end(), S(0));
        add(n, c, c + 1, Sums<S, One>{sums.data(), 0, One{}}, stride);
        for (int64_t i = 0; i < layout.pixels; ++i) {
          target[c * plane + i * stride] = static_cast<V>(sums[i]);
        }
      }
    }
  };
  parallel_over_channels(layout, [&](int64_t n, int64_t begin, int64_t end) {
    dispatch_stride(layout.pixel_stride,
                    [&](auto stride) { sum(n, begin, end, stride); });
  });
}

template <Padding padding, typename Index, int D, typename V, typename T>
void backward_nearest(const V* gradient, const Field<D, T>& field,
                      const Layout& layout, V* output) {
  sum_channels(
      layout, output,
      [&](int64_t n, int64_t first, int64_t last, const auto& sums,
          auto stride) {
        alignas(64) Index index[kNearestTile];
        const V* const source = gradient + layout.sample_offset(n);
        for (int64_t begin = 0; begin < field.pixels; begin += kNearestTile) {
          const int64_t end = std::min(begin + kNearestTile, field.pixels);
          nearest_sources<padding>(field, n, begin, end, index);
          for (int64_t c = first; c < last; ++c) {
            scatter(source + c * layout.channel_stride + begin * stride, stride,
                    index, sums.data + c * sums.channel_stride,
                    sums.pixel_stride, end - begin);
          }
        }
      });
}

template <Padding padding, typename Index, int D, typename V, typename T>
void backward_linear(const V* gradient, const Field<D, T>& field,
                     const Layout& layout, V* output) {
  sum_channels(
      layout, output,
      [&](int64_t n, int64_t first, int64_t last, const auto& sums,
          auto stride) {
        LinearStencil<D, T, Index> stencil;
        const V* const source = gradient + layout.sample_offset(n);
        for (int64_t begin = 0; begin < field.pixels; begin += kLinearTile) {
          const int64_t end = std::min(begin + kLinearTile, field.pixels);
          linear_stencil<padding>(field, n, begin, end, -1, stencil);
          for (int64_t c = first; c < last; ++c) {
            scatter_weighted(
                source + c * layout.channel_stride + begin * stride, stride,
                stencil, sums.data + c * sums.channel_stride, sums.pixel_stride,
                end - begin);
          }
        }
      });
}

// sum[i] += gradient * derivative of the interpolated value, one channel.
template <int D, typename V, typename T, typename Index>
TCWARP_MULTIVERSION void add_slope(const V* __restrict gradient,
                                   const V* __restrict input,
                                   int64_t pixel_stride,
                                   const LinearStencil<D, T, Index>& stencil,
                                   T* __restrict sum, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    T slope = 0;
    for (int t = 0; t < stencil.kTaps; ++t) {
      const T weight = stencil.weight[t][i];
      const T value = static_cast<T>(input[stencil.index[t][i] * pixel_stride]);
      slope = weight != 0 ? slope + weight * value : slope;
    }
    sum[i] += slope * static_cast<T>(gradient[i * pixel_stride]);
  }
}

template <Padding padding, typename Index, int D, typename V, typename T>
void backward_displacement(const V* gradient, const V* input,
                           const Field<D, T>& field, const Layout& layout,
                           T* output) {
  parallel_over_tiles(
      layout, kLinearTile, (layout.channels * D) << D,
      [&](int64_t n, int64_t begin, int64_t end) {
        LinearStencil<D, T, Index> stencil;
        const V* const source = input + layout.sample_offset(n);
        const V* const from = gradient + layout.sample_offset(n);
        for (int axis = 0; axis < D; ++axis) {
          T* const sum = output + (n * D + axis) * layout.pixels + begin;
          std::fill_n(sum, end - begin, T(0));
          linear_stencil<padding>(field, n, begin, end, axis, stencil);
          for (int64_t c = 0; c < layout.channels; ++c) {
            const int64_t plane = c * layout.channel_stride;
            add_slope(from + plane + begin * layout.pixel_stride,
                      source + plane, layout.pixel_stride, stencil, sum,
                      end - begin);
          }
        }
      });
}

}  // namespace

Tensor warp_backward_input(const Tensor& gradient_, const Tensor& displacement_,
                           int64_t mode, int64_t padding_mode) {
  const Tensor gradient = dense(gradient_);
  const Tensor displacement = torch::stable::contiguous(displacement_);
  Tensor output = torch::stable::empty_like(gradient);
  if (output.numel() == 0) return output;
  prefer_huge_pages(output);
  const Layout layout = layout_of(gradient);
  THO_DISPATCH_V2(
      gradient.scalar_type(), "warp_backward_input", AT_WRAP([&] {
        const auto* const source = gradient.const_data_ptr<scalar_t>();
        auto* const target = output.mutable_data_ptr<scalar_t>();
        dispatch_warp(displacement, layout, padding_mode,
                      [&](const auto& field, auto padding, auto index) {
                        if (static_cast<Mode>(mode) == Mode::kNearest) {
                          backward_nearest<padding(), decltype(index)>(
                              source, field, layout, target);
                        } else {
                          backward_linear<padding(), decltype(index)>(
                              source, field, layout, target);
                        }
                      });
      }),
      AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

Tensor warp_backward_displacement(const Tensor& gradient_, const Tensor& input_,
                                  const Tensor& displacement_, int64_t mode,
                                  int64_t padding_mode) {
  STD_TORCH_CHECK(static_cast<Mode>(mode) == Mode::kLinear,
                  "warp_backward_displacement: mode nearest has no gradient");
  const Tensor input = dense(input_);
  const Tensor displacement = torch::stable::contiguous(displacement_);
  const Tensor gradient = with_layout_of(gradient_, input);
  Tensor output = torch::stable::empty_like(displacement);
  if (output.numel() == 0) return output;
  const Layout layout = layout_of(input);
  THO_DISPATCH_V2(
      input.scalar_type(), "warp_backward_displacement", AT_WRAP([&] {
        const auto* const source = input.const_data_ptr<scalar_t>();
        const auto* const from = gradient.const_data_ptr<scalar_t>();
        dispatch_warp(
            displacement, layout, padding_mode,
            [&](const auto& field, auto padding, auto index) {
              using T = typename std::decay_t<decltype(field)>::Scalar;
              backward_displacement<padding(), decltype(index)>(
                  from, source, field, layout, output.mutable_data_ptr<T>());
            });
      }),
      AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("warp_backward_input", TORCH_BOX(&tcwarp::cpu::warp_backward_input));
  m.impl("warp_backward_displacement",
         TORCH_BOX(&tcwarp::cpu::warp_backward_displacement));
}
