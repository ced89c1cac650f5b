// The displacement of t2 o t1^-1, one fixed point per thread.
#include <tuple>

#include "../shared/invert.h"

#include "common.cuh"

namespace tcwarp::cuda {
namespace {

template <int D, typename V, typename T, typename I>
__global__ void align_kernel(WarpWork<D, T, I> work,
                             const V* __restrict__ first,   // (N, D, *image)
                             int64_t first_stride,          // 0: one for all
                             const V* __restrict__ second,  // (N, D, *size)
                             T tolerance, int steps,
                             V* __restrict__ output,       // (N, D, *size)
                             unsigned long long* found) {  // (2), zeroed
  Report<T> report;
  for_each_item<1, 1>(work, [&](int64_t n, I, I pixel) {
    if (pixel >= work.pixels) return;
    const int64_t sample = n * D * work.pixels;
    T offset[D];
    const V* const field = first + n * first_stride;
    Equation<D, V, T> equation{field, overall<D, T>(field, work.image_size)};
    position_of(work, pixel, equation.at);
    for (int k = 0; k < D; ++k) {
      const int64_t place = sample + k * work.pixels + pixel;
      equation.size[k] = work.image_size[k];
      equation.target[k] =
          second == nullptr ? T(0) : static_cast<T>(second[place]);
    }
    solve_offset(equation, tolerance, steps, offset, report);
    for (int k = 0; k < D; ++k) {
      output[sample + k * work.pixels + pixel] = static_cast<V>(offset[k]);
    }
  });
  raise(found, report.residual);
  raise(found + 1, report.fold);
}

}  // namespace

std::tuple<Tensor, Tensor> align(const Tensor& first_,
                                 const std::optional<Tensor>& second_,
                                 double tolerance, int64_t steps) {
  const Tensor first = as_contiguous(first_);
  const Tensor grid = second_ ? as_contiguous(*second_) : first;
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  Tensor output = empty_as(grid);
  Tensor report = torch::stable::empty({2}, ScalarType::Double, std::nullopt,
                                       first.device());
  torch::stable::zero_(report);
  if (output.numel() == 0) return {output, report};
  dispatch_stored(
      grid, spatial_size(first), [&](const auto& field, auto value) {
        constexpr int D = std::decay_t<decltype(field)>::kDimensions;
        using T = typename std::decay_t<decltype(field)>::Scalar;
        using V = decltype(value);
        const WarpWork<D, T, int64_t> work(field, layout_of(grid), 0, 1);
        const V* const target = second_ ? grid.const_data_ptr<V>() : nullptr;
        const int64_t stride = first.size(0) == 1 ? 0 : D * field.image_pixels;
        launch(output, work.blocks(), kThreads, align_kernel<D, V, T, int64_t>,
               work, first.const_data_ptr<V>(), stride, target,
               static_cast<T>(tolerance), static_cast<int>(steps),
               output.mutable_data_ptr<V>(),
               reinterpret_cast<unsigned long long*>(
                   report.mutable_data_ptr<double>()));
      });
  return {output, report};
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("align", TCWARP_BOX(tcwarp::cuda::align));
}
