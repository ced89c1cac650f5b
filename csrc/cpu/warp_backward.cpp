// Warp, backward. By the image: a scatter, the exact adjoint of the gather.
// Whole planes go to one thread, so sums need no atomics and have one order:
// the result does not depend on the number of threads. By the displacement: a
// gather again.
#include "stencil.h"

namespace tcwarp::cpu {
namespace {

// target[index[i]] += weight[i] * gradient[i] over one channel of a run.
template <typename V, typename Index>
void scatter(const V* gradient, int64_t pixel_stride, const Index* index,
             V* target, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (index[i] < 0) continue;
    V& sum = target[index[i] * pixel_stride];
    sum = sum + gradient[i * pixel_stride];
  }
}

template <int D, typename V, typename T, typename Index>
void scatter_weighted(const V* gradient, int64_t pixel_stride,
                      const LinearStencil<D, T, Index>& stencil, V* target,
                      int64_t count) {
  using Sum = std::conditional_t<std::is_same_v<V, double>, double, T>;
  for (int64_t i = 0; i < count; ++i) {
    const Sum value = static_cast<Sum>(gradient[i * pixel_stride]);
    for (int t = 0; t < stencil.kTaps; ++t) {
      const Sum weight = stencil.weight[t][i];
      if (weight == 0) continue;
      V& sum = target[stencil.index[t][i] * pixel_stride];
      sum = static_cast<V>(static_cast<Sum>(sum) + weight * value);
    }
  }
}

// Zeroes channels [first, last) of one sample where one thread owns them.
template <typename V>
void clear(V* sample, const Layout& layout, int64_t first, int64_t last) {
  if (layout.pixel_stride == 1) {
    std::fill_n(sample + first * layout.pixels, (last - first) * layout.pixels,
                V(0));
    return;
  }
  for (int64_t i = 0; i < layout.pixels; ++i) {
    std::fill_n(sample + i * layout.channels + first, last - first, V(0));
  }
}

template <Padding padding, typename Index, int D, typename V, typename T>
void backward_nearest(const V* gradient, const Field<D, T>& field,
                      const Layout& layout, V* output) {
  parallel_over_channels(layout, [&](int64_t n, int64_t begin, int64_t end) {
    alignas(64) Index index[kChunk];
    const V* const source = gradient + layout.sample_offset(n);
    V* const target = output + layout.sample_offset(n);
    clear(target, layout, begin, end);
    for_each_run(field, n, 0, field.pixels, [&](const Run<D, T>& run) {
      nearest_sources<D, padding>(run, index);
      for (int64_t c = begin; c < end; ++c) {
        const int64_t plane = c * layout.channel_stride;
        scatter(source + plane + run.first * layout.pixel_stride,
                layout.pixel_stride, index, target + plane, run.count);
      }
    });
  });
}

template <Padding padding, typename Index, int D, typename V, typename T>
void backward_linear(const V* gradient, const Field<D, T>& field,
                     const Layout& layout, V* output) {
  parallel_over_channels(layout, [&](int64_t n, int64_t begin, int64_t end) {
    LinearStencil<D, T, Index> stencil;
    const V* const source = gradient + layout.sample_offset(n);
    V* const target = output + layout.sample_offset(n);
    clear(target, layout, begin, end);
    for_each_run(field, n, 0, field.pixels, [&](const Run<D, T>& run) {
      linear_stencil<D, padding>(run, -1, stencil);
      for (int64_t c = begin; c < end; ++c) {
        const int64_t plane = c * layout.channel_stride;
        scatter_weighted(source + plane + run.first * layout.pixel_stride,
                         layout.pixel_stride, stencil, target + plane,
                         run.count);
      }
    });
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
  parallel_over_pixels(
      layout, (layout.channels * D) << D,
      [&](int64_t n, int64_t begin, int64_t end) {
        LinearStencil<D, T, Index> stencil;
        const V* const source = input + layout.sample_offset(n);
        const V* const from = gradient + layout.sample_offset(n);
        for_each_run(field, n, begin, end, [&](const Run<D, T>& run) {
          for (int axis = 0; axis < D; ++axis) {
            T* const sum = output + (n * D + axis) * layout.pixels + run.first;
            std::fill_n(sum, run.count, T(0));
            linear_stencil<D, padding>(run, axis, stencil);
            for (int64_t c = 0; c < layout.channels; ++c) {
              const int64_t plane = c * layout.channel_stride;
              add_slope(from + plane + run.first * layout.pixel_stride,
                        source + plane, layout.pixel_stride, stencil, sum,
                        run.count);
            }
          }
        });
      });
}

}  // namespace

Tensor warp_backward_input(const Tensor& gradient_, const Tensor& displacement_,
                           int64_t mode, int64_t padding_mode) {
  const Tensor gradient = dense(gradient_);
  const Tensor displacement = torch::stable::contiguous(displacement_);
  Tensor output = torch::stable::empty_like(gradient);
  if (output.numel() == 0) return output;
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
  // Walked with the layout of the input.
  Tensor gradient = torch::stable::empty_like(input);
  torch::stable::copy_(gradient, gradient_);
  Tensor output = torch::stable::empty_like(displacement);
  if (output.numel() == 0) return output;
  const Layout layout = layout_of(input);
  THO_DISPATCH_V2(
      input.scalar_type(), "warp_backward_displacement", AT_WRAP([&] {
        const auto* const source = input.const_data_ptr<scalar_t>();
        const auto* const from = gradient.const_data_ptr<scalar_t>();
        dispatch_warp(displacement, layout, padding_mode,
                      [&](const auto& field, auto padding, auto index) {
                        using T = std::decay_t<decltype(*field.data)>;
                        backward_displacement<padding(), decltype(index)>(
                            from, source, field, layout,
                            output.mutable_data_ptr<T>());
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
