// From pixels to the coefficients of the cubic spline through them, axis by
// axis, and the transpose of that: csrc/cpu/spline.h for the device.
#pragma once

#include "common.cuh"

namespace tcwarp::cuda {

constexpr int kRows = 32;  // rows that a block solves side by side

// One thread solves one line whose pixels are `step` > 1 apart; neighbouring
// threads have neighbouring lines.
template <typename V, typename S>
__global__ void filter_columns_kernel(
    const __grid_constant__ SplineFilter<S> filter, int64_t lines, int64_t step,
    bool transposed,
    const V* input,  // (lines / step, n, step)
    S* output) {     // likewise
  const int64_t line = thread_index();
  if (line >= lines) return;
  const int64_t slab = line / step, column = line - slab * step;
  const int64_t first = slab * step * filter.n + column, n = filter.n;
  // Some pixels are read before any is written, as input and output may be one.
  constexpr int U = 8;
  const auto at = [&](int64_t k) { return first + k * step; };
  S value = 0, pixels[U];
  for (int64_t begin = 0; begin < n; begin += U) {
    const int count = static_cast<int>(n - begin < U ? n - begin : U);
#pragma unroll
    for (int i = 0; i < U; ++i) {
      if (i < count) pixels[i] = static_cast<S>(input[at(begin + i)]);
    }
#pragma unroll
    for (int i = 0; i < U; ++i) {
      if (i >= count) break;
      const int64_t k = begin + i;
      value = filter.elimination(k, transposed)(pixels[i], value);
      output[at(k)] = value;
    }
  }
  value = filter.substitution(n - 1)(value, S(0));
  output[at(n - 1)] = value * filter.scale(n - 1, transposed);
  for (int64_t end = n - 1; end > 0; end -= U) {
    const int count = static_cast<int>(end < U ? end : U);
#pragma unroll
    for (int i = 0; i < U; ++i) {
      if (i < count) pixels[i] = output[at(end - 1 - i)];
    }
#pragma unroll
    for (int i = 0; i < U; ++i) {
      if (i >= count) break;
      const int64_t k = end - 1 - i;
      value = filter.substitution(k)(pixels[i], value);
      output[at(k)] = value * filter.scale(k, transposed);
    }
  }
}

// A block of kRows threads solves as many rows of contiguous pixels, by way of
// shared tiles, so that memory is read and written along the rows.
template <typename V, typename S>
__global__ void filter_rows_kernel(
    const __grid_constant__ SplineFilter<S> filter, int64_t lines,
    bool transposed,
    const V* input,  // (lines, n)
    S* output) {     // likewise
  __shared__ S tile[kRows][kRows + 1];
  const int64_t n = filter.n, chunks = (n + kRows - 1) / kRows;
  const int64_t block = static_cast<int64_t>(blockIdx.x) * kRows;
  const int lane = static_cast<int>(threadIdx.x);
  const int rows =
      static_cast<int>(lines - block < kRows ? lines - block : kRows);
  S value = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = chunk * kRows;
    const int count = static_cast<int>(n - begin < kRows ? n - begin : kRows);
#pragma unroll 8
    for (int r = 0; r < rows; ++r) {
      if (lane < count) {
        tile[r][lane] = static_cast<S>(input[(block + r) * n + begin + lane]);
      }
    }
    __syncthreads();
    for (int i = 0; i < count && lane < rows; ++i) {
      const int64_t k = begin + i;
      value = filter.elimination(k, transposed)(tile[lane][i], value);
      tile[lane][i] = value;
    }
    __syncthreads();
    for (int r = 0; r < rows; ++r) {
      if (lane < count) output[(block + r) * n + begin + lane] = tile[r][lane];
    }
    __syncthreads();
  }
  value = 0;
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t begin = chunk * kRows;
    const int count = static_cast<int>(n - begin < kRows ? n - begin : kRows);
#pragma unroll 8
    for (int r = 0; r < rows; ++r) {
      if (lane < count) tile[r][lane] = output[(block + r) * n + begin + lane];
    }
    __syncthreads();
    for (int i = count - 1; i >= 0 && lane < rows; --i) {
      const int64_t k = begin + i;
      value = filter.substitution(k)(tile[lane][i], value);
      tile[lane][i] = value * filter.scale(k, transposed);
    }
    __syncthreads();
    for (int r = 0; r < rows; ++r) {
      if (lane < count) output[(block + r) * n + begin + lane] = tile[r][lane];
    }
    __syncthreads();
  }
}

// Filters every axis; the first pass goes from input to output, which may be
// one, the others stay there.
template <int D, typename V, typename S>
void spline_filter(const Tensor& on, const V* input, S* output,
                   const Layout& layout, const int32_t (&size)[D],
                   Padding padding, bool transposed) {
  const int64_t total = layout.samples * layout.channels * layout.pixels;
  int64_t step = layout.pixel_stride;
  for (int k = D - 1; k >= 0; --k) {
    const SplineFilter<S> filter(size[k], padding);
    const int64_t lines = total / size[k];
    const auto pass = [&](const auto* from) {
      using From = std::decay_t<decltype(*from)>;
      if (step == 1) {
        const dim3 blocks(static_cast<unsigned>((lines + kRows - 1) / kRows));
        launch(on, blocks, kRows, filter_rows_kernel<From, S>, filter, lines,
               transposed, from, output);
      } else {
        launch(on, blocks_for(lines), kThreads, filter_columns_kernel<From, S>,
               filter, lines, step, transposed, from, output);
      }
    };
    if (k == D - 1) {
      pass(input);
    } else {
      pass(static_cast<const S*>(output));
    }
    step *= size[k];
  }
}

// An uninitialised buffer for the coefficients of a tensor, in its memory
// order.
template <typename S>
Tensor coefficient_buffer(const Tensor& like) {
  constexpr auto type =
      std::is_same_v<S, double> ? ScalarType::Double : ScalarType::Float;
  return torch::stable::empty({like.numel()}, type, std::nullopt,
                              like.device());
}

}  // namespace tcwarp::cuda
