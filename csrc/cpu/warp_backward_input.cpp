// Warp, backward by the image: a scatter, the exact adjoint of the gather.
// Whole planes go to one thread, so sums need no atomics and have one order:
// the result does not depend on the number of threads.
#include "spline.h"
#include "taps.h"

namespace tcwarp::cpu {
namespace {

// Sums of some channels of one sample: those of the result itself, or those of
// a plane beside it.
template <typename S, typename Stride>
struct Sums {
  S* data;  // of channel `first`
  int64_t first;
  int64_t channel_stride;
  Stride pixel_stride;

  S* channel(int64_t c) const { return data + (c - first) * channel_stride; }
};

// The channels of half precision that are summed beside the result at a time:
// they share the indices and taps of their pixels.
constexpr int64_t kPlanes = 4;

template <typename S, typename V, typename From, typename To>
TCWARP_MULTIVERSION void convert(const S* __restrict from, From from_stride,
                                 int64_t count, V* __restrict to,
                                 To to_stride) {
  for (int64_t i = 0; i < count; ++i) {
    to[i * to_stride] = static_cast<V>(from[i * from_stride]);
  }
}

using One = std::integral_constant<int64_t, 1>;

// Calls body(values, stride) with one channel of a tile in the type that it is
// summed in: half precision is converted side by side, which costs a fraction
// of one by one.
template <typename V, typename From, typename Body>
void in_type_of_sum(const V* values, From stride, int64_t count,
                    const Body& body) {
  using S = SumOf<V>;
  if constexpr (std::is_same_v<V, S>) {
    body(values, stride);
  } else {
    auto& converted = scratch<S[kNearestTile]>();
    convert(values, stride, count, converted, One{});
    body(static_cast<const S*>(converted), One{});
  }
}

// target[index[i]] += gradient[i] for one channel of a tile.
template <typename V, typename S, typename Index, typename From, typename To>
void scatter(const V* gradient, From from, const Index* index, S* target, To to,
             int64_t count) {
  const auto at = [=](int64_t i) TCWARP_INLINE {
    return target + (index[i] < 0 ? 0 : index[i]) * to;
  };
  for_each_prefetched(count, at, [=](int64_t i) TCWARP_INLINE {
    if (index[i] >= 0) *at(i) += static_cast<S>(gradient[i * from]);
  });
}

// The same for channels [first, last) of a tile, channels last.
template <typename V, typename S, typename Index>
TCWARP_MULTIVERSION void scatter_pixels(const V* gradient, int64_t channels,
                                        int64_t first, int64_t last,
                                        const Index* index, S* target,
                                        int64_t count) {
  const auto at = [=](int64_t i) TCWARP_INLINE {
    return target + (index[i] < 0 ? 0 : index[i]) * channels;
  };
  for_each_prefetched(count, at, [=](int64_t i) TCWARP_INLINE {
    if (index[i] < 0) return;
    S* const pixel = at(i);
    const V* const values = gradient + i * channels;
    for (int64_t k = first; k < last; ++k) {
      pixel[k] += static_cast<S>(values[k]);
    }
  });
}

// target[corner] += weight * gradient[i] for one channel of a tile. The
// products of a few pixels are made side by side; sums keep the order of the
// pixels.
template <Mode mode, int D, typename S, typename Index>
TCWARP_MULTIVERSION void scatter_weighted(
    const S* __restrict gradient, const TileTaps<mode, D, S, Index>& taps,
    S* __restrict target, int64_t count) {
  constexpr int64_t kFew = 16;
  constexpr int kCorners = TileTaps<mode, D, S, Index>::kCorners;
  const auto add = [&](int64_t begin, auto few) TCWARP_INLINE {
    Index at[kCorners][kFew];
    S share[kCorners][kFew];
    for (int c = 0; c < kCorners; ++c) {
      for (int64_t j = 0; j < few; ++j) {
        const S weight = taps.corner_weight(c, begin + j);
        const S product = weight * gradient[begin + j];
        at[c][j] = taps.corner_index(c, begin + j);
        share[c][j] = weight != 0 ? product : S(0);
      }
    }
    for (int64_t j = 0; j < few; ++j) {
      for (int c = 0; c < kCorners; ++c) target[at[c][j]] += share[c][j];
    }
  };
  int64_t begin = 0;
  for (; begin + kFew <= count; begin += kFew) {
#if defined(__GNUC__)
    for (int64_t i = begin + kAhead; i < begin + kAhead + kFew; i += kFew / 2) {
      if (i < count) __builtin_prefetch(target + taps.corner_index(0, i));
    }
#endif
    add(begin, std::integral_constant<int64_t, kFew>{});
  }
  add(begin, count - begin);
}

// Channels [first, last) of a tile, channels last.
template <Mode mode, int D, typename V, typename S, typename W, typename Index>
TCWARP_MULTIVERSION void scatter_pixels(const V* gradient, int64_t channels,
                                        int64_t first, int64_t last,
                                        const TileTaps<mode, D, W, Index>& taps,
                                        S* target, int64_t count) {
  const auto at = [&](int64_t i, int c) TCWARP_INLINE {
    return target + taps.corner_index(c, i) * channels;
  };
  const auto address = [&](int64_t i) TCWARP_INLINE { return at(i, 0); };
  for_each_prefetched(count, address, [&](int64_t i) TCWARP_INLINE {
    const V* const values = gradient + i * channels;
    for (int c = 0; c < taps.kCorners; ++c) {
      const W weight = taps.corner_weight(c, i);
      if (weight == 0) continue;
      S* const pixel = at(i, c);
      for (int64_t k = first; k < last; ++k) {
        pixel[k] += weight * static_cast<S>(values[k]);
      }
    }
  });
}

// Calls add(n, first, last, sums, gradient stride) in parallel with zeroed Sums
// for channels [first, last) of sample n, and stores them in the result.
template <typename V, typename Add>
void sum_channels(const Layout& image, V* output, const Add& add) {
  using S = SumOf<V>;
  const auto sum = [&](int64_t n, int64_t begin, int64_t end, auto stride) {
    V* const target = output + image.sample_offset(n);
    const int64_t plane = image.channel_stride;
    if constexpr (std::is_same_v<V, S>) {
      if (plane == 1) {  // channels last
        for (int64_t i = 0; i < image.pixels; ++i) {
          std::fill(target + i * stride + begin, target + i * stride + end,
                    V(0));
        }
      } else {
        std::fill(target + begin * plane, target + end * plane, V(0));
      }
      add(n, begin, end, Sums<S, decltype(stride)>{target, 0, plane, stride},
          stride);
    } else {
      const int64_t pixels = image.pixels;
      std::vector<S> sums(std::min(kPlanes, end - begin) * pixels);
      for (int64_t first = begin; first < end; first += kPlanes) {
        const int64_t last = std::min(first + kPlanes, end);
        std::fill(sums.begin(), sums.end(), S(0));
        add(n, first, last, Sums<S, One>{sums.data(), first, pixels, One{}},
            stride);
        for (int64_t c = first; c < last; ++c) {
          convert(sums.data() + (c - first) * pixels, One{}, pixels,
                  target + c * plane, stride);
        }
      }
    }
  };
  parallel_over_channels(image, [&](int64_t n, int64_t begin, int64_t end) {
    dispatch_stride(image.pixel_stride,
                    [&](auto stride) { sum(n, begin, end, stride); });
  });
}

// Adds to `sums` what the channels [first, last) of sample n send to the pixels
// that they were copied from.
template <typename V, typename Index, typename AnySums, typename Stride>
void add_nearest(const V* gradient, const Fill<Index*>& fill_sources,
                 const Layout& grid, int64_t n, int64_t first, int64_t last,
                 const AnySums& sums, Stride stride, int64_t first_sample = 0) {
  auto& index = scratch<Index[kNearestTile]>();
  const V* const source = gradient + grid.sample_offset(n);
  for (int64_t begin = 0; begin < grid.pixels; begin += kNearestTile) {
    const int64_t end = std::min(begin + kNearestTile, grid.pixels);
    fill_sources(first_sample + n, begin, end, index);
    if (sums.pixel_stride != 1 && stride != 1) {
      scatter_pixels(source + begin * stride, stride, first, last, index,
                     sums.data, end - begin);
      continue;
    }
    for (int64_t c = first; c < last; ++c) {
      in_type_of_sum(source + c * grid.channel_stride + begin * stride, stride,
                     end - begin, [&](const auto* values, auto from) {
                       scatter(values, from, index, sums.channel(c),
                               sums.pixel_stride, end - begin);
                     });
    }
  }
}

template <typename V, typename Index>
void backward_nearest(const V* gradient, const Fill<Index*>& sources,
                      const Layout& image, int64_t pixels, V* output) {
  const Layout grid = image.with_pixels(pixels);
  sum_channels(image, output,
               [&](int64_t n, int64_t first, int64_t last, const auto& sums,
                   auto stride) {
                 add_nearest(gradient, sources, grid, n, first, last, sums,
                             stride);
               });
}

// `output` takes gradients by pixels, or by coefficients of a spline. Sample n
// of the images was read at the pixels of sample first_sample + n of the field.
template <Mode mode, int D, typename V, typename S, typename W, typename Index>
void backward_interpolated(const V* gradient,
                           const Fill<TileTaps<mode, D, W, Index>&>& fill_taps,
                           const Layout& image, int64_t pixels, S* output,
                           int64_t first_sample = 0) {
  const Layout grid = image.with_pixels(pixels);
  using Taps = TileTaps<mode, D, W, Index>;
  sum_channels(image, output,
               [&](int64_t n, int64_t first, int64_t last, const auto& sums,
                   auto stride) {
                 Taps& taps = scratch<Taps>();
                 const V* const source = gradient + grid.sample_offset(n);
                 for (int64_t begin = 0; begin < pixels; begin += Taps::kTile) {
                   const int64_t end = std::min(begin + Taps::kTile, pixels);
                   fill_taps(first_sample + n, begin, end, taps);
                   if (sums.pixel_stride != 1) {
                     scatter_pixels(source + begin * stride, stride, first,
                                    last, taps, sums.data, end - begin);
                     continue;
                   }
                   for (int64_t c = first; c < last; ++c) {
                     in_type_of_sum(
                         source + c * grid.channel_stride + begin * stride,
                         stride, end - begin, [&](const auto* values, auto) {
                           scatter_weighted(values, taps, sums.channel(c),
                                            end - begin);
                         });
                   }
                 }
               });
}

// The gradient by the coefficients, then through the filter that made them;
// what was copied goes straight back.
template <int D, typename V, typename S, typename Index>
void backward_cubic(const V* all_gradients,
                    const Fill<TileTaps<Mode::kCubic, D, S, Index>&>& taps,
                    const Fill<Index*>& whole, const Layout& layout,
                    int64_t pixels, const int32_t (&size)[D], Padding padding,
                    Tensor& output) {
  constexpr bool in_place = std::is_same_v<V, S>;
  const Layout grid = layout.with_pixels(pixels);
  Tensor buffer = in_place ? output : coefficient_buffer<S>(layout);
  for_few_samples(layout, [&](const Layout& part, int64_t first_sample) {
    const int64_t offset = layout.sample_offset(first_sample);
    const V* const gradient = all_gradients + grid.sample_offset(first_sample);
    S* const data = buffer.mutable_data_ptr<S>() + (in_place ? offset : 0);
    backward_interpolated(gradient, taps, part, pixels, data, first_sample);
    spline_filter(data, data, part, size, padding, true);
    parallel_over_channels(part, [&](int64_t n, int64_t first, int64_t last) {
      const Sums<S, int64_t> sums{data + part.sample_offset(n), 0,
                                  part.channel_stride, part.pixel_stride};
      add_nearest(gradient, whole, grid, n, first, last, sums,
                  part.pixel_stride, first_sample);
    });
    if constexpr (!in_place) {
      V* const target = output.mutable_data_ptr<V>() + offset;
      torch::stable::parallel_for(0, part.sample_offset(part.samples),
                                  kGrainWork, [&](int64_t begin, int64_t end) {
                                    convert(data + begin, One{}, end - begin,
                                            target + begin, One{});
                                  });
    }
  });
}

}  // namespace

Tensor warp_backward_input(const Tensor& gradient_, const Tensor& displacement_,
                           int64_t mode, int64_t padding_mode, bool,
                           const std::optional<std::vector<int64_t>>& size) {
  const Tensor gradient = dense(gradient_);
  const Tensor displacement = as_contiguous(displacement_);
  const auto image = size.value_or(spatial_size(gradient));
  Tensor output = empty_on_grid(gradient, image);
  if (output.numel() == 0) return output;
  if (gradient.numel() == 0) return torch::stable::zero_(output);
  prefer_huge_pages(output);
  const Layout layout = layout_of(gradient).with_pixels(pixels_of(output));
  THO_DISPATCH_V2(
      gradient.scalar_type(), "warp_backward_input", AT_WRAP([&] {
        const auto* const source = gradient.const_data_ptr<scalar_t>();
        auto* const target = output.mutable_data_ptr<scalar_t>();
        dispatch_warp(
            displacement, image, layout.channels, padding_mode,
            [&](const auto& field, auto padding, auto index) {
              using Index = decltype(index);
              using S = SumOf<scalar_t>;
              switch (static_cast<Mode>(mode)) {
                case Mode::kNearest:
                  return backward_nearest(
                      source, nearest_sources<padding(), Index>(field), layout,
                      field.pixels, target);
                case Mode::kLinear:
                  return backward_interpolated(
                      source,
                      taps_of<padding(), Mode::kLinear, S, Index>(field),
                      layout, field.pixels, target);
                case Mode::kCubic:
                  return backward_cubic(
                      source, taps_of<padding(), Mode::kCubic, S, Index>(field),
                      nearest_sources<padding(), Index, true>(field), layout,
                      field.pixels, field.image_size, padding(), output);
              }
            });
      }),
      AT_FLOATING_TYPES, ScalarType::Half, ScalarType::BFloat16);
  return output;
}

}  // namespace tcwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(tcwarp, CPU, m) {
  m.impl("warp_backward_input", TCWARP_BOX(tcwarp::cpu::warp_backward_input));
}
