// Warp, backward. By the image: a scatter, the adjoint of the gather. Threads
// that are neighbours read neighbouring gradients, and in smooth fields send
// them to neighbours: the memory system takes the atomics of a warp in few
// transactions. By the displacement: a gather.
#include "accumulate.cuh"
#include "spline.cuh"

namespace tcwarp::cuda {
namespace {

// W neighbouring channels at a time. With whole_only, what a cubic warp copies.
template <int D, int W, bool whole_only, typename V, typename T, typename Sums>
__global__ void backward_nearest_kernel(
    WarpWork<D, T> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    Sums sums) {                     // (N, C, *size)
  using S = SumOf<V>;
  for_each_item<1>(work, [&](int64_t n, int64_t first, int64_t last,
                             int64_t pixel) {
    const PixelWork<D, T> at(work, n, pixel);
    const int64_t index = source_of(work, at.displacement, at.position);
    if (index < 0 || (whole_only && !is_whole(at.displacement))) return;
    const int64_t sample = n * work.channels * work.pixels;
    const V* const source = gradient + sample + pixel * work.pixel_stride;
    const int64_t target = sample + index * work.pixel_stride;
#pragma unroll 4
    for (int64_t c = first; c < last; c += W) {
      const int64_t plane = c * work.channel_stride;
      const auto read = *reinterpret_cast<const Pack<V, W>*>(source + plane);
      S values[W];
#pragma unroll
      for (int w = 0; w < W; ++w) values[w] = static_cast<S>(read.value[w]);
      sums.add(target + plane, values);
    }
  });
}

template <Mode mode, int D, int W, typename V, typename T, typename Sums>
__global__ void backward_interpolated_kernel(
    WarpWork<D, T> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    Sums sums) {                     // (N, C, *size)
  using S = SumOf<V>;
  for_each_item<1>(work, [&](int64_t n, int64_t first, int64_t last,
                             int64_t pixel) {
    const PixelWork<D, T> at(work, n, pixel);
    if (mode == Mode::kCubic && is_whole(at.displacement)) return;
    const Taps<mode, D, T> taps(work, at, -1);
    const int64_t sample = n * work.channels * work.pixels;
    const V* const source = gradient + sample + pixel * work.pixel_stride;
    for (int64_t c = first; c < last; c += W) {
      const int64_t plane = c * work.channel_stride;
      const auto read = *reinterpret_cast<const Pack<V, W>*>(source + plane);
      taps.for_each_corner([&](int64_t offset, T weight) {
        S values[W];
#pragma unroll
        for (int w = 0; w < W; ++w) {
          values[w] = static_cast<S>(weight) * static_cast<S>(read.value[w]);
        }
        sums.add(sample + plane + offset, values);
      });
    }
  });
}

// One thread per pixel sums over all channels: no atomics, one order, and the
// precision of the wider of image and displacement.
template <Mode mode, int D, typename V, typename S, typename T>
__global__ void backward_displacement_kernel(
    WarpWork<D, T> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    const S* __restrict__ values,    // (N, C, *size)
    T* __restrict__ output) {        // (N, D, *size)
  using Sum = std::conditional_t<std::is_same_v<S, double>, double, T>;
  const int64_t pixel = thread_index();
  if (pixel >= work.pixels) return;
  for (int64_t n = blockIdx.z; n < work.samples; n += gridDim.z) {
    const PixelWork<D, T> at(work, n, pixel);
    const int64_t sample = n * work.channels * work.pixels;
    const V* const from = gradient + sample + pixel * work.pixel_stride;
    const S* const source = values + sample;
    for (int axis = 0; axis < D; ++axis) {
      const Taps<mode, D, T> taps(work, at, axis);
      Sum sum = 0;
#pragma unroll 2
      for (int64_t c = 0; c < work.channels; ++c) {
        const int64_t plane = c * work.channel_stride;
        Sum slope = 0;
        taps.for_each_corner([&](int64_t offset, T weight) {
          slope += static_cast<Sum>(weight) *
                   static_cast<Sum>(source[plane + offset]);
        });
        sum += slope * static_cast<Sum>(from[plane]);
      }
      output[(n * D + axis) * work.pixels + pixel] = static_cast<T>(sum);
    }
  }
}

// Calls scatter(sums) with the accumulator that was asked for; what it adds up
// is added to `target`.
template <typename V, typename Scatter>
void accumulate(const Tensor& gradient, int64_t pixels, bool deterministic,
                SumOf<V>* target, const Scatter& scatter) {
  using S = SumOf<V>;
  if (!deterministic) {
    scatter(Plain<S>{target});
    return;
  }
  using Sums = Fixed<S>;
  const int64_t count = gradient.numel();
  Tensor buffer =
      torch::stable::empty({Sums::kLimbs * count + 1}, ScalarType::Long,
                           std::nullopt, gradient.device());
  torch::stable::zero_(buffer);
  auto* const limbs =
      static_cast<typename Sums::Limb*>(buffer.mutable_data_ptr());
  auto* const largest = limbs + Sums::kLimbs * count;
  launch(gradient, blocks_for(std::min<int64_t>(count, kEnough / 8)), kThreads,
         largest_kernel<V>, count, gradient.const_data_ptr<V>(), largest);
  const Sums sums{target, limbs, count, largest, Sums::bits_for(pixels)};
  scatter(sums);
  launch(gradient, blocks_for(count), kThreads, store_fixed_kernel<S>, sums);
}

template <typename V>
void run_backward_input(const Tensor& gradient, const Tensor& displacement,
                        Mode mode, int64_t padding_mode, bool deterministic,
                        Tensor& output) {
  using S = SumOf<V>;
  constexpr bool in_place = std::is_same_v<V, S>;
  const Layout layout = layout_of(gradient);
  const V* const source = gradient.const_data_ptr<V>();
  // Half precision is summed in float32.
  Tensor buffer = in_place ? output : coefficient_buffer<S>(output);
  torch::stable::zero_(buffer);
  S* const target = buffer.mutable_data_ptr<S>();
  dispatch_field(displacement, [&](const auto& field) {
    constexpr int D = std::decay_t<decltype(field)>::kDimensions;
    using T = typename std::decay_t<decltype(field)>::Scalar;
    const auto with = [&](const auto& body) {
      accumulate<V>(gradient, layout.pixels, deterministic, target, body);
    };
    const auto run = [&](auto kernel, int64_t pack, const auto& sums) {
      const WarpWork<D, T> work(field, layout, padding_mode,
                                channel_groups(layout, pack));
      launch(output, work.blocks(), kThreads, kernel, work, source, sums);
    };
    const int64_t pack = channel_pack(layout, source, target, sizeof(V));
    const auto nearest = [&](auto whole_only, const auto& sums) {
      using Sums = std::decay_t<decltype(sums)>;
      constexpr bool only = decltype(whole_only)::value;
      if constexpr (std::is_same_v<V, float> && !only &&
                    std::is_same_v<Sums, Plain<float>>) {
        if (pack == 4) {
          return run(backward_nearest_kernel<D, 4, only, V, T, Sums>, 4, sums);
        } else if (pack == 2) {
          return run(backward_nearest_kernel<D, 2, only, V, T, Sums>, 2, sums);
        }
      }
      run(backward_nearest_kernel<D, 1, only, V, T, Sums>, 1, sums);
    };
    switch (mode) {
      case Mode::kNearest:
        return with(
            [&](const auto& sums) { nearest(std::false_type{}, sums); });
      case Mode::kLinear:
        return with([&](const auto& sums) {
          using Sums = std::decay_t<decltype(sums)>;
          if constexpr (std::is_same_v<V, float> && D == 2 &&
                        std::is_same_v<Sums, Plain<float>>) {
            if (pack == 4) {
              return run(
                  backward_interpolated_kernel<Mode::kLinear, D, 4, V, T, Sums>,
                  4, sums);
            } else if (pack == 2) {
              return run(
                  backward_interpolated_kernel<Mode::kLinear, D, 2, V, T, Sums>,
                  2, sums);
            }
          }
          run(backward_interpolated_kernel<Mode::kLinear, D, 1, V, T, Sums>, 1,
              sums);
        });
      case Mode::kCubic:
        // The gradient by the coefficients, then through the filter that made
        // them; what was copied goes straight back.
        with([&](const auto& sums) {
          using Sums = std::decay_t<decltype(sums)>;
          run(backward_interpolated_kernel<Mode::kCubic, D, 1, V, T, Sums>, 1,
              sums);
        });
        spline_filter(output, static_cast<const S*>(target), target, layout,
                      field.size, static_cast<Padding>(padding_mode), true);
        with([&](const auto& sums) { nearest(std::true_type{}, sums); });
    }
  });
  if constexpr (!in_place) {
    const int64_t count = output.numel();
    launch(output, blocks_for(count), kThreads, convert_kernel<S, V>, count,
           static_cast<const S*>(target), output.mutable_data_ptr<V>());
  }
}

template <Mode mode, typename V, typename S>
void run_backward_displacement(const Tensor& gradient, const Tensor& input,
                               const S* values, const Tensor& displacement,
                               int64_t padding_mode, Tensor& output) {
  const Layout layout = layout_of(input);
  const V* const from = gradient.const_data_ptr<V>();
  dispatch_field(displacement, [&](const auto& field) {
    constexpr int D = std::decay_t<decltype(field)>::kDimensions;
    using T = typename std::decay_t<decltype(field)>::Scalar;
    const WarpWork<D, T> work(field, layout, padding_mode, 1);
    launch(output, blocks_for(work.pixels, 1, work.samples), kThreads,
           backward_displacement_kernel<mode, D, V, S, T>, work, from, values,
           output.mutable_data_ptr<T>());
  });
}

}  // namespace

Tensor warp_backward_input(const Tensor& gradient_, const Tensor& displacement_,
                           int64_t mode, int64_t padding_mode,
                           bool deterministic) {
  const Tensor gradient = dense(gradient_);
  const Tensor displacement = wide(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(
      gradient.get_device_index());
  Tensor output = torch::stable::empty_like(gradient);
  if (output.numel() == 0) return output;
  THO_DISPATCH_V2(gradient.scalar_type(), "warp_backward_input", AT_WRAP(([&] {
                    run_backward_input<scalar_t>(
                        gradient, displacement, static_cast<Mode>(mode),
                        padding_mode, deterministic, output);
                  })),
                  AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

Tensor warp_backward_displacement(const Tensor& gradient_, const Tensor& input_,
                                  const Tensor& displacement_, int64_t mode,
                                  int64_t padding_mode) {
  STD_TORCH_CHECK(static_cast<Mode>(mode) != Mode::kNearest,
                  "warp_backward_displacement: mode nearest has no gradient");
  const Tensor input = dense(input_);
  const Tensor displacement = wide(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor gradient = with_layout_of(gradient_, input);
  Tensor output = torch::stable::empty_like(displacement);
  if (output.numel() == 0) {
    return torch::stable::to(output, displacement_.scalar_type());
  }
  if (input.numel() == 0) {  // no channels: nothing to launch a kernel for
    torch::stable::zero_(output);
    return torch::stable::to(output, displacement_.scalar_type());
  }
  THO_DISPATCH_V2(
      input.scalar_type(), "warp_backward_displacement", AT_WRAP(([&] {
        const auto* const source = input.const_data_ptr<scalar_t>();
        if (static_cast<Mode>(mode) == Mode::kLinear) {
          return run_backward_displacement<Mode::kLinear, scalar_t>(
              gradient, input, source, displacement, padding_mode, output);
        }
        using S = SumOf<scalar_t>;
        Tensor buffer = coefficient_buffer<S>(input);
        S* const coefficients = buffer.mutable_data_ptr<S>();
        dispatch_field(displacement, [&](const auto& field) {
          spline_filter(output, source, coefficients, layout_of(input),
                        field.size, static_cast<Padding>(padding_mode), false);
        });
        run_backward_displacement<Mode::kCubic, scalar_t>(
            gradient, input, static_cast<const S*>(coefficients), displacement,
            padding_mode, output);
      })),
      AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return torch::stable::to(output, displacement_.scalar_type());
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("warp_backward_input", TORCH_BOX(&tcwarp::cuda::warp_backward_input));
  m.impl("warp_backward_displacement",
         TORCH_BOX(&tcwarp::cuda::warp_backward_displacement));
}
