// Coefficients of random fields: standard normals of the cosine modes.
#include "../shared/philox.h"

#include "common.cuh"

namespace tcwarp::cuda {
namespace {

struct CoefficientWork {
  const int64_t* seed;  // (1), read on the device: drawing never waits
  int64_t first;        // plane
  int64_t count;        // planes * depth * height * width
  int64_t depth, height, width;
  int dimensions;
  double identity_probability;
};

__global__ void coefficients_kernel(CoefficientWork work,
                                    double* __restrict__ output) {
  const int64_t thread = thread_index();
  if (thread >= work.count) return;
  const auto kx = static_cast<uint32_t>(thread % work.width);
  const auto ky = static_cast<uint32_t>(thread / work.width % work.height);
  const int64_t rest = thread / (work.width * work.height);
  const auto kz = static_cast<uint32_t>(rest % work.depth);
  const int64_t plane = work.first + rest / work.depth;
  const auto sample = static_cast<uint32_t>(plane / work.dimensions);
  const int component = static_cast<int>(plane % work.dimensions);
  output[thread] =
      draws_identity(*work.seed, sample, work.identity_probability)
          ? 0.0
          : field_normal(*work.seed, sample, kz, ky, kx, component);
}

}  // namespace

Tensor field_coefficients(const Tensor& seed, int64_t first, int64_t planes,
                          std::vector<int64_t> modes,
                          double identity_probability) {
  const torch::stable::accelerator::DeviceGuard guard(seed.get_device_index());
  Tensor output =
      torch::stable::empty(coefficient_shape(planes, modes), ScalarType::Double,
                           std::nullopt, seed.device());
  if (output.numel() == 0) return output;
  const size_t last = modes.size() - 1;
  const CoefficientWork work{seed.const_data_ptr<int64_t>(),
                             first,
                             output.numel(),
                             modes.size() == 3 ? modes[0] : 1,
                             modes[last - 1],
                             modes[last],
                             static_cast<int>(modes.size()),
                             identity_probability};
  launch(output, blocks_for(work.count), kThreads, coefficients_kernel, work,
         output.mutable_data_ptr<double>());
  return output;
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("field_coefficients", TORCH_BOX(&tcwarp::cuda::field_coefficients));
}
