// How the backward adds: with atomics on floating numbers, whose result depends
// on their order in the last bits and which flush subnormal numbers of float32
// to zero, or deterministically, on integers. Either way a few samples at a
// time: the zeros that are added to are still in the L2 cache then, and memory
// sees the sums alone.
#pragma once

#include "common.cuh"

namespace tcwarp::cuda {

// Bytes of sums that a launch adds to. While it does, it zeroes as many for the
// next one: both together fit the half of a large L2 cache (of 50 MB) that is
// near to a multiprocessor.
#if !defined(TCWARP_CHUNK)
#define TCWARP_CHUNK (12 << 20)
#endif
constexpr int64_t kChunk = TCWARP_CHUNK;

// What a launch sets to zero beside its work.
template <typename S>
struct Zeros {
  S* begin;
  int64_t count;

  __device__ void write() const {
    constexpr int P = 16 / sizeof(S);
    const int64_t block =
        static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    const int64_t thread =
        (block * gridDim.x + blockIdx.x) * kThreads + threadIdx.x;
    const int64_t threads =
        static_cast<int64_t>(gridDim.z) * gridDim.y * gridDim.x * kThreads;
    const auto head =
        static_cast<int64_t>(reinterpret_cast<uintptr_t>(begin) % 16);
    const int64_t packed = head == 0 ? count / P * P : 0;
    for (int64_t i = thread * P; i < packed; i += threads * P) {
      store(begin + i, Pack<S, P>{});
    }
    for (int64_t i = packed + thread; i < count; i += threads) begin[i] = S(0);
  }
};

template <typename S>
__global__ void zero_kernel(Zeros<S> zeros) {
  zeros.write();
}

// atomicAdd on the numbers themselves; on compute capability 9.0 and up, on
// vectors of neighbouring channels at once.
template <typename S>
struct Plain {
  static constexpr bool kMerges = true;  // sums may be rounded on the way
  S* target;
  int64_t sample_stride;

  __device__ Plain of(int64_t n) const {
    return {target + n * sample_stride, sample_stride};
  }

  template <typename I>
  __device__ void add(I at, S value) const {
    atomicAdd(target + at, value);
  }

  template <int W, typename I>
  __device__ void add(I at, const S (&value)[W]) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    constexpr bool vectors = std::is_same_v<S, float>;
#else
    constexpr bool vectors = false;
#endif
    if constexpr (vectors && W == 4) {
      atomicAdd(reinterpret_cast<float4*>(target + at),
                make_float4(value[0], value[1], value[2], value[3]));
    } else if constexpr (vectors && W == 2) {
      atomicAdd(reinterpret_cast<float2*>(target + at),
                make_float2(value[0], value[1]));
    } else {
      for (int w = 0; w < W; ++w) add(at + w, value[w]);
    }
  }
};

// Fixed-point sums: integers add up to the same in any order. The unit is the
// largest finite gradient of the sample times 2^-bits; a double has a second
// integer for what is left. What is not finite is added to the target itself:
// the result, NaN or an infinity, does not depend on the order either.
template <typename S>
struct Fixed {
  using Limb = unsigned long long;  // two's complement
  static constexpr int kLimbs = std::is_same_v<S, double> ? 2 : 1;
  static constexpr bool kMerges = false;

  S* target;
  Limb* limbs;  // (1 or 2, count), zeroed, from sample `first` on
  int64_t count, sample_stride, first;
  const Limb* largest;  // (N): the bits of doubles
  int bits;

  // Sums of all pixels, with cubic weights, of which the absolute values add up
  // to less than 8, stay below 2^63.
  static int bits_for(int64_t pixels) {
    int bits = 59;
    for (; pixels > 1; pixels = (pixels + 1) / 2) --bits;
    return bits;
  }

  // A rest is at most half a unit whatever its weight, and each of the 64 taps
  // of a cubic volume may leave one where axes are so short that all meet.
  __host__ __device__ int rest_bits() const { return bits - 2; }

  // The power of two that brings a sample's gradients to units.
  __device__ int exponent(int64_t n) const {
    const auto most = static_cast<int64_t>(largest[n]);
    return most == 0 ? 0 : bits - ilogb(__longlong_as_double(most));
  }

  // The sums of one sample: its scale is looked up once. Two factors, as
  // 2^1133, for subnormal doubles, is none.
  struct Sample {
    S* target;
    Limb* limbs;
    int64_t count;
    double scale, more, rest_scale;

    template <typename I>
    __device__ void add(I at, S value) const {
      if (value == S(0)) return;
      if (!is_finite(value)) {
        atomicAdd(target + at, value);
        return;
      }
      double scaled = static_cast<double>(value) * scale;
      if constexpr (kLimbs == 2) scaled *= more;
      const double whole = rint(scaled);
      atomicAdd(limbs + at, static_cast<Limb>(static_cast<int64_t>(whole)));
      if constexpr (kLimbs == 2) {
        const double rest = rint((scaled - whole) * rest_scale);
        atomicAdd(limbs + count + at,
                  static_cast<Limb>(static_cast<int64_t>(rest)));
      }
    }

    template <int W, typename I>
    __device__ void add(I at, const S (&value)[W]) const {
      for (int w = 0; w < W; ++w) add(at + w, value[w]);
    }
  };

  __device__ Sample of(int64_t n) const {
    const int power = exponent(n), half = kLimbs == 2 ? power / 2 : power;
    return {target + n * sample_stride,
            limbs + (n - first) * sample_stride,
            count,
            ldexp(1.0, half),
            ldexp(1.0, power - half),
            ldexp(1.0, rest_bits())};
  }

  // Moves a sum of sample n to the target and leaves zeros for the next
  // samples.
  __device__ void store(int64_t n, int64_t at) const {
    Limb* const limb = limbs + (n - first) * sample_stride + at;
    double sum = static_cast<double>(static_cast<int64_t>(limb[0]));
    limb[0] = 0;
    if constexpr (kLimbs == 2) {
      const auto rest = static_cast<int64_t>(limb[count]);
      sum += ldexp(static_cast<double>(rest), -rest_bits());
      limb[count] = 0;
    }
    target[n * sample_stride + at] += static_cast<S>(ldexp(sum, -exponent(n)));
  }
};

// The largest finite size of each sample's values; largest (N) is zeroed.
template <typename V>
__global__ void largest_kernel(int64_t samples, int64_t count,
                               const V* __restrict__ values,  // (N, count)
                               unsigned long long* largest) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t n = blockIdx.z; n < samples; n += gridDim.z) {
    double most = 0;
    for (int64_t i = thread_index(); i < count; i += step) {
      const auto value = static_cast<double>(values[n * count + i]);
      const double size = value < 0 ? -value : value;
      if (is_finite(size) && size > most) most = size;
    }
    raise(largest + n, most);
  }
}

template <typename S>
__global__ void store_fixed_kernel(Fixed<S> sums, int64_t last) {
  const int64_t at = thread_index();
  if (at >= sums.sample_stride) return;
  for (int64_t n = sums.first + blockIdx.z; n < last; n += gridDim.z) {
    sums.store(n, at);
  }
}

template <typename S, typename V>
__global__ void convert_kernel(int64_t count, const S* __restrict__ from,
                               V* __restrict__ to) {
  const int64_t at = thread_index();
  if (at < count) to[at] = static_cast<V>(from[at]);
}

// Samples first to last of a chunk, and what their launch zeroes.
template <typename S>
struct Chunk {
  int64_t first, last;
  Zeros<S> zeros;
};

// Adds to `target`, laid out as `image`, what scatter(sums, chunk) adds up from
// the gradient, laid out as `grid`, chunk by chunk, with the accumulator that
// was asked for. A fresh target is zeroed on the way.
template <typename V, typename Scatter>
void accumulate(const Tensor& gradient, const Layout& grid, const Layout& image,
                bool deterministic, bool fresh, SumOf<V>* target,
                const Scatter& scatter) {
  using S = SumOf<V>;
  using Sums = Fixed<S>;
  const int64_t samples = image.samples;
  const int64_t stride = image.channels * image.pixels;
  const int64_t limbs = deterministic ? Sums::kLimbs : 0;
  const int64_t bytes =
      stride * static_cast<int64_t>(sizeof(S) + limbs * sizeof(int64_t));
  const int64_t at_once = std::clamp<int64_t>(kChunk / bytes, 1, samples);
  const auto zeros = [&](int64_t first) {
    const int64_t count = std::clamp<int64_t>(samples - first, 0, at_once);
    return Zeros<S>{target + first * stride, fresh ? count * stride : 0};
  };
  if (fresh) {
    launch(gradient, blocks_for(std::min(at_once * stride, kEnough)), kThreads,
           zero_kernel<S>, zeros(0));
  }
  const auto each_chunk = [&](const auto& body) {
    for (int64_t first = 0; first < samples; first += at_once) {
      const int64_t last = std::min(first + at_once, samples);
      body(Chunk<S>{first, last, zeros(last)});
    }
  };
  if (!deterministic) {
    return each_chunk([&](const Chunk<S>& chunk) {
      scatter(Plain<S>{target, stride}, chunk);
    });
  }
  const int64_t count = at_once * stride;
  Tensor buffer =
      torch::stable::empty({samples + Sums::kLimbs * count}, ScalarType::Long,
                           std::nullopt, gradient.device());
  torch::stable::zero_(buffer);
  auto* const largest =
      static_cast<typename Sums::Limb*>(buffer.mutable_data_ptr());
  const int64_t values = grid.channels * grid.pixels;
  launch(gradient,
         blocks_for(std::min<int64_t>(values, kEnough / 8), 1, samples),
         kThreads, largest_kernel<V>, samples, values,
         gradient.const_data_ptr<V>(), largest);
  each_chunk([&](const Chunk<S>& chunk) {
    const Sums sums{
        target,  largest + samples,          count, stride, chunk.first,
        largest, Sums::bits_for(grid.pixels)};
    scatter(sums, chunk);
    launch(gradient, blocks_for(stride, 1, chunk.last - chunk.first), kThreads,
           store_fixed_kernel<S>, sums, chunk.last);
  });
}

}  // namespace tcwarp::cuda
