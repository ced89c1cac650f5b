// Random fields: standard normals of the cosine modes, and the sum of the
// modes.
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
          : normal(mode_words(*work.seed, sample, kz, ky, kx), component);
}

constexpr int kFieldRows = 64;     // that a block writes of a plane
constexpr int kMostModes = 24;     // along the last axis but one
constexpr int kFieldColumns = 64;  // along the last axis, at most

template <typename T>
struct SumWork {
  const double* coefficients;  // (planes, ky, kx)
  const T* rows;               // (height, ky)
  const T* columns;            // (kx, width)
  double scale;
  int64_t planes, height, width;
  int ky, kx;
  int lanes;       // threads along a row, the others take other rows
  unsigned parts;  // of a row, each a block's
};

// scale * rows @ coefficients @ columns of each plane. A thread sums over kx
// once for its P columns, then over ky for row after row: what the result costs
// is K multiplications a pixel, and writing it. K: at least ky.
template <int K, typename T, typename V>
__global__ void sum_modes_kernel(SumWork<T> work,
                                 V* __restrict__ output) {  // (planes, h, w)
  constexpr int P = 4;
  alignas(16) __shared__ T modes[K][kFieldColumns];
  alignas(16) __shared__ T rows[kFieldRows][K];
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % work.lanes, team = thread / work.lanes;
  const int teams = kThreads / work.lanes;
  // Neighbouring columns where they can be stored at once.
  const bool packs = work.width % P == 0;
  const int step = packs ? 1 : work.lanes;
  const int64_t column =
      static_cast<int64_t>(blockIdx.x % work.parts) * work.lanes * P +
      (packs ? lane * P : lane);
  const int64_t begin =
      static_cast<int64_t>(blockIdx.x / work.parts) * kFieldRows;
  const int64_t left = work.height - begin;
  const int count = static_cast<int>(left < kFieldRows ? left : kFieldRows);
  for (int i = thread; i < count * K; i += kThreads) {
    const int y = i / K, k = i % K;
    rows[y][k] = k < work.ky ? work.rows[(begin + y) * work.ky + k] : T(0);
  }
  for (int64_t n = blockIdx.z; n < work.planes; n += gridDim.z) {
    __syncthreads();  // the modes of the plane before are still read
    const double* const plane = work.coefficients + n * work.ky * work.kx;
    for (int i = thread; i < K * work.kx; i += kThreads) {
      const int k = i / work.kx, l = i % work.kx;
      modes[k][l] = k < work.ky ? static_cast<T>(plane[i] * work.scale) : T(0);
    }
    __syncthreads();
    if (column >= work.width) continue;
    T sums[K][P] = {};
#pragma unroll(sizeof(T) == 4 ? 2 : 1)
    for (int l = 0; l < work.kx; ++l) {
      T basis[P];
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const int64_t x = column + p * step;
        basis[p] = work.columns[l * work.width + (x < work.width ? x : column)];
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int p = 0; p < P; ++p) sums[k][p] += modes[k][l] * basis[p];
      }
    }
    for (int y = team; y < count; y += teams) {
      T pixels[P] = {};
#pragma unroll
      for (int k = 0; k < K; ++k) {
#pragma unroll
        for (int p = 0; p < P; ++p) pixels[p] += rows[y][k] * sums[k][p];
      }
      Pack<V, P> written;
#pragma unroll
      for (int p = 0; p < P; ++p) written.value[p] = static_cast<V>(pixels[p]);
      V* const to =
          output + (n * work.height + begin + y) * work.width + column;
      if (packs) {
        store(to, written);
      } else {
#pragma unroll
        for (int p = 0; p < P; ++p) {
          if (column + p * step < work.width) to[p * step] = written.value[p];
        }
      }
    }
  }
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

// scale * rows @ coefficients @ columns, written once, as `dtype`.
Tensor sum_modes(const Tensor& coefficients_, const Tensor& rows_,
                 const Tensor& columns_, double scale, ScalarType dtype) {
  const Tensor coefficients = as_contiguous(coefficients_);
  const Tensor rows = as_contiguous(rows_);
  const Tensor columns = as_contiguous(columns_);
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const int64_t planes = coefficients.size(0), height = rows.size(0);
  const int64_t width = columns.size(1);
  const int ky = static_cast<int>(rows.size(1));
  const int kx = static_cast<int>(columns.size(0));
  STD_TORCH_CHECK(ky <= kMostModes && kx <= kFieldColumns,
                  "sum_modes: at most ", kMostModes, " and ", kFieldColumns,
                  " modes, got ", ky, " and ", kx);
  Tensor output = torch::stable::empty({planes, height, width}, dtype,
                                       std::nullopt, rows.device());
  if (output.numel() == 0) return output;
  int lanes = 1;  // a power of two: teams of threads fill the block
  while (lanes < kThreads && 4 * lanes < width) lanes *= 2;
  const int64_t parts = (width + 4 * lanes - 1) / (4 * lanes);
  const int64_t blocks = parts * ((height + kFieldRows - 1) / kFieldRows);
  const auto run = [&](auto modes, auto value, auto stored) {
    constexpr int K = decltype(modes)::value;
    using T = decltype(value);
    using V = decltype(stored);
    const SumWork<T> work{coefficients.const_data_ptr<double>(),
                          rows.const_data_ptr<T>(),
                          columns.const_data_ptr<T>(),
                          scale,
                          planes,
                          height,
                          width,
                          ky,
                          kx,
                          lanes,
                          static_cast<unsigned>(parts)};
    launch(output, blocks_for(blocks * kThreads, 1, planes), kThreads,
           sum_modes_kernel<K, T, V>, work, output.mutable_data_ptr<V>());
  };
  THO_DISPATCH_V2(dtype, "sum_modes", AT_WRAP(([&] {
                    using T = SumOf<scalar_t>;
                    if (ky <= 8) {
                      run(std::integral_constant<int, 8>{}, T{}, scalar_t{});
                    } else if (ky <= 12) {
                      run(std::integral_constant<int, 12>{}, T{}, scalar_t{});
                    } else {
                      run(std::integral_constant<int, kMostModes>{}, T{},
                          scalar_t{});
                    }
                  })),
                  AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("field_coefficients", TCWARP_BOX(tcwarp::cuda::field_coefficients));
  m.impl("sum_modes", TCWARP_BOX(tcwarp::cuda::sum_modes));
}
