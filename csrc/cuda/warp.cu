// Warp, forward: a gather.
#include "spline.cuh"

namespace tcwarp::cuda {
namespace {

// Where P consecutive pixels read from, as offsets into a plane, or kOutside.
template <int P, int D, typename T>
__device__ void sources_of(const WarpWork<D, T>& work, int64_t n, int64_t pixel,
                           int64_t (&source)[P]) {
  PixelWork<D, T> at(work, n, pixel);
  Pack<T, P> displacement[D];
#pragma unroll
  for (int k = 0; k < D; ++k) {
    displacement[k] = *reinterpret_cast<const Pack<T, P>*>(
        work.displacement + (n * D + k) * work.pixels + pixel);
  }
#pragma unroll
  for (int p = 0; p < P; ++p) {
    T u[D];
#pragma unroll
    for (int k = 0; k < D; ++k) u[k] = displacement[k].value[p];
    const int64_t index = source_of(work, u, at.position);
    source[p] = index < 0 ? index : index * work.pixel_stride;
    // The next pixel, in the next row where this one ends.
#pragma unroll
    for (int k = D - 1; k >= 0; --k) {
      if (++at.position[k] < work.size[k]) break;
      at.position[k] = 0;
    }
  }
}

template <int D, int P, typename V, typename T>
__global__ void warp_nearest_kernel(WarpWork<D, T> work,
                                    const V* __restrict__ input,  // (N, C, *)
                                    V* __restrict__ output) {     // (N, C, *)
  for_each_item<P>(
      work, [&](int64_t n, int64_t first, int64_t last, int64_t pixel) {
        int64_t index[P];
        sources_of(work, n, pixel, index);
        const int64_t sample = n * work.channels * work.pixels;
        const V* const source = input + sample;
        V* const target = output + sample + pixel * work.pixel_stride;
#pragma unroll 4
        for (int64_t c = first; c < last; ++c) {
          const int64_t plane = c * work.channel_stride;
          Pack<V, P> values;
#pragma unroll
          for (int p = 0; p < P; ++p) {
            values.value[p] = index[p] < 0 ? V{} : source[plane + index[p]];
          }
          *reinterpret_cast<Pack<V, P>*>(target + plane) = values;
        }
      });
}

// W neighbouring channels at a time. `values` are what is interpolated: pixels,
// or coefficients of a spline.
template <Mode mode, int D, int W, typename V, typename S, typename T>
__global__ void warp_interpolated_kernel(
    WarpWork<D, T> work,
    const V* __restrict__ input,   // (N, C, *size)
    const S* __restrict__ values,  // (N, C, *size)
    V* __restrict__ output) {      // (N, C, *size)
  using Sum = std::conditional_t<std::is_same_v<V, double>, double, T>;
  for_each_item<1>(work, [&](int64_t n, int64_t first, int64_t last,
                             int64_t pixel) {
    const PixelWork<D, T> at(work, n, pixel);
    const int64_t sample = n * work.channels * work.pixels;
    V* const target = output + sample + pixel * work.pixel_stride;
    if (mode == Mode::kCubic && is_whole(at.displacement)) {
      const int64_t index = source_of(work, at.displacement, at.position);
      for (int64_t c = first; c < last; ++c) {
        const int64_t plane = c * work.channel_stride;
        target[plane] = index < 0
                            ? V(0)
                            : input[sample + plane + index * work.pixel_stride];
      }
      return;
    }
    const Taps<mode, D, T> taps(work, at, -1);
    // -0 is neutral for every sum: a displacement of 0 returns -0 as -0.
    T used = 0;
    taps.for_each_corner([&](int64_t, T weight) { used += weight; });
    const Sum initial = used > 0 ? Sum(-0.0) : Sum(0);
    const S* const source = values + sample;
#pragma unroll 2
    for (int64_t c = first; c < last; c += W) {
      const int64_t plane = c * work.channel_stride;
      Sum sums[W];
#pragma unroll
      for (int w = 0; w < W; ++w) sums[w] = initial;
      taps.for_each_corner([&](int64_t offset, T weight) {
        const auto read =
            *reinterpret_cast<const Pack<S, W>*>(source + plane + offset);
#pragma unroll
        for (int w = 0; w < W; ++w) {
          sums[w] += static_cast<Sum>(weight) * static_cast<Sum>(read.value[w]);
        }
      });
      Pack<V, W> written;
#pragma unroll
      for (int w = 0; w < W; ++w) written.value[w] = static_cast<V>(sums[w]);
      *reinterpret_cast<Pack<V, W>*>(target + plane) = written;
    }
  });
}

void run_nearest(const Tensor& input, const Tensor& displacement,
                 int64_t padding_mode, Tensor& output) {
  Layout layout = layout_of(input);
  const void* const from = input.const_data_ptr();
  void* const to = output.mutable_data_ptr();
  const int64_t width = widen_channels(
      layout, static_cast<int64_t>(input.element_size()), from, to);
  dispatch_width(width, [&](auto bits) {
    using V = decltype(bits);
    const auto* const source = static_cast<const V*>(from);
    auto* const target = static_cast<V*>(to);
    dispatch_field(displacement, [&](const auto& field) {
      constexpr int D = std::decay_t<decltype(field)>::kDimensions;
      using T = typename std::decay_t<decltype(field)>::Scalar;
      const WarpWork<D, T> work(field, layout, padding_mode,
                                channel_groups(layout));
      constexpr int P = 4;
      const bool vectors = !work.channels_last() && work.pixels % P == 0 &&
                           work.samples * work.pixels >= P * kEnough &&
                           is_aligned(field.data, P * sizeof(T)) &&
                           is_aligned(target, P * sizeof(V));
      if (vectors) {
        launch(output, work.blocks(P), kThreads,
               warp_nearest_kernel<D, P, V, T>, work, source, target);
      } else {
        launch(output, work.blocks(), kThreads, warp_nearest_kernel<D, 1, V, T>,
               work, source, target);
      }
    });
  });
}

template <Mode mode, typename V, typename S>
void run_interpolated(const Tensor& input, const S* values,
                      const Tensor& displacement, int64_t padding_mode,
                      Tensor& output) {
  const Layout layout = layout_of(input);
  const V* const source = input.const_data_ptr<V>();
  V* const target = output.mutable_data_ptr<V>();
  dispatch_field(displacement, [&](const auto& field) {
    constexpr int D = std::decay_t<decltype(field)>::kDimensions;
    using T = typename std::decay_t<decltype(field)>::Scalar;
    const auto run = [&](auto pack) {
      constexpr int W = decltype(pack)::value;
      const WarpWork<D, T> work(field, layout, padding_mode,
                                channel_groups(layout, W));
      launch(output, work.blocks(), kThreads,
             warp_interpolated_kernel<mode, D, W, V, S, T>, work, source,
             values, target);
    };
    // Vectors of channels for the usual kinds only: each is a kernel of its
    // own.
    if constexpr (mode == Mode::kLinear && D == 2 && std::is_same_v<T, float> &&
                  !std::is_same_v<V, double>) {
      switch (channel_pack(layout, source, target, sizeof(V))) {
        case 4:
          return run(std::integral_constant<int, 4>{});
        case 2:
          return run(std::integral_constant<int, 2>{});
      }
    }
    run(std::integral_constant<int, 1>{});
  });
}

template <typename V>
void run_cubic(const Tensor& input, const Tensor& displacement,
               int64_t padding_mode, Tensor& output) {
  using S = SumOf<V>;
  Tensor buffer = coefficient_buffer<S>(input);
  S* const coefficients = buffer.mutable_data_ptr<S>();
  dispatch_field(displacement, [&](const auto& field) {
    spline_filter(output, input.const_data_ptr<V>(), coefficients,
                  layout_of(input), field.size,
                  static_cast<Padding>(padding_mode), false);
  });
  run_interpolated<Mode::kCubic, V, S>(input, coefficients, displacement,
                                       padding_mode, output);
}

}  // namespace

Tensor warp(const Tensor& input_, const Tensor& displacement_, int64_t mode,
            int64_t padding_mode) {
  const Tensor input = dense(input_);
  const Tensor displacement = wide(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor output = torch::stable::empty_like(input);
  if (output.numel() == 0) return output;
  if (static_cast<Mode>(mode) == Mode::kNearest) {
    run_nearest(input, displacement, padding_mode, output);
    return output;
  }
  THO_DISPATCH_V2(input.scalar_type(), "warp", AT_WRAP(([&] {
                    if (static_cast<Mode>(mode) == Mode::kLinear) {
                      run_interpolated<Mode::kLinear, scalar_t>(
                          input, input.const_data_ptr<scalar_t>(), displacement,
                          padding_mode, output);
                    } else {
                      run_cubic<scalar_t>(input, displacement, padding_mode,
                                          output);
                    }
                  })),
                  AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("warp", TORCH_BOX(&tcwarp::cuda::warp));
}
