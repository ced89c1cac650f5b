// What the CUDA kernels share. Every host function keeps one order: dense
// inputs, device guard, output, early return on empty, dispatch, launch on the
// current stream, launch check.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>
#include <cstring>

#include "../shared/divider.h"
#include "../shared/spline.h"
#include "../shared/tensors.h"

namespace tcwarp::cuda {

#if !defined(TCWARP_THREADS)
#define TCWARP_THREADS 256
#endif
constexpr int kThreads = TCWARP_THREADS;  // of a block
constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xFFFFFFFF;
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

template <typename I = int64_t>
__device__ I thread_index() {
  return static_cast<I>(blockIdx.x) * kThreads + threadIdx.x;
}

// A displacement as the warp kernels read it: contiguous, float32 or float64.
inline Tensor as_float(const Tensor& displacement) {
  const Tensor dense = as_contiguous(displacement);
  return dense.element_size() >= 4
             ? dense
             : torch::stable::to(dense, ScalarType::Float);
}

// P values that are loaded or stored at once.
template <typename V, int P>
struct alignas(sizeof(V) * P < 16 ? sizeof(V) * P : 16) Pack {
  V value[P];
};

template <int P, typename V>
__device__ Pack<V, P> load(const V* from) {
  return *reinterpret_cast<const Pack<V, P>*>(from);
}

// As load, of what is read once: it makes room for other things in the cache.
template <int P, typename V>
__device__ Pack<V, P> load_once(const V* from) {
  constexpr int bytes = sizeof(Pack<V, P>);
  using Narrow = std::conditional_t<
      bytes == 1, unsigned char,
      std::conditional_t<bytes == 2, unsigned short, unsigned>>;
  using Word =
      std::conditional_t<(bytes >= 16), uint4,
                         std::conditional_t<bytes == 8, uint2, Narrow>>;
  constexpr int words = bytes / sizeof(Word);
  Word word[words];
#pragma unroll
  for (int i = 0; i < words; ++i) {
    word[i] = __ldcs(reinterpret_cast<const Word*>(from) + i);
  }
  Pack<V, P> values;
  std::memcpy(&values, word, bytes);
  return values;
}

// One store, written out: made of parts the compiler takes it apart otherwise.
template <int P, typename V>
__device__ void store(V* to, const Pack<V, P>& values) {
#if defined(__CUDACC__)
  constexpr int bytes = sizeof(values);
  if constexpr (bytes == 4) {
    unsigned part;
    std::memcpy(&part, &values, bytes);
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(part));
    return;
  } else if constexpr (bytes == 8) {
    unsigned part[2];
    std::memcpy(part, &values, bytes);
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(part[0]),
                 "r"(part[1]));
    return;
  } else if constexpr (bytes % 16 == 0) {
    unsigned part[bytes / 4];
    std::memcpy(part, &values, bytes);
#pragma unroll
    for (int i = 0; i < bytes / 4; i += 4) {
      asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(
                       reinterpret_cast<unsigned*>(to) + i),
                   "r"(part[i]), "r"(part[i + 1]), "r"(part[i + 2]),
                   "r"(part[i + 3]));
    }
    return;
  }
#endif
  *reinterpret_cast<Pack<V, P>*>(to) = values;
}

// What every warp kernel walks. Blocks run over samples (z) and, for planes,
// channel groups (y). Threads (x) run over pixels: each computes where they
// read from once for all channels of its group. In channels-last tensors they
// run over pixels and groups, groups fastest: neighbours in a warp are
// neighbours in memory in both. I is what offsets within a sample are computed
// in: 32 bits, where they fit, are half the instructions and registers.
template <int D, typename T, typename I>
struct WarpWork {
  using Index = I;
  static constexpr int kDimensions = D;

  const T* displacement;  // (N or 1, D, *size)
  int32_t size[D], image_size[D];
  Divider<I> by_size[D], by_groups;
  int64_t first, samples;  // the samples from `first` on, `samples` the end
  int64_t sample_stride, image_sample_stride, field_sample_stride;
  I pixels;    // product of size
  I channels;  // packs of `pack` neighbouring channels
  I groups;    // a thread takes every groups-th of them
  I pixel_stride, channel_stride, image_channel_stride;
  Padding padding;

  // `grid` is the layout of the values that stand where the displacement does.
  WarpWork(const Field<D, T>& field, const Layout& grid, int64_t padding_mode,
           int64_t groups_, int64_t pack = 1)
      : displacement(field.data),
        by_groups(static_cast<I>(groups_)),
        first(0),
        samples(grid.samples),
        sample_stride(grid.channels * field.pixels),
        image_sample_stride(grid.channels * field.image_pixels),
        field_sample_stride(field.sample_stride),
        pixels(static_cast<I>(field.pixels)),
        channels(static_cast<I>(grid.channels / pack)),
        groups(static_cast<I>(groups_)),
        pixel_stride(static_cast<I>(grid.pixel_stride)),
        channel_stride(static_cast<I>(grid.channel_stride * pack)),
        image_channel_stride(static_cast<I>(
            grid.with_pixels(field.image_pixels).channel_stride * pack)),
        padding(static_cast<Padding>(padding_mode)) {
    for (int k = 0; k < D; ++k) {
      size[k] = field.size[k];
      image_size[k] = field.image_size[k];
      by_size[k] = Divider<I>(field.size[k]);
    }
  }

  __host__ __device__ bool channels_last() const { return pixel_stride != 1; }

  // P: pixels of one thread.
  dim3 blocks(int64_t P = 1) const {
    return channels_last()
               ? blocks_for(int64_t{pixels} * groups, 1, samples - first)
               : blocks_for((pixels + P - 1) / P, groups, samples - first);
  }
};

// Calls body(sample, group, pixel) for all that is the calling thread's. Of the
// P pixels of a thread `pixel` is the first and the next is `step` away: 1
// where they are loaded or stored at once, kThreads where the threads of a warp
// are to stay neighbours. The loops are the same in all threads of a block, so
// that they may wait for each other: what is beyond the last pixel is the
// body's to leave out.
template <int P, int step, typename Work, typename Body>
__device__ void for_each_item(const Work& work, const Body& body) {
  using I = typename Work::Index;
  static_assert(P == 1 || step == 1 || step == kThreads);
  I pixel = P == 1 || step == 1
                ? thread_index<I>() * P
                : static_cast<I>(blockIdx.x) * kThreads * P + threadIdx.x;
  I group = blockIdx.y, groups_at_once = gridDim.y;
  if (work.channels_last()) {
    pixel = work.by_groups.divide(thread_index<I>(), group);
    groups_at_once = work.groups;  // one group only
  }
  for (int64_t n = work.first + blockIdx.z; n < work.samples; n += gridDim.z) {
    for (I g = group; g < work.groups; g += groups_at_once) body(n, g, pixel);
  }
}

// Offsets of channels that a thread takes one after the other, in a sample on
// the grid of the displacement and in one of the image.
template <typename I>
struct Planes {
  I channel, groups, stride, image_stride;

  template <typename Work>
  __device__ Planes(const Work& work, I c)
      : channel(c),
        groups(work.groups),
        stride(work.channel_stride),
        image_stride(work.image_channel_stride) {}

  __device__ I operator[](int b) const {
    return (channel + b * groups) * stride;
  }
  __device__ I of_image(int b) const {
    return (channel + b * groups) * image_stride;
  }
};

// Calls body(count, planes) for the channels of one group, B at a time as long
// as there are so many: their loads are in flight together.
template <int B, typename Work, typename Body>
__device__ void for_each_batch(const Work& work, typename Work::Index group,
                               const Body& body) {
  using I = typename Work::Index;
  I c = group;
  if constexpr (B > 1) {
    for (; c + (B - 1) * work.groups < work.channels; c += B * work.groups) {
      body(std::integral_constant<int, B>{}, Planes<I>(work, c));
    }
  }
  for (; c < work.channels; c += work.groups) {
    body(std::integral_constant<int, 1>{}, Planes<I>(work, c));
  }
}

template <int D, typename T, typename I>
__device__ void position_of(const WarpWork<D, T, I>& work, I pixel,
                            int32_t (&position)[D]) {
#pragma unroll
  for (int k = D - 1; k > 0; --k) {
    I at;
    pixel = work.by_size[k].divide(pixel, at);
    position[k] = static_cast<int32_t>(at);
  }
  position[0] = static_cast<int32_t>(pixel);
}

// Displacement and position of one pixel.
template <int D, typename T>
struct PixelWork {
  T displacement[D];
  int32_t position[D];

  PixelWork() = default;

  template <typename I>
  __device__ PixelWork(const WarpWork<D, T, I>& work, int64_t n, I pixel) {
    position_of(work, pixel, position);
    const T* const field =
        work.displacement + n * work.field_sample_stride + pixel;
#pragma unroll
    for (int k = 0; k < D; ++k) displacement[k] = field[k * work.pixels];
  }
};

// Calls body with the constant of the work's padding. The same branch in every
// thread costs little beside the loads; a kernel for each padding would cost
// the compiler three times as long.
template <typename Work, typename Body>
__device__ auto with_padding(const Work& work, const Body& body) {
  switch (work.padding) {
    case Padding::kBorder:
      return body(std::integral_constant<Padding, Padding::kBorder>{});
    case Padding::kReflection:
      return body(std::integral_constant<Padding, Padding::kReflection>{});
    default:
      return body(std::integral_constant<Padding, Padding::kZeros>{});
  }
}

// Offset in a plane, in elements, of the pixel that nearest reads, or kOutside.
template <Padding padding, int D, typename T, typename I>
__device__ I source_of(const WarpWork<D, T, I>& work,
                       const T (&displacement)[D],
                       const int32_t (&position)[D]) {
  const I index =
      nearest_source<D, padding, I>(displacement, position, work.image_size);
  return index < 0 ? index : index * work.pixel_stride;
}

template <int D, typename T, typename I>
__device__ I source_of(const WarpWork<D, T, I>& work,
                       const PixelWork<D, T>& at) {
  return with_padding(work, [&](auto padding) {
    return source_of<decltype(padding)::value>(work, at.displacement,
                                               at.position);
  });
}

// Calls body(a) for the taps of the first axis, unrolled save where all 64
// corners of a cubic volume would have to fit the registers.
template <int K, int D, typename Body>
__device__ void for_each_first_tap(const Body& body) {
  if constexpr (D == 3 && K == 4) {
#pragma unroll 1
    for (int a = 0; a < K; ++a) body(a);
  } else {
#pragma unroll
    for (int a = 0; a < K; ++a) body(a);
  }
}

// values[i] by selection: an array in registers has no index that varies.
template <int K, typename V>
__device__ V pick(const V (&values)[K], int i) {
  V value = values[0];
#pragma unroll
  for (int k = 1; k < K; ++k) value = i == k ? values[k] : value;
  return value;
}

// The taps of one pixel, axis by axis, as offsets into a plane, in elements.
template <Mode mode, int D_, typename T, typename I>
struct Taps {
  static constexpr int D = D_, K = tap_count(mode);
  I offset[D][K];
  T weight[D][K];

  Taps() = default;

  // With `derivative`, weights are those of the derivative by the displacement
  // along each axis.
  template <typename Work>
  __device__ Taps(const Work& work, const PixelWork<D, T>& at,
                  bool derivative = false) {
    with_padding(work, [&](auto padding) {
      I step = work.pixel_stride;
#pragma unroll
      for (int k = D - 1; k >= 0; --k) {
        const AxisTaps<K, T> taps = axis_taps<mode, decltype(padding)::value>(
            at.displacement[k], at.position[k], work.image_size[k], derivative);
#pragma unroll
        for (int t = 0; t < K; ++t) {
          offset[k][t] = taps.index[t] * step;
          weight[k][t] = taps.weight[t];
        }
        step *= work.image_size[k];
      }
    });
  }

  // Calls body(offset, weight) for all taps of all axes but the last: the rows
  // that a pixel reads from.
  template <typename Body>
  __device__ void for_each_row(const Body& body) const {
    for_each_first_tap<K, D>([&](int a) {
      const I first = pick(offset[0], a);
      const T product = pick(weight[0], a);
      if constexpr (D == 2) {
        body(first, product);
      } else {
#pragma unroll
        for (int b = 0; b < K; ++b) {
          body(first + offset[1][b], product * weight[1][b]);
        }
      }
    });
  }

  // Calls body(offset, weight) for every corner. Those of weight 0 stand at a
  // pixel of the image too: they can be read, not to be used, without a branch,
  // so that all reads of a pixel are in flight together.
  template <typename Body>
  __device__ void for_each_corner(const Body& body) const {
    for_each_row([&](I row, T product) {
#pragma unroll
      for (int t = 0; t < K; ++t) {
        body(row + offset[D - 1][t], product * weight[D - 1][t]);
      }
    });
  }
};

// Groups of channels (packs of `pack`) that give the device enough threads of P
// pixels: one, so that the index is computed once for all channels, where there
// are pixels enough. Channels last, a thread takes at most four packs.
inline int64_t channel_groups(const Layout& layout, int64_t pack = 1,
                              int64_t P = 1) {
  const int64_t packs = layout.channels / pack;
  const int64_t fewest = layout.pixel_stride == 1 ? 1 : (packs + 3) / 4;
  const int64_t threads = layout.samples * layout.pixels / P;
  return std::clamp<int64_t>(kEnough / std::max<int64_t>(1, threads), fewest,
                             packs);
}

// Neighbouring channels of a channels-last tensor that are read at once.
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

// Whether threads of P pixels of planes are enough for the device.
inline bool fills_device(const Layout& layout, int64_t P) {
  return layout.pixel_stride == 1 &&
         layout.samples * layout.pixels >= P * kEnough;
}

// Adds the largest of a block's values, none negative, to *target. Every thread
// of the block calls it. One atomic a block: all threads of a launch at one
// address would wait for each other.
__device__ inline void raise(unsigned long long* target, double value) {
  constexpr int warps = kThreads / kWarp;
  __shared__ unsigned long long largest[warps];
  // Bits of doubles that are not negative have the order of their values.
  auto bits = static_cast<unsigned long long>(__double_as_longlong(value));
  const auto reduce = [&] {
#pragma unroll
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
      const auto other = __shfl_xor_sync(kWholeWarp, bits, lanes);
      bits = other > bits ? other : bits;
    }
  };
  reduce();
  __syncthreads();  // an earlier call may still be read
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  if (lane == 0) largest[threadIdx.x / kWarp] = bits;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  bits = lane < warps ? largest[lane] : 0;
  reduce();
  if (lane == 0 && bits > 0) atomicMax(target, bits);
}

}  // namespace tcwarp::cuda
