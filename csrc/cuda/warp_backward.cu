// Warp, backward. By the image: a scatter, the adjoint of the gather. Threads
// that are neighbours read neighbouring gradients, and in smooth fields send
// them to neighbours: the memory system takes the atomics of a warp in few
// transactions. By the displacement: a gather.
#include "accumulate.cuh"
#include "spline.cuh"

namespace tcwarp::cuda {
namespace {

// P pixels, a block apart, and W neighbouring channels at a time. With
// whole_only (P = 1), what a cubic warp copies.
template <int D, int P, int W, typename V, typename T, typename I,
          typename Sums>
__global__ void backward_nearest_kernel(
    WarpWork<D, T, I> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    Sums sums,                       // (N, C, *image)
    Zeros<SumOf<V>> zeros, bool whole_only) {
  using S = SumOf<V>;
  zeros.write();
  for_each_item<P, kThreads>(work, [&](int64_t n, I group, I first) {
    PixelWork<D, T> at[P];
    I index[P], source[P];
    bool used[P];
#pragma unroll
    for (int p = 0; p < P; ++p) {
      source[p] = first + p * kThreads;
      used[p] = source[p] < work.pixels;
      at[p] = PixelWork<D, T>(work, n, used[p] ? source[p] : 0);
      if (P == 1 && whole_only) used[p] &= is_whole(at[p].displacement);
    }
    with_padding(work, [&](auto padding) {
#pragma unroll
      for (int p = 0; p < P; ++p) {
        const I found = source_of<decltype(padding)::value>(
            work, at[p].displacement, at[p].position);
        index[p] = used[p] ? found : I(kOutside);
        source[p] *= work.pixel_stride;
      }
    });
    const auto sum = sums.of(n);
    for_each_batch<3>(work, group, [&](auto batch, const Planes<I>& plane) {
      constexpr int B = decltype(batch)::value;
      Pack<V, W> read[B][P];
#pragma unroll
      for (int b = 0; b < B; ++b) {
        const V* const from = gradient + n * work.sample_stride + plane[b];
#pragma unroll
        for (int p = 0; p < P; ++p) {
          if (index[p] >= 0) read[b][p] = load_once<W>(from + source[p]);
        }
      }
#pragma unroll
      for (int b = 0; b < B; ++b) {
#pragma unroll
        for (int p = 0; p < P; ++p) {
          if (index[p] < 0) continue;
          S values[W];
#pragma unroll
          for (int w = 0; w < W; ++w) {
            values[w] = static_cast<S>(read[b][p].value[w]);
          }
          sum.add(plane.of_image(b) + index[p], values);
        }
      }
    });
  });
}

// Which of a thread's taps the next thread of the warp has as well: where a
// field is smooth, tap t of one is tap t - 1 of the next, in every row. Their
// sums are handed on instead of being added to memory from both. Every thread
// of the warp takes part.
template <typename Taps>
struct Handover {
  unsigned rows = 0, along = 0;  // a bit for each row, and for each tap of one

  __device__ explicit Handover(const Taps& taps) {
    constexpr int K = Taps::K;
    const bool last = threadIdx.x % kWarp == kWarp - 1;
    int row = 0;
    taps.for_each_row([&](auto offset, auto) {
      const auto next = __shfl_down_sync(kWholeWarp, offset, 1);
      rows |= (!last && next == offset ? 1u : 0u) << row++;
    });
    const auto& offset = taps.offset[Taps::D - 1];
#pragma unroll
    for (int t = 1; t < K; ++t) {
      const auto next = __shfl_down_sync(kWholeWarp, offset[t - 1], 1);
      along |= (next == offset[t] ? 1u : 0u) << t;
    }
  }

  // Adds value * weight to all taps; those of weight 0 take no part of it.
  template <typename S, typename I, typename Sum>
  __device__ void scatter(const Taps& taps, S value, I plane,
                          const Sum& sum) const {
    constexpr int K = Taps::K;
    const bool has_previous = threadIdx.x % kWarp != 0;
    int row = 0;
    taps.for_each_row([&](auto offset, auto product) {
      const bool hands_on = (rows >> row++ & 1) != 0;
      S carried = 0;
#pragma unroll
      for (int t = K - 1; t >= 0; --t) {
        const auto weight = product * taps.weight[Taps::D - 1][t];
        S own = weight != 0 ? static_cast<S>(weight) * value : S(0);
        own += carried;
        const bool hands = t > 0 && hands_on && (along >> t & 1) != 0;
        if (!hands && own != S(0)) {
          sum.add(plane + offset + taps.offset[Taps::D - 1][t], own);
        }
        if (t > 0) {
          carried = __shfl_up_sync(kWholeWarp, hands ? own : S(0), 1);
          if (!has_previous) carried = S(0);
        }
      }
    });
  }
};

template <Mode mode, int D, int W, typename V, typename T, typename I,
          typename Sums>
__global__ void backward_interpolated_kernel(
    WarpWork<D, T, I> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    Sums sums,                       // (N, C, *size)
    Zeros<SumOf<V>> zeros) {
  using S = SumOf<V>;
  using Taps = Taps<mode, D, T, I>;
  zeros.write();
  for_each_item<1, 1>(work, [&](int64_t n, I group, I pixel) {
    const bool inside = pixel < work.pixels;
    const PixelWork<D, T> at(work, n, inside ? pixel : 0);
    const bool used =
        inside && !(mode == Mode::kCubic && is_whole(at.displacement));
    Taps taps(work, at);
    const auto sum = sums.of(n);
    const V* const source = gradient + n * work.sample_stride +
                            (inside ? pixel : 0) * work.pixel_stride;
    if constexpr (Sums::kMerges && W == 1 && sizeof(I) == 4) {
      if (!work.channels_last()) {
        if (!used) {
          for (T& weight : taps.weight[0]) weight = 0;
        }
        const Handover<Taps> handover(taps);
        for_each_batch<2>(work, group, [&](auto batch, const Planes<I>& plane) {
          constexpr int B = decltype(batch)::value;
          S value[B];
#pragma unroll
          for (int b = 0; b < B; ++b) {
            value[b] = static_cast<S>(load_once<1>(source + plane[b]).value[0]);
          }
#pragma unroll
          for (int b = 0; b < B; ++b) {
            handover.scatter(taps, value[b], plane.of_image(b), sum);
          }
        });
        return;
      }
    }
    if (!used) return;
    for_each_batch<1>(work, group, [&](auto, const Planes<I>& plane) {
      const auto read = load_once<W>(source + plane[0]);
      taps.for_each_corner([&](I offset, T weight) {
        if (weight == 0) return;
        S values[W];
#pragma unroll
        for (int w = 0; w < W; ++w) {
          values[w] = static_cast<S>(weight) * static_cast<S>(read.value[w]);
        }
        sum.add(plane.of_image(0) + offset, values);
      });
    });
  });
}

// The derivatives of a corner's weight by the displacement along each axis.
template <Mode mode, int D, typename T, typename I>
struct Slopes {
  const Taps<mode, D, T, I> taps, slopes;

  __device__ Slopes(const WarpWork<D, T, I>& work, const PixelWork<D, T>& at)
      : taps(work, at), slopes(work, at, true) {}

  // Calls body(offset, weights) for every corner.
  template <typename Body>
  __device__ void for_each_corner(const Body& body) const {
    constexpr int K = tap_count(mode);
    for_each_first_tap<K, D>([&](int a) {
      const I first = pick(taps.offset[0], a);
      const T w0 = pick(taps.weight[0], a), s0 = pick(slopes.weight[0], a);
#pragma unroll
      for (int b = 0; b < K; ++b) {
        const T w1 = taps.weight[1][b], s1 = slopes.weight[1][b];
        const I offset = first + taps.offset[1][b];
        if constexpr (D == 2) {
          body(offset, {s0 * w1, w0 * s1});
        } else {
#pragma unroll
          for (int c = 0; c < K; ++c) {
            const T w2 = taps.weight[2][c], s2 = slopes.weight[2][c];
            body(offset + taps.offset[2][c],
                 {s0 * w1 * w2, w0 * s1 * w2, w0 * w1 * s2});
          }
        }
      }
    });
  }
};

// One thread per pixel sums over all channels, and over the samples that share
// a field: no atomics, one order, and the precision of the wider of image and
// displacement. Values are read once for all axes.
template <Mode mode, int D, typename V, typename S, typename T, typename I>
__global__ void backward_displacement_kernel(
    WarpWork<D, T, I> work,
    const V* __restrict__ gradient,  // (N, C, *size)
    const S* __restrict__ values,    // (N, C, *image)
    T* __restrict__ output) {        // (N or 1, D, *size)
  using Sum = std::conditional_t<std::is_same_v<S, double>, double, T>;
  const I pixel = thread_index<I>();
  if (pixel >= work.pixels) return;
  const int64_t together = work.field_sample_stride == 0 ? work.samples : 1;
  for (int64_t n = blockIdx.z; n < work.samples / together; n += gridDim.z) {
    const Slopes<mode, D, T, I> slopes(work, PixelWork<D, T>(work, n, pixel));
    Sum sum[D] = {};
    for (int64_t m = n; m < n + together; ++m) {
      const V* const from =
          gradient + m * work.sample_stride + pixel * work.pixel_stride;
      const S* const source = values + m * work.image_sample_stride;
#pragma unroll 2
      for (I c = 0; c < work.channels; ++c) {
        const I plane = c * work.image_channel_stride;
        const auto factor = static_cast<Sum>(from[c * work.channel_stride]);
        Sum slope[D] = {};
        slopes.for_each_corner([&](I offset, const T(&weight)[D]) {
          const auto value = static_cast<Sum>(source[plane + offset]);
#pragma unroll
          for (int k = 0; k < D; ++k) {
            const Sum more = slope[k] + static_cast<Sum>(weight[k]) * value;
            slope[k] = weight[k] != 0 ? more : slope[k];
          }
        });
#pragma unroll
        for (int k = 0; k < D; ++k) {
          sum[k] += slope[k] * factor;
        }
      }
    }
#pragma unroll
    for (int k = 0; k < D; ++k) {
      output[(n * D + k) * work.pixels + pixel] = static_cast<T>(sum[k]);
    }
  }
}

template <typename V>
void run_backward_input(const Tensor& gradient, const Tensor& displacement,
                        Mode mode, int64_t padding_mode, bool deterministic,
                        Tensor& output) {
  using S = SumOf<V>;
  constexpr bool in_place = std::is_same_v<V, S>;
  const Layout layout = layout_of(gradient);
  const Layout image = layout.with_pixels(pixels_of(output));
  const V* const source = gradient.const_data_ptr<V>();
  // Half precision is summed in float32.
  Tensor buffer = in_place ? output : coefficient_buffer<S>(output);
  S* const target = buffer.mutable_data_ptr<S>();
  const int64_t pack = channel_pack(layout, source, target, sizeof(V));
  dispatch_indexed(
      displacement, spatial_size(output), layout.channels,
      [&](const auto& field, auto index) {
        constexpr int D = std::decay_t<decltype(field)>::kDimensions;
        using T = typename std::decay_t<decltype(field)>::Scalar;
        // Calls body(index) with the type of offsets. Integers are slow enough
        // for 64 bits everywhere: fewer kernels to compile.
        const auto with_index = [&](const auto& sums, const auto& body) {
          if constexpr (std::decay_t<decltype(sums)>::kMerges) {
            body(index);
          } else {
            body(int64_t{});
          }
        };
        const auto run = [&](auto i, auto kernel, int64_t P, int64_t W,
                             const auto& sums, const Chunk<S>& chunk,
                             auto... more) {
          Layout part = layout;
          part.samples = chunk.last - chunk.first;
          WarpWork<D, T, decltype(i)> work(field, layout, padding_mode,
                                           channel_groups(part, W, P), W);
          work.first = chunk.first;
          work.samples = chunk.last;
          launch(output, work.blocks(P), kThreads, kernel, work, source, sums,
                 chunk.zeros, more...);
        };
        const auto nearest = [&](const auto& sums, const Chunk<S>& chunk,
                                 bool whole_only) {
          using Sums = std::decay_t<decltype(sums)>;
          with_index(sums, [&](auto i) {
            using I = decltype(i);
            if constexpr (std::is_same_v<V, float> && sizeof(I) == 4) {
              if (pack == 4) {
                return run(i, backward_nearest_kernel<D, 1, 4, V, T, I, Sums>,
                           1, 4, sums, chunk, whole_only);
              } else if (pack == 2) {
                return run(i, backward_nearest_kernel<D, 1, 2, V, T, I, Sums>,
                           1, 2, sums, chunk, whole_only);
              }
              if (sizeof(T) == 4 && !whole_only && fills_device(layout, 2)) {
                return run(i, backward_nearest_kernel<D, 2, 1, V, T, I, Sums>,
                           2, 1, sums, chunk, whole_only);
              }
            }
            run(i, backward_nearest_kernel<D, 1, 1, V, T, I, Sums>, 1, 1, sums,
                chunk, whole_only);
          });
        };
        const auto interpolated = [&](auto constant, const auto& sums,
                                      const Chunk<S>& chunk) {
          using Sums = std::decay_t<decltype(sums)>;
          constexpr Mode M = decltype(constant)::value;
          with_index(sums, [&](auto i) {
            using I = decltype(i);
            if constexpr (M == Mode::kLinear && std::is_same_v<V, float> &&
                          D == 2 && sizeof(I) == 4) {
              if (pack == 4) {
                return run(i,
                           backward_interpolated_kernel<M, D, 4, V, T, I, Sums>,
                           1, 4, sums, chunk);
              } else if (pack == 2) {
                return run(i,
                           backward_interpolated_kernel<M, D, 2, V, T, I, Sums>,
                           1, 2, sums, chunk);
              }
            }
            run(i, backward_interpolated_kernel<M, D, 1, V, T, I, Sums>, 1, 1,
                sums, chunk);
          });
        };
        const auto with = [&](bool fresh, const auto& scatter) {
          accumulate<V>(gradient, layout, image, deterministic, fresh, target,
                        scatter);
        };
        using Linear = std::integral_constant<Mode, Mode::kLinear>;
        using Cubic = std::integral_constant<Mode, Mode::kCubic>;
        switch (mode) {
          case Mode::kNearest:
            return with(true, [&](const auto& sums, const Chunk<S>& chunk) {
              nearest(sums, chunk, false);
            });
          case Mode::kLinear:
            return with(true, [&](const auto& sums, const Chunk<S>& chunk) {
              interpolated(Linear{}, sums, chunk);
            });
          case Mode::kCubic:
            // The gradient by the coefficients, then through the filter that
            // made them; what was copied goes straight back.
            with(true, [&](const auto& sums, const Chunk<S>& chunk) {
              interpolated(Cubic{}, sums, chunk);
            });
            spline_filter(output, static_cast<const S*>(target), target, image,
                          field.image_size, static_cast<Padding>(padding_mode),
                          true);
            with(false, [&](const auto& sums, const Chunk<S>& chunk) {
              nearest(sums, chunk, true);
            });
        }
      });
  if constexpr (!in_place) {
    const int64_t count = output.numel();
    launch(output, blocks_for(count), kThreads, convert_kernel<S, V>, count,
           static_cast<const S*>(target), output.mutable_data_ptr<V>());
  }
}

template <Mode mode, typename V, typename S>
void run_backward_displacement(const Tensor& gradient, const Tensor& input,
                               const S* values, const Tensor& displacement,
                               int64_t padding_mode, Tensor& output) {
  const Layout layout = layout_of(input);
  const V* const from = gradient.const_data_ptr<V>();
  dispatch_indexed(
      displacement, spatial_size(input), layout.channels,
      [&](const auto& field, auto index) {
        constexpr int D = std::decay_t<decltype(field)>::kDimensions;
        using T = typename std::decay_t<decltype(field)>::Scalar;
        using I = decltype(index);
        const WarpWork<D, T, I> work(field, layout.with_pixels(field.pixels),
                                     padding_mode, 1);
        launch(output, blocks_for(work.pixels, 1, displacement.size(0)),
               kThreads, backward_displacement_kernel<mode, D, V, S, T, I>,
               work, from, values, output.mutable_data_ptr<T>());
      });
}

}  // namespace

Tensor warp_backward_input(const Tensor& gradient_, const Tensor& displacement_,
                           int64_t mode, int64_t padding_mode,
                           bool deterministic,
                           const std::optional<std::vector<int64_t>>& image) {
  const Tensor gradient = dense(gradient_);
  const Tensor displacement = as_float(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(
      gradient.get_device_index());
  Tensor output =
      empty_on_grid(gradient, image.value_or(spatial_size(gradient)));
  if (output.numel() == 0) return output;
  if (gradient.numel() == 0) return torch::stable::zero_(output);
  THO_DISPATCH_V2(gradient.scalar_type(), "warp_backward_input", AT_WRAP(([&] {
                    run_backward_input<scalar_t>(
                        gradient, displacement, static_cast<Mode>(mode),
                        padding_mode, deterministic, output);
                  })),
                  AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

Tensor warp_backward_displacement(const Tensor& gradient_, const Tensor& input_,
                                  const Tensor& displacement_, int64_t mode,
                                  int64_t padding_mode) {
  STD_TORCH_CHECK(static_cast<Mode>(mode) != Mode::kNearest,
                  "warp_backward_displacement: mode nearest has no gradient");
  const Tensor input = dense(input_);
  const Tensor displacement = as_float(displacement_);
  const torch::stable::accelerator::DeviceGuard guard(input.get_device_index());
  const Tensor gradient = with_layout_of(gradient_, input);
  Tensor output = empty_as(displacement);
  if (output.numel() == 0) {
    return torch::stable::to(output, displacement_.scalar_type());
  }
  if (gradient.numel() == 0) {  // no channels: nothing to launch a kernel for
    torch::stable::zero_(output);
    return torch::stable::to(output, displacement_.scalar_type());
  }
  THO_DISPATCH_V2(
      input.scalar_type(), "warp_backward_displacement", AT_WRAP(([&] {
        const auto* const source = input.const_data_ptr<scalar_t>();
        if (static_cast<Mode>(mode) == Mode::kLinear) {
          return run_backward_displacement<Mode::kLinear, scalar_t>(
              gradient, input, source, displacement, padding_mode, output);
        }
        using S = SumOf<scalar_t>;
        Tensor buffer = coefficient_buffer<S>(input);
        S* const coefficients = buffer.mutable_data_ptr<S>();
        dispatch_field(
            displacement, spatial_size(input), [&](const auto& field) {
              spline_filter(output, source, coefficients, layout_of(input),
                            field.image_size,
                            static_cast<Padding>(padding_mode), false);
            });
        run_backward_displacement<Mode::kCubic, scalar_t>(
            gradient, input, static_cast<const S*>(coefficients), displacement,
            padding_mode, output);
      })),
      AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return torch::stable::to(output, displacement_.scalar_type());
}

}  // namespace tcwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CUDA, m) {
  m.impl("warp_backward_input", TCWARP_BOX(tcwarp::cuda::warp_backward_input));
  m.impl("warp_backward_displacement",
         TCWARP_BOX(tcwarp::cuda::warp_backward_displacement));
}
