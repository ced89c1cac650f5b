// Warp, forward: a gather.
#include "common.cuh"

namespace tcwarp::cuda {
namespace {

template <int D, typename V, typename T>
__global__ void warp_nearest_kernel(WarpWork<D, T> work,
                                    const V* __restrict__ input,  // (N, C, *)
                                    V* __restrict__ output) {     // (N, C, *)
  const int64_t thread = thread_index();
  if (thread >= work.threads) return;
  const PixelWork<D, T> at(work, thread);
  const int64_t index = source_of(work, at);
  const int64_t sample = at.sample * work.channels * work.pixels;
  const V* const source = input + sample + index * work.pixel_stride;
  V* const target = output + sample + at.pixel * work.pixel_stride;
#pragma unroll 4
  for (int64_t c = at.first; c < at.last; ++c) {
    const int64_t plane = c * work.channel_stride;
    target[plane] = index < 0 ? V{} : source[plane];
  }
}

template <int D, typename V, typename T>
__global__ void warp_linear_kernel(WarpWork<D, T> work,
                                   const V* __restrict__ input,  // (N, C, *)
                                   V* __restrict__ output) {     // (N, C, *)
  using Sum = std::conditional_t<std::is_same_v<V, double>, double, T>;
  const int64_t thread = thread_index();
  if (thread >= work.threads) return;
  const PixelWork<D, T> at(work, thread);
  const Taps<D, T> taps(work, at, -1);
  T used = 0;
  for (int t = 0; t < taps.kCount; ++t) used += taps.weight[t];
  // -0 is neutral for every sum: a displacement of 0 returns -0 as -0.
  const Sum initial = used > 0 ? Sum(-0.0) : Sum(0);
  const int64_t sample = at.sample * work.channels * work.pixels;
  const V* const source = input + sample;
  V* const target = output + sample + at.pixel * work.pixel_stride;
#pragma unroll 2
  for (int64_t c = at.first; c < at.last; ++c) {
    const int64_t plane = c * work.channel_stride;
    Sum sum = initial;
#pragma unroll
    for (int t = 0; t < taps.kCount; ++t) {
      if (taps.weight[t] == 0) continue;
      sum += static_cast<Sum>(taps.weight[t]) *
             static_cast<Sum>(source[plane + taps.offset[t]]);
    }
    target[plane] = static_cast<V>(sum);
  }
}

template <typename V>
void run_nearest(const Tensor& input, const Tensor& displacement,
                 int64_t padding_mode, Tensor& output) {
  const Layout layout = layout_of(input);
  const auto* const source = static_cast<const V*>(input.const_data_ptr());
  auto* const target = static_cast<V*>(output.mutable_data_ptr());
  dispatch_field(displacement, [&](const auto& field) {
    using F = std::decay_t<decltype(field)>;
    const WarpWork<F::kDimensions, typename F::Scalar> work(
        field, layout, channel_groups(layout), padding_mode);
    launch(output, work.threads,
           warp_nearest_kernel<F::kDimensions, V, typename F::Scalar>, work,
           source, target);
  });
}

template <typename V>
void run_linear(const Tensor& input, const Tensor& displacement,
                int64_t padding_mode, Tensor& output) {
  const Layout layout = layout_of(input);
  const V* const source = input.const_data_ptr<V>();
  V* const target = output.mutable_data_ptr<V>();
  dispatch_field(displacement, [&](const auto& field) {
    using F = std::decay_t<decltype(field)>;
    const WarpWork<F::kDimensions, typename F::Scalar> work(
        field, layout, channel_groups(layout), padding_mode);
    launch(output, work.threads,
           warp_linear_kernel<F::kDimensions, V, typename F::Scalar>, work,
           source, target);
  });
}

}  // namespace

Tensor warp(const Tensor& input_, const Tensor& displacement_, int64_t mode,
            int64_t padding_mode) {
  const Tensor input = dense(input_);
  const Tensor displacement = torch::stable::contiguous(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor output = torch::stable::empty_like(input);
  if (output.numel() == 0) return output;
  if (static_cast<Mode>(mode) == Mode::kNearest) {
    dispatch_width(input, [&](auto bits) {
      run_nearest<decltype(bits)>(input, displacement, padding_mode, output);
    });
    return output;
  }
  THO_DISPATCH_V2(input.scalar_type(), "warp", AT_WRAP(([&] {
                    run_linear<scalar_t>(input, displacement, padding_mode,
                                         output);
                  })),
                  AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("warp", TORCH_BOX(&tcwarp::cuda::warp));
}
