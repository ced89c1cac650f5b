// The displacement of t2 o t1^-1, one fixed point per pixel.
#include <mutex>
#include <tuple>

#include "../shared/invert.h"

#include "common.h"

namespace tcwarp::cpu {
namespace {

template <int D, typename V, typename T>
TCWARP_MULTIVERSION void align_run(const Run<D, T>& run, const V* field,
                                   const V* second, int64_t pixels, T tolerance,
                                   int steps, V* output, Report<T>& report) {
  Equation<D, V, T> equation{field, overall<D, T>(field, run.image_size)};
  for (int k = 0; k < D; ++k) equation.size[k] = run.image_size[k];
  for (int64_t i = 0; i < run.count; ++i) {
    T offset[D];
    for (int k = 0; k < D; ++k) {
      equation.at[k] =
          run.position[k] + (k == D - 1 ? static_cast<int32_t>(i) : 0);
      equation.target[k] =
          second == nullptr ? T(0) : static_cast<T>(second[k * pixels + i]);
    }
    solve_offset(equation, tolerance, steps, offset, report);
    for (int k = 0; k < D; ++k) {
      output[k * pixels + i] = static_cast<V>(offset[k]);
    }
  }
}

// `grid` are the pixels that are solved for, first the field that is inverted.
template <typename V, int D, typename T>
Report<T> align_fields(const Field<D, T>& grid, const V* first, bool is_shared,
                       const V* second, int64_t samples, T tolerance, int steps,
                       V* output) {
  std::mutex mutex;
  Report<T> whole;
  const Layout layout{samples, D, grid.pixels, 1, grid.pixels};
  constexpr int64_t work = 256;  // about that of so many copied values
  parallel_over_tiles(
      layout, kLinearTile, work, [&](int64_t n, int64_t begin, int64_t end) {
        const V* const field =
            first + (is_shared ? 0 : n * D * grid.image_pixels);
        Report<T> report;
        for_each_run(grid, n, begin, end, [&](const Run<D, T>& run) {
          const int64_t at = layout.sample_offset(n) + run.first;
          align_run<D>(run, field, second == nullptr ? nullptr : second + at,
                       grid.pixels, tolerance, steps, output + at, report);
        });
        const std::lock_guard<std::mutex> lock(mutex);
        whole.add(report);
      });
  return whole;
}

}  // namespace

std::tuple<Tensor, Tensor> align(const Tensor& first_,
                                 const std::optional<Tensor>& second_,
                                 double tolerance, int64_t steps) {
  const Tensor first = as_contiguous(first_);
  const Tensor grid = second_ ? as_contiguous(*second_) : first;
  Tensor output = empty_as(grid);
  Tensor report = torch::stable::empty({2}, ScalarType::Double);
  torch::stable::zero_(report);
  if (output.numel() == 0) return {output, report};
  const auto solve = [&](const auto& field, auto value) {
    using V = decltype(value);
    using T = typename std::decay_t<decltype(field)>::Scalar;
    const Report<T> whole =
        align_fields(field, first.const_data_ptr<V>(), first.size(0) == 1,
                     second_ ? grid.const_data_ptr<V>() : nullptr, grid.size(0),
                     static_cast<T>(tolerance), static_cast<int>(steps),
                     output.mutable_data_ptr<V>());
    report.mutable_data_ptr<double>()[0] = whole.residual;
    report.mutable_data_ptr<double>()[1] = whole.fold;
  };
  dispatch_stored(grid, spatial_size(first), solve);
  return {output, report};
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("align", TCWARP_BOX(tcwarp::cpu::align));
}
