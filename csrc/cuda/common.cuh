// What the CUDA kernels share. Every host function keeps one order: dense
// inputs, device guard, output, early return on empty, dispatch, launch on the
// current stream, launch check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

#include "../shared/spline.h"
#include "../shared/tensors.h"

namespace tcwarp::cuda {

constexpr int kThreads = 256;
// Threads that fill a large device: 132 multiprocessors of 2048.
#if !defined(TCWARP_ENOUGH)
#define TCWARP_ENOUGH (132 * 2048)
#endif
constexpr int64_t kEnough = TCWARP_ENOUGH;

#if defined(__CUDACC__)
template <typename Kernel, typename... Arguments>
void launch(const Tensor& on, dim3 blocks, int threads, Kernel kernel,
            const Arguments&... arguments) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(
      arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}
#endif  // otherwise the kernels run on the host, see tests/emulation

inline dim3 blocks_for(int64_t work, int64_t y = 1, int64_t z = 1) {
  constexpr int64_t most = 65535;  // kernels walk on from there
  return dim3(static_cast<unsigned>((work + kThreads - 1) / kThreads),
              static_cast<unsigned>(std::min(y, most)),
              static_cast<unsigned>(std::min(z, most)));
}

__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// Quotient and remainder; in 32 bits, several times faster, where they fit.
__device__ inline int64_t divide(int64_t value, int64_t by, int64_t& rest) {
  if (((value | by) >> 32) == 0) {
    const auto a = static_cast<uint32_t>(value), b = static_cast<uint32_t>(by);
    const uint32_t quotient = a / b;
    rest = a - quotient * b;
    return quotient;
  }
  const int64_t quotient = value / by;
  rest = value - quotient * by;
  return quotient;
}

// A displacement as the warp kernels read it: contiguous, float32 or float64.
inline Tensor wide(const Tensor& displacement) {
  const Tensor dense = torch::stable::contiguous(displacement);
  return dense.element_size() >= 4
             ? dense
             : torch::stable::to(dense, ScalarType::Float);
}

// P values that are loaded or stored at once.
template <typename V, int P>
struct alignas(sizeof(V) * P < 16 ? sizeof(V) * P : 16) Pack {
  V value[P];
};

// What every warp kernel walks. Blocks run over samples (z) and, for planes,
// channel groups (y). Threads (x) run over pixels: each computes where they
// read from once for all channels of its group. In channels-last tensors they
// run over pixels and groups, groups fastest: neighbours in a warp are
// neighbours in memory in both.
template <int D, typename T>
struct WarpWork {
  const T* displacement;  // (N, D, *size)
  int32_t size[D];
  int64_t samples, channels;
  int64_t pixels;  // product of size
  int64_t groups;  // parts of the channels; each is one thread's
  int64_t pixel_stride, channel_stride;
  Padding padding;

  WarpWork(const Field<D, T>& field, const Layout& layout, int64_t padding_mode,
           int64_t groups_)
      : displacement(field.data),
        samples(layout.samples),
        channels(layout.channels),
        pixels(field.pixels),
        groups(groups_),
        pixel_stride(layout.pixel_stride),
        channel_stride(layout.channel_stride),
        padding(static_cast<Padding>(padding_mode)) {
    for (int k = 0; k < D; ++k) size[k] = field.size[k];
  }

  __host__ __device__ bool channels_last() const { return pixel_stride != 1; }

  // P: pixels of one thread.
  dim3 blocks(int64_t P = 1) const {
    return channels_last() ? blocks_for(pixels * groups, 1, samples)
                           : blocks_for(pixels / P, groups, samples);
  }
};

// Calls body(sample, first channel, last channel, pixel) for all that is the
// calling thread's.
template <int P, int D, typename T, typename Body>
__device__ void for_each_item(const WarpWork<D, T>& work, const Body& body) {
  int64_t pixel = thread_index() * P, group = blockIdx.y, groups = work.groups;
  int64_t step = gridDim.y;
  if (work.channels_last()) {
    pixel = divide(thread_index(), work.groups, group);
    step = groups;  // one group only
  }
  if (pixel >= work.pixels) return;
  for (int64_t n = blockIdx.z; n < work.samples; n += gridDim.z) {
    for (int64_t g = group; g < groups; g += step) {
      body(n, work.channels * g / groups, work.channels * (g + 1) / groups,
           pixel);
    }
  }
}

template <int D, typename T>
__device__ void position_of(const WarpWork<D, T>& work, int64_t pixel,
                            int32_t (&position)[D]) {
  for (int k = D - 1; k >= 0; --k) {
    int64_t at;
    pixel = divide(pixel, work.size[k], at);
    position[k] = static_cast<int32_t>(at);
  }
}

// Displacement and position of one pixel.
template <int D, typename T>
struct PixelWork {
  T displacement[D];
  int32_t position[D];

  __device__ PixelWork(const WarpWork<D, T>& work, int64_t n, int64_t pixel) {
    position_of(work, pixel, position);
    for (int k = 0; k < D; ++k) {
      displacement[k] = work.displacement[(n * D + k) * work.pixels + pixel];
    }
  }
};

// The same branch in every thread costs nothing beside the loads; a kernel for
// each padding would cost the compiler three times as long.
template <int D, typename T>
__device__ int64_t source_of(const WarpWork<D, T>& work,
                             const T (&displacement)[D],
                             const int32_t (&position)[D]) {
  switch (work.padding) {
    case Padding::kBorder:
      return nearest_source<D, Padding::kBorder, int64_t>(displacement,
                                                          position, work.size);
    case Padding::kReflection:
      return nearest_source<D, Padding::kReflection, int64_t>(
          displacement, position, work.size);
    default:
      return nearest_source<D, Padding::kZeros, int64_t>(displacement, position,
                                                         work.size);
  }
}

// The taps of one pixel, axis by axis, as offsets into a plane, in elements.
template <Mode mode, int D, typename T>
struct Taps {
  static constexpr int K = tap_count(mode);
  int64_t offset[D][K];
  T weight[D][K];

  __device__ Taps(const WarpWork<D, T>& work, const PixelWork<D, T>& at,
                  int slope_axis) {
    int64_t step = work.pixel_stride;
#pragma unroll
    for (int k = D - 1; k >= 0; --k) {
      const AxisTaps<K, T> taps = along(work, at, k, k == slope_axis);
#pragma unroll
      for (int t = 0; t < K; ++t) {
        offset[k][t] = taps.index[t] * step;
        weight[k][t] = taps.weight[t];
      }
      step *= work.size[k];
    }
  }

  __device__ static AxisTaps<K, T> along(const WarpWork<D, T>& work,
                                         const PixelWork<D, T>& at, int k,
                                         bool derivative) {
    const T u = at.displacement[k];
    const int32_t x = at.position[k], n = work.size[k];
    switch (work.padding) {
      case Padding::kBorder:
        return axis_taps<mode, Padding::kBorder>(u, x, n, derivative);
      case Padding::kReflection:
        return axis_taps<mode, Padding::kReflection>(u, x, n, derivative);
      default:
        return axis_taps<mode, Padding::kZeros>(u, x, n, derivative);
    }
  }

  // Calls body(offset, weight) for every corner with a weight.
  template <typename Body>
  __device__ void for_each_corner(const Body& body) const {
    // All 64 corners of a cubic volume in registers would not fit.
#pragma unroll(D == 3 && K == 4 ? 1 : K)
    for (int a = 0; a < K; ++a) {
#pragma unroll
      for (int b = 0; b < K; ++b) {
        const T product = weight[0][a] * weight[1][b];
        const int64_t at = offset[0][a] + offset[1][b];
        if constexpr (D == 2) {
          if (product != 0) body(at, product);
        } else {
#pragma unroll
          for (int c = 0; c < K; ++c) {
            const T whole = product * weight[2][c];
            if (whole != 0) body(at + offset[2][c], whole);
          }
        }
      }
    }
  }
};

// Channel groups that give the device enough threads: one group (the index is
// computed once for all channels) where there are pixels enough. `pack`
// neighbouring channels of a channels-last tensor are one thread's.
inline int64_t channel_groups(const Layout& layout, int64_t pack = 1) {
  if (layout.pixel_stride != 1) return layout.channels / pack;
  const int64_t pixels = layout.samples * layout.pixels;
  return std::clamp<int64_t>(kEnough / std::max<int64_t>(1, pixels), 1,
                             layout.channels);
}

// Neighbouring channels of a channels-last tensor that one thread takes.
inline int64_t channel_pack(const Layout& layout, const void* a, const void* b,
                            int64_t element_size) {
  for (int64_t pack : {4, 2}) {
    const int64_t bytes = pack * element_size;
    if (layout.pixel_stride != 1 && layout.channels % pack == 0 &&
        is_aligned(a, bytes) && is_aligned(b, bytes)) {
      return pack;
    }
  }
  return 1;
}

}  // namespace tcwarp::cuda
