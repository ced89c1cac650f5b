// Coefficients of random fields: standard normals of the cosine modes.
#include "../shared/philox.h"
#include "common.h"

namespace tcwarp::cpu {

Tensor field_coefficients(const Tensor& seed, int64_t batch,
                          std::vector<int64_t> modes,
                          double identity_probability) {
  const int64_t dimensions = static_cast<int64_t>(modes.size());
  Tensor output =
      torch::stable::empty(coefficient_shape(batch, modes), ScalarType::Double);
  if (output.numel() == 0) return output;
  const int64_t key = *seed.const_data_ptr<int64_t>();
  double* const normals = output.mutable_data_ptr<double>();
  const int64_t pixels = output.numel() / (batch * dimensions);
  const int64_t width = modes.back();
  const int64_t height = modes[dimensions - 2];
  torch::stable::parallel_for(
      0, batch * dimensions, std::max<int64_t>(1, 2048 / pixels),
      [&](int64_t begin, int64_t end) {
        for (int64_t plane = begin; plane < end; ++plane) {
          const auto sample = static_cast<uint32_t>(plane / dimensions);
          const int component = static_cast<int>(plane % dimensions);
          const bool identity =
              draws_identity(key, sample, identity_probability);
          for (int64_t i = 0; i < pixels; ++i) {
            normals[plane * pixels + i] =
                identity
                    ? 0.0
                    : field_normal(key, sample,
                                   static_cast<uint32_t>(i / width / height),
                                   static_cast<uint32_t>(i / width % height),
                                   static_cast<uint32_t>(i % width), component);
          }
        }
      });
  return output;
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("field_coefficients", TORCH_BOX(&tcwarp::cpu::field_coefficients));
}
