// What the CUDA kernels share. Every host function keeps one order: dense
// inputs, device guard, output, early return on empty, dispatch, launch on the
// current stream, launch check.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <array>

#include "../shared/tensors.h"

namespace tcwarp::cuda {

constexpr int kThreads = 256;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// Launches kernel(arguments...) with one thread for each of `work` items.
template <typename Kernel, typename... Arguments>
void launch(const Tensor& on, int64_t work, Kernel kernel,
            const Arguments&... arguments) {
  const auto blocks = static_cast<unsigned>((work + kThreads - 1) / kThreads);
  kernel<<<blocks, kThreads, 0, current_stream(on)>>>(arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

__device__ inline int64_t thread_index() {
  return static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
}

// What every warp kernel walks. Threads run over samples, channel groups and
// pixels, pixels fastest; channels-last tensors have one group per channel,
// channels fastest, so that neighbours in a warp are neighbours in memory.
template <int D, typename T>
struct WarpWork {
  const T* displacement;  // (N, D, *size)
  int32_t size[D];
  int64_t pixels;  // product of size
  int64_t channels;
  int64_t groups;  // parts of the channels; each is one thread's
  int64_t pixel_stride, channel_stride;
  int64_t threads;  // samples * groups * pixels
  Padding padding;

  WarpWork(const Field<D, T>& field, const Layout& layout, int64_t groups_,
           int64_t padding_mode = 0)
      : displacement(field.data),
        pixels(field.pixels),
        channels(layout.channels),
        groups(groups_),
        pixel_stride(layout.pixel_stride),
        channel_stride(layout.channel_stride),
        threads(layout.samples * groups_ * field.pixels),
        padding(static_cast<Padding>(padding_mode)) {
    for (int k = 0; k < D; ++k) size[k] = field.size[k];
  }
};

// The part of that work of one thread.
template <int D, typename T>
struct PixelWork {
  int64_t sample;       // n
  int64_t pixel;        // flat
  int64_t first, last;  // channels [first, last)
  T displacement[D];    // at the pixel
  int32_t position[D];  // of the pixel

  __device__ PixelWork(const WarpWork<D, T>& work, int64_t thread) {
    const bool channels_last = work.pixel_stride != 1;
    int64_t group;
    if (channels_last) {
      group = thread % work.groups;
      pixel = thread / work.groups % work.pixels;
    } else {
      pixel = thread % work.pixels;
      group = thread / work.pixels % work.groups;
    }
    sample = thread / (work.pixels * work.groups);
    first = work.channels * group / work.groups;
    last = work.channels * (group + 1) / work.groups;
    int64_t rest = pixel;
    for (int k = D - 1; k >= 0; --k) {
      position[k] = static_cast<int32_t>(rest % work.size[k]);
      rest /= work.size[k];
      displacement[k] =
          work.displacement[(sample * D + k) * work.pixels + pixel];
    }
  }
};

// The same branch in every thread costs nothing beside the loads; a kernel for
// each padding would cost the compiler three times as long.
template <int D, typename T>
__device__ int64_t source_of(const WarpWork<D, T>& work,
                             const PixelWork<D, T>& at) {
  switch (work.padding) {
    case Padding::kBorder:
      return nearest_source<D, Padding::kBorder, int64_t>(
          at.displacement, at.position, work.size);
    case Padding::kReflection:
      return nearest_source<D, Padding::kReflection, int64_t>(
          at.displacement, at.position, work.size);
    default:
      return nearest_source<D, Padding::kZeros, int64_t>(
          at.displacement, at.position, work.size);
  }
}

// The taps of one pixel as offsets into a plane, in elements.
template <int D, typename T>
struct Taps {
  static constexpr int kCount = 1 << D;
  int64_t offset[kCount];
  T weight[kCount];

  __device__ Taps(const WarpWork<D, T>& work, const PixelWork<D, T>& at,
                  int slope_axis) {
    switch (work.padding) {
      case Padding::kBorder:
        linear_corners<D, Padding::kBorder>(at.displacement, at.position,
                                            work.size, slope_axis, offset,
                                            weight);
        break;
      case Padding::kReflection:
        linear_corners<D, Padding::kReflection>(at.displacement, at.position,
                                                work.size, slope_axis, offset,
                                                weight);
        break;
      default:
        linear_corners<D, Padding::kZeros>(at.displacement, at.position,
                                           work.size, slope_axis, offset,
                                           weight);
    }
    for (int t = 0; t < kCount; ++t) offset[t] *= work.pixel_stride;
  }
};

// Channel groups that give the device enough threads: one group (the index is
// computed once for all channels) where there are pixels enough.
inline int64_t channel_groups(const Layout& layout) {
  if (layout.pixel_stride != 1) return layout.channels;
  constexpr int64_t enough = 132 * 2048;  // threads that fill a large device
  const int64_t pixels = layout.samples * layout.pixels;
  return std::clamp<int64_t>(enough / std::max<int64_t>(1, pixels), 1,
                             layout.channels);
}

}  // namespace tcwarp::cuda
