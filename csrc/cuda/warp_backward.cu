// Warp, backward. By the image: a scatter with atomic adds, the adjoint of the
// gather. By the displacement: a gather.
#include "common.cuh"

namespace tcwarp::cuda {
namespace {

// torch's half types carry no atomics; CUDA's, of the same bits, do.
__device__ inline void add(float* target, float value) {
  atomicAdd(target, value);
}
__device__ inline void add(double* target, double value) {
  atomicAdd(target, value);
}
__device__ inline void add(torch::headeronly::Half* target, float value) {
  atomicAdd(reinterpret_cast<__half*>(target), __float2half(value));
}
__device__ inline void add(torch::headeronly::BFloat16* target, float value) {
  atomicAdd(reinterpret_cast<__nv_bfloat16*>(target), __float2bfloat16(value));
}

template <int D, typename V, typename T>
__global__ void backward_nearest_kernel(
    WarpWork<D, T> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    V* __restrict__ output) {        // (N, C, *size), zeroed
  const int64_t thread = thread_index();
  if (thread >= work.threads) return;
  const PixelWork<D, T> at(work, thread);
  const int64_t index = source_of(work, at);
  if (index < 0) return;
  const int64_t sample = at.sample * work.channels * work.pixels;
  const V* const source = gradient + sample + at.pixel * work.pixel_stride;
  V* const target = output + sample + index * work.pixel_stride;
#pragma unroll 4
  for (int64_t c = at.first; c < at.last; ++c) {
    const int64_t plane = c * work.channel_stride;
    add(target + plane, source[plane]);
  }
}

template <int D, typename V, typename T>
__global__ void backward_linear_kernel(
    WarpWork<D, T> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    V* __restrict__ output) {        // (N, C, *size), zeroed
  using Sum = std::conditional_t<std::is_same_v<V, double>, double, T>;
  const int64_t thread = thread_index();
  if (thread >= work.threads) return;
  const PixelWork<D, T> at(work, thread);
  const Taps<D, T> taps(work, at, -1);
  const int64_t sample = at.sample * work.channels * work.pixels;
  const V* const source = gradient + sample + at.pixel * work.pixel_stride;
  V* const target = output + sample;
  for (int64_t c = at.first; c < at.last; ++c) {
    const int64_t plane = c * work.channel_stride;
    const Sum value = static_cast<Sum>(source[plane]);
#pragma unroll
    for (int t = 0; t < taps.kCount; ++t) {
      if (taps.weight[t] == 0) continue;
      add(target + plane + taps.offset[t],
          static_cast<Sum>(taps.weight[t]) * value);
    }
  }
}

// One thread per pixel sums over all channels: no atomics, one order.
template <int D, typename V, typename T>
__global__ void backward_displacement_kernel(
    WarpWork<D, T> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    const V* __restrict__ input,     // (N, C, *size)
    T* __restrict__ output) {        // (N, D, *size)
  const int64_t thread = thread_index();
  if (thread >= work.threads) return;
  const PixelWork<D, T> at(work, thread);
  const int64_t sample = at.sample * work.channels * work.pixels;
  const V* const from = gradient + sample + at.pixel * work.pixel_stride;
  const V* const source = input + sample;
  for (int axis = 0; axis < D; ++axis) {
    const Taps<D, T> taps(work, at, axis);
    T sum = 0;
    for (int64_t c = at.first; c < at.last; ++c) {
      const int64_t plane = c * work.channel_stride;
      T slope = 0;
#pragma unroll
      for (int t = 0; t < taps.kCount; ++t) {
        if (taps.weight[t] == 0) continue;
        slope +=
            taps.weight[t] * static_cast<T>(source[plane + taps.offset[t]]);
      }
      sum += slope * static_cast<T>(from[plane]);
    }
    output[(at.sample * D + axis) * work.pixels + at.pixel] = sum;
  }
}

}  // namespace

Tensor warp_backward_input(const Tensor& gradient_, const Tensor& displacement_,
                           int64_t mode, int64_t padding_mode) {
  const Tensor gradient = dense(gradient_);
  const Tensor displacement = torch::stable::contiguous(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(
      gradient.get_device_index());
  Tensor output = torch::stable::empty_like(gradient);
  if (output.numel() == 0) return output;
  torch::stable::zero_(output);
  const Layout layout = layout_of(gradient);
  THO_DISPATCH_V2(
      gradient.scalar_type(), "warp_backward_input", AT_WRAP(([&] {
        const auto* const source = gradient.const_data_ptr<scalar_t>();
        auto* const target = output.mutable_data_ptr<scalar_t>();
        dispatch_field(displacement, [&](const auto& field) {
          using F = std::decay_t<decltype(field)>;
          using T = typename F::Scalar;
          constexpr int D = F::kDimensions;
          const WarpWork<D, T> work(field, layout, channel_groups(layout),
                                    padding_mode);
          const auto kernel = static_cast<Mode>(mode) == Mode::kNearest
                                  ? backward_nearest_kernel<D, scalar_t, T>
                                  : backward_linear_kernel<D, scalar_t, T>;
          launch(output, work.threads, kernel, work, source, target);
        });
      })),
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
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor gradient = with_layout_of(gradient_, input);
  Tensor output = torch::stable::empty_like(displacement);
  if (output.numel() == 0) return output;
  const Layout layout = layout_of(input);
  THO_DISPATCH_V2(
      input.scalar_type(), "warp_backward_displacement", AT_WRAP(([&] {
        const auto* const source = input.const_data_ptr<scalar_t>();
        const auto* const from = gradient.const_data_ptr<scalar_t>();
        dispatch_field(displacement, [&](const auto& field) {
          using F = std::decay_t<decltype(field)>;
          using T = typename F::Scalar;
          const WarpWork<F::kDimensions, T> work(field, layout, 1,
                                                 padding_mode);
          launch(output, work.threads,
                 backward_displacement_kernel<F::kDimensions, scalar_t, T>,
                 work, from, source, output.mutable_data_ptr<T>());
        });
      })),
      AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("warp_backward_input", TORCH_BOX(&tcwarp::cuda::warp_backward_input));
  m.impl("warp_backward_displacement",
         TORCH_BOX(&tcwarp::cuda::warp_backward_displacement));
}
