// Warp, forward: a gather.
#include "spline.cuh"

namespace tcwarp::cuda {
namespace {

// Where P neighbouring pixels read from, as offsets into a plane, or kOutside.
template <int P, int D, typename T, typename I>
__device__ void sources_of(const WarpWork<D, T, I>& work, int64_t n, I pixel,
                           I (&source)[P]) {
  const T* const field =
      work.displacement + n * work.field_sample_stride + pixel;
  Pack<T, P> displacement[D];
#pragma unroll
  for (int k = 0; k < D; ++k) {
    displacement[k] = load<P>(field + k * work.pixels);
  }
  int32_t position[D];
  position_of(work, pixel, position);
  with_padding(work, [&](auto padding) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      T u[D];
#pragma unroll
      for (int k = 0; k < D; ++k) u[k] = displacement[k].value[p];
      source[p] = source_of<decltype(padding)::value>(work, u, position);
      // The next pixel, in the next row where this one ends.
#pragma unroll
      for (int k = D - 1; k >= 0; --k) {
        if (++position[k] < work.size[k]) break;
        position[k] = 0;
      }
    }
  });
}

template <int P, int D, typename V, typename T, typename I>
__global__ void warp_nearest_kernel(WarpWork<D, T, I> work,
                                    const V* __restrict__ input,  // (N, C, *)
                                    V* __restrict__ output) {     // (N, C, *)
  for_each_item<P, 1>(work, [&](int64_t n, I group, I pixel) {
    if (pixel >= work.pixels) return;
    I index[P];
    sources_of(work, n, pixel, index);
    const V* const source = input + n * work.image_sample_stride;
    V* const target =
        output + n * work.sample_stride + pixel * work.pixel_stride;
    for_each_batch<3>(work, group, [&](auto batch, const Planes<I>& plane) {
      constexpr int B = decltype(batch)::value;
      Pack<V, P> values[B];
#pragma unroll
      for (int b = 0; b < B; ++b) {
        const V* const from = source + plane.of_image(b);
#pragma unroll
        for (int p = 0; p < P; ++p) {
          values[b].value[p] = index[p] < 0 ? V{} : from[index[p]];
        }
      }
#pragma unroll
      for (int b = 0; b < B; ++b) {
        store(target + plane[b], values[b]);
      }
    });
  });
}

// The usual kinds are told to leave four blocks their registers: not told, the
// compiler has half of their reads in flight. W neighbouring channels at a
// time. `values` are what is interpolated: pixels, or coefficients of a spline.
template <Mode mode, int D, int W, typename V, typename S, typename T,
          typename I>
__global__ void __launch_bounds__(kThreads,
                                  (mode == Mode::kLinear && D == 2 &&
                                   sizeof(T) + sizeof(I) == 8 && sizeof(V) < 8)
                                      ? 4
                                      : 1)
    warp_interpolated_kernel(WarpWork<D, T, I> work,
                             const V* __restrict__ input,   // (N, C, *size)
                             const S* __restrict__ values,  // (N, C, *size)
                             V* __restrict__ output) {      // (N, C, *size)
  using Sum = std::conditional_t<std::is_same_v<V, double>, double, T>;
  for_each_item<1, 1>(work, [&](int64_t n, I group, I pixel) {
    if (pixel >= work.pixels) return;
    const PixelWork<D, T> at(work, n, pixel);
    const int64_t sample = n * work.image_sample_stride;
    V* const target =
        output + n * work.sample_stride + pixel * work.pixel_stride;
    if (mode == Mode::kCubic && is_whole(at.displacement)) {
      const I index = source_of(work, at);
      for_each_batch<1>(work, group, [&](auto, const Planes<I>& plane) {
        target[plane[0]] =
            index < 0 ? V(0) : input[sample + plane.of_image(0) + index];
      });
      return;
    }
    const Taps<mode, D, T, I> taps(work, at);
    // -0 is neutral for every sum: a displacement of 0 returns -0 as -0.
    T used = 0;
    taps.for_each_corner([&](I, T weight) { used += weight; });
    const Sum initial = used > 0 ? Sum(-0.0) : Sum(0);
    const S* const source = values + sample;
    // Two channels: as many reads in flight as leave four blocks their
    // registers.
    for_each_batch<mode == Mode::kLinear ? 2 : 1>(
        work, group, [&](auto batch, const Planes<I>& plane) {
          constexpr int B = decltype(batch)::value;
          Pack<V, W> written[B];
          const S* const first = source + plane.of_image(0);
          const int64_t step = int64_t{work.groups} * work.image_channel_stride;
#pragma unroll
          for (int b = 0; b < B; ++b) {
            const S* const from = first + b * step;
            Sum sums[W];
#pragma unroll
            for (int w = 0; w < W; ++w) sums[w] = initial;
            taps.for_each_corner([&](I offset, T weight) {
              const auto read = load<W>(from + offset);
#pragma unroll
              for (int w = 0; w < W; ++w) {
                const Sum sum = sums[w] + static_cast<Sum>(weight) *
                                              static_cast<Sum>(read.value[w]);
                sums[w] = weight != 0 ? sum : sums[w];
              }
            });
#pragma unroll
            for (int w = 0; w < W; ++w) {
              written[b].value[w] = static_cast<V>(sums[w]);
            }
          }
#pragma unroll
          for (int b = 0; b < B; ++b) {
            store(target + plane[b], written[b]);
          }
        });
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
    dispatch_indexed(
        displacement, spatial_size(input), layout.channels,
        [&](const auto& field, auto index) {
          const Layout grid = layout.with_pixels(field.pixels);
          constexpr int D = std::decay_t<decltype(field)>::kDimensions;
          using T = typename std::decay_t<decltype(field)>::Scalar;
          using I = decltype(index);
          const auto run = [&](auto pixels) {
            constexpr int P = decltype(pixels)::value;
            const WarpWork<D, T, I> work(field, grid, padding_mode,
                                         channel_groups(grid, 1, P));
            launch(output, work.blocks(P), kThreads,
                   warp_nearest_kernel<P, D, V, T, I>, work, source, target);
          };
          constexpr int P = std::clamp<int>(16 / sizeof(V), 1, 4);
          if constexpr (sizeof(I) == 4) {
            if (fills_device(grid, P) && grid.pixels % P == 0 &&
                is_aligned(field.data, P * sizeof(T)) &&
                is_aligned(target, P * sizeof(V))) {
              return run(std::integral_constant<int, P>{});
            }
          }
          run(std::integral_constant<int, 1>{});
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
  dispatch_indexed(
      displacement, spatial_size(input), layout.channels,
      [&](const auto& field, auto index) {
        const Layout grid = layout.with_pixels(field.pixels);
        constexpr int D = std::decay_t<decltype(field)>::kDimensions;
        using T = typename std::decay_t<decltype(field)>::Scalar;
        using I = decltype(index);
        const auto run = [&](auto pack) {
          constexpr int W = decltype(pack)::value;
          const WarpWork<D, T, I> work(field, grid, padding_mode,
                                       channel_groups(grid, W), W);
          launch(output, work.blocks(), kThreads,
                 warp_interpolated_kernel<mode, D, W, V, S, T, I>, work, source,
                 values, target);
        };
        // Packs for the usual kinds only: each is a kernel of its own.
        if constexpr (mode == Mode::kLinear && D == 2 &&
                      std::is_same_v<T, float> && !std::is_same_v<V, double> &&
                      sizeof(I) == 4) {
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
  dispatch_field(displacement, spatial_size(input), [&](const auto& field) {
    spline_filter(output, input.const_data_ptr<V>(), coefficients,
                  layout_of(input), field.image_size,
                  static_cast<Padding>(padding_mode), false);
  });
  run_interpolated<Mode::kCubic, V, S>(input, coefficients, displacement,
                                       padding_mode, output);
}

}  // namespace

Tensor warp(const Tensor& input_, const Tensor& displacement_, int64_t mode,
            int64_t padding_mode) {
  check_warp(input_, displacement_, mode);
  const Tensor input = dense(input_);
  const Tensor displacement = as_float(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  Tensor output = empty_on_grid(input, spatial_size(displacement));
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
  m.impl("warp", TCWARP_BOX(tcwarp::cuda::warp));
}
