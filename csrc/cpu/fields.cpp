// Coefficients of random fields: standard normals of the cosine modes.
#include "../shared/philox.h"
#include "common.h"

namespace tcwarp::cpu {

Tensor field_coefficients(const Tensor& seed, int64_t first, int64_t planes,
                          std::vector<int64_t> modes,
                          double identity_probability) {
  Tensor output = torch::stable::empty(coefficient_shape(planes, modes),
                                       ScalarType::Double);
  if (output.numel() == 0) return output;
  const int64_t key = *seed.const_data_ptr<int64_t>();
  double* const normals = output.mutable_data_ptr<double>();
  const auto dimensions = static_cast<int64_t>(modes.size());
  const int64_t width = modes[dimensions - 1], height = modes[dimensions - 2];
  const int64_t depth = dimensions == 3 ? modes[0] : 1;
  torch::stable::parallel_for(
      0, planes * depth * height, std::max<int64_t>(1, 2048 / width),
      [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const auto ky = static_cast<uint32_t>(row % height);
          const auto kz = static_cast<uint32_t>(row / height % depth);
          const int64_t plane = first + row / height / depth;
          const auto sample = static_cast<uint32_t>(plane / dimensions);
          const auto component = static_cast<int>(plane % dimensions);
          const bool identity =
              draws_identity(key, sample, identity_probability);
          for (int64_t i = 0; i < width; ++i) {
            normals[row * width + i] =
                identity ? 0.0
                         : field_normal(key, sample, kz, ky,
                                        static_cast<uint32_t>(i), component);
          }
        }
      });
  return output;
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("field_coefficients", TCWARP_BOX(tcwarp::cpu::field_coefficients));
}
