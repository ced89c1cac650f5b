// What the CPU kernels share: how a tensor is walked, and how work is split.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../shared/index.h"

// One build that is fast everywhere: the hot loops are compiled for several
// x86-64 levels and the loader picks one (AVX-512 gained nothing over AVX2 when
// measured). Other compilers use the baseline.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    __GNUC__ >= 12 && !defined(TCWARP_SINGLE_VERSION)
#define TCWARP_MULTIVERSION \
  __attribute__((target_clones("default", "arch=x86-64-v3")))
#else
#define TCWARP_MULTIVERSION
#endif

namespace tcwarp::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Pixels handled at once: their indices and weights stay in the first cache.
constexpr int64_t kChunk = 512;

// Values of (N, C, *size) laid out as planes (channel_stride = pixels) or
// channels last (channel_stride = 1); nothing else reaches the kernels.
struct Layout {
  int64_t samples, channels, pixels;
  int64_t pixel_stride, channel_stride;

  int64_t sample_offset(int64_t n) const { return n * channels * pixels; }
};

// Whether the values stand pixel by pixel, all channels of one together.
inline bool is_channels_last(const Tensor& tensor) {
  int64_t expected = 1;
  const auto matches = [&](int64_t axis) {
    const int64_t size = tensor.size(axis);
    const bool fits = size == 1 || tensor.stride(axis) == expected;
    expected *= size;
    return fits;
  };
  bool last = matches(1);
  for (int64_t axis = tensor.dim() - 1; axis > 1; --axis) {
    last = matches(axis) && last;
  }
  return matches(0) && last;
}

// The tensor itself where a kernel can walk it, otherwise a contiguous copy.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() || is_channels_last(tensor)
             ? tensor
             : torch::stable::contiguous(tensor);
}

inline Layout layout_of(const Tensor& tensor) {
  Layout layout{tensor.size(0), tensor.size(1), 1, 1, 1};
  for (int64_t k = 2; k < tensor.dim(); ++k) layout.pixels *= tensor.size(k);
  if (!tensor.is_contiguous()) {  // channels last
    layout.pixel_stride = layout.channels;
  } else {
    layout.channel_stride = layout.pixels;
  }
  return layout;
}

// A displacement (N, D, *size), contiguous, as rows along the last axis.
template <int D, typename T>
struct Field {
  const T* data;
  int32_t size[D];
  int64_t pixels;

  explicit Field(const Tensor& displacement)
      : data(displacement.const_data_ptr<T>()), pixels(1) {
    for (int k = 0; k < D; ++k) {
      size[k] = static_cast<int32_t>(displacement.size(2 + k));
      pixels *= size[k];
    }
  }
};

// A run of pixels [column, column + count) of one row of a field.
template <int D, typename T>
struct Run {
  const T* displacement[D];  // component k of its first pixel
  int32_t position[D];       // its first pixel
  int32_t size[D];
  int64_t first;  // flat index of its first pixel
  int64_t count;
};

// Calls body(run) for every run of at most kChunk pixels in [begin, end) of
// sample n.
template <int D, typename T, typename Body>
void for_each_run(const Field<D, T>& field, int64_t n, int64_t begin,
                  int64_t end, const Body& body) {
  const int64_t width = field.size[D - 1];
  for (int64_t first = begin; first < end;) {
    Run<D, T> run;
    int64_t rest = first;
    for (int k = D - 1; k >= 0; --k) {
      run.size[k] = field.size[k];
      run.position[k] = static_cast<int32_t>(rest % field.size[k]);
      rest /= field.size[k];
      run.displacement[k] = field.data + (n * D + k) * field.pixels + first;
    }
    run.first = first;
    run.count = std::min({end - first, width - run.position[D - 1], kChunk});
    body(run);
    first += run.count;
  }
}

// Calls body(n, begin, end) in parallel over ranges of pixels of each sample.
template <typename Body>
void parallel_over_pixels(const Layout& layout, int64_t work_per_pixel,
                          const Body& body) {
  constexpr int64_t grain_work = 1 << 15;
  const int64_t grain = std::max<int64_t>(
      kChunk, grain_work / std::max<int64_t>(1, work_per_pixel));
  const int64_t ranges = (layout.pixels + grain - 1) / grain;
  torch::stable::parallel_for(
      0, layout.samples * ranges, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task % ranges * grain;
          body(task / ranges, first, std::min(first + grain, layout.pixels));
        }
      });
}

// Calls body(n, first channel, last channel) in parallel over groups of whole
// planes: a scatter then needs no atomics and adds in one fixed order.
template <typename Body>
void parallel_over_channels(const Layout& layout, const Body& body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = std::min(
      layout.channels, (threads + layout.samples - 1) / layout.samples);
  torch::stable::parallel_for(
      0, layout.samples * groups, 1, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t group = task % groups;
          body(task / groups, layout.channels * group / groups,
               layout.channels * (group + 1) / groups);
        }
      });
}

// Calls body with a constant for the padding.
template <typename Body>
void dispatch_padding(int64_t padding_mode, const Body& body) {
  switch (static_cast<Padding>(padding_mode)) {
    case Padding::kZeros:
      return body(std::integral_constant<Padding, Padding::kZeros>{});
    case Padding::kBorder:
      return body(std::integral_constant<Padding, Padding::kBorder>{});
    case Padding::kReflection:
      return body(std::integral_constant<Padding, Padding::kReflection>{});
  }
  STD_TORCH_CHECK(false, "padding_mode code ", padding_mode, " is unknown");
}

// Calls body(field) with the Field<D, T> of a contiguous displacement.
template <typename Body>
void dispatch_field(const Tensor& displacement, const Body& body) {
  const auto with_dimensions = [&](auto coordinate) {
    using T = decltype(coordinate);
    if (displacement.size(1) == 2) {
      body(Field<2, T>(displacement));
    } else {
      body(Field<3, T>(displacement));
    }
  };
  if (displacement.scalar_type() == ScalarType::Double) {
    with_dimensions(double{});
  } else {
    with_dimensions(float{});
  }
}

// Calls body(field, padding, index) with the type of the indices as well: 32
// bits are twice as many to a register.
template <typename Body>
void dispatch_warp(const Tensor& displacement, const Layout& layout,
                   int64_t padding_mode, const Body& body) {
  dispatch_field(displacement, [&](const auto& field) {
    dispatch_padding(padding_mode, [&](auto padding) {
      if (layout.channels * layout.pixels <=
          std::numeric_limits<int32_t>::max()) {
        body(field, padding, int32_t{});
      } else {
        body(field, padding, int64_t{});
      }
    });
  });
}

}  // namespace tcwarp::cpu
