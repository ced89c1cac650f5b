// Coefficients of random fields: standard normals of the cosine modes.
#include "../shared/philox.h"
#include "common.h"

namespace tcwarp::cpu {
namespace {

// Modes that are drawn side by side, always as many: a number does not depend
// on its neighbours.
constexpr int kFew = 16;

struct FewNormals {
  double component[3][kFew];
};

// The normals of modes kx, kx + 1, ... of one row. Those of the first two
// components share words and radius.
TCWARP_MULTIVERSION void draw_few(int64_t seed, uint32_t sample, uint32_t kz,
                                  uint32_t ky, uint32_t kx, bool two,
                                  bool third, FewNormals& normals) {
  uint32_t word[4][kFew];
  for (int i = 0; i < kFew; ++i) {
    const Words4 words = mode_words(seed, sample, kz, ky, kx + i);
    TCWARP_UNROLL
    for (int k = 0; k < 4; ++k) word[k][i] = words.word[k];
  }
  if (two) {
    for (int i = 0; i < kFew; ++i) {
      const double radius = normal_radius(word[0][i]);
      normals.component[0][i] =
          radius * sine_of_turn(word[1][i] + kQuarterTurn);
      normals.component[1][i] = radius * sine_of_turn(word[1][i]);
    }
  }
  if (third) {
    for (int i = 0; i < kFew; ++i) {
      normals.component[2][i] =
          normal_radius(word[2][i]) * sine_of_turn(word[3][i] + kQuarterTurn);
    }
  }
}

}  // namespace

Tensor field_coefficients(const Tensor& seed, int64_t first, int64_t planes,
                          std::vector<int64_t> modes,
                          double identity_probability) {
  Tensor output = torch::stable::empty(coefficient_shape(planes, modes),
                                       ScalarType::Double);
  if (output.numel() == 0) return output;
  const int64_t key = *seed.const_data_ptr<int64_t>();
  double* const target = output.mutable_data_ptr<double>();
  const auto dimensions = static_cast<int64_t>(modes.size());
  const int64_t width = modes[dimensions - 1], height = modes[dimensions - 2];
  const int64_t rows = output.numel() / planes / width;
  const int64_t first_sample = first / dimensions;
  const int64_t samples = (first + planes - 1) / dimensions + 1 - first_sample;
  torch::stable::parallel_for(
      0, samples * rows, std::max<int64_t>(1, 2048 / width),
      [&](int64_t begin, int64_t end) {
        FewNormals normals;
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task % rows, n = first_sample + task / rows;
          const auto sample = static_cast<uint32_t>(n);
          const bool identity =
              draws_identity(key, sample, identity_probability);
          // The components of this sample that are asked for.
          const int64_t before = first - n * dimensions;
          const int64_t low = std::max<int64_t>(before, 0);
          const int64_t high = std::min(before + planes, dimensions);
          for (int64_t kx = 0; kx < width; kx += kFew) {
            const int64_t count = std::min<int64_t>(kFew, width - kx);
            if (!identity) {
              draw_few(key, sample, static_cast<uint32_t>(row / height),
                       static_cast<uint32_t>(row % height),
                       static_cast<uint32_t>(kx), low < 2, high > 2, normals);
            }
            for (int64_t k = low; k < high; ++k) {
              double* const to =
                  target + ((k - before) * rows + row) * width + kx;
              if (identity) {
                std::fill_n(to, count, 0.0);
              } else {
                std::copy_n(normals.component[k], count, to);
              }
            }
          }
        }
      });
  return output;
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("field_coefficients", TCWARP_BOX(tcwarp::cpu::field_coefficients));
}
