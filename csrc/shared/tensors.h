// How a tensor is walked, and how its kind is turned into template arguments;
// host code for CPU and CUDA alike.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "errors.h"
#include "index.h"

namespace tcwarp {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What values are summed in: half precision in float32.
template <typename V>
using SumOf = std::conditional_t<std::is_same_v<V, double>, double, float>;

// Values of (N, C, *size) laid out as planes (channel_stride = pixels) or
// channels last (channel_stride = 1); nothing else reaches the kernels.
struct Layout {
  int64_t samples, channels, pixels;
  int64_t pixel_stride, channel_stride;

  int64_t sample_offset(int64_t n) const { return n * channels * pixels; }

  // Of a tensor that is laid out alike but has other pixels: an image is read
  // at those of a displacement.
  Layout with_pixels(int64_t count) const {
    Layout other = *this;
    other.pixels = count;
    if (pixel_stride == 1) other.channel_stride = count;
    return other;
  }
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

// The tensor itself where it is contiguous: asking torch for that costs as much
// as a small warp.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// The tensor itself where a kernel can walk it, otherwise a contiguous copy.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() || is_channels_last(tensor)
             ? tensor
             : torch::stable::contiguous(tensor);
}

inline int64_t pixels_of(const Tensor& tensor) {
  int64_t pixels = 1;
  for (int64_t k = 2; k < tensor.dim(); ++k) pixels *= tensor.size(k);
  return pixels;
}

inline Layout layout_of(const Tensor& tensor) {
  Layout layout{tensor.size(0), tensor.size(1), pixels_of(tensor), 1, 1};
  if (!tensor.is_contiguous()) {  // channels last
    layout.pixel_stride = layout.channels;
  } else {
    layout.channel_stride = layout.pixels;
  }
  return layout;
}

inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % std::min<int64_t>(16, bytes) ==
         0;
}

// Nearest copies bits, so pixels of a channels-last layout are copied in words
// as wide as their channels allow. Gives the width in bytes.
inline int64_t widen_channels(Layout& layout, int64_t width, const void* a,
                              const void* b) {
  while (layout.pixel_stride != 1 && layout.channels % 2 == 0 && width < 16 &&
         is_aligned(a, 2 * width) && is_aligned(b, 2 * width)) {
    width *= 2;
    layout.channels /= 2;
    layout.pixel_stride /= 2;
  }
  return width;
}

// An uninitialised tensor with the sizes, strides and type of `like`, which is
// dense. Torch's own goes through the dispatcher, which takes a quarter of the
// call of a warp of a few pixels.
inline Tensor empty_as(const Tensor& like) {
  int32_t type, device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      like.dim(), like.sizes().data(), like.strides().data(), type, device,
      like.get_device_index(), &handle));
  return Tensor(handle);
}

// An uninitialised tensor laid out and typed as `like`, with the spatial size
// of `grid`.
inline Tensor empty_on_grid(const Tensor& like,
                            const std::vector<int64_t>& grid) {
  std::vector<int64_t> shape{like.size(0), like.size(1)};
  shape.insert(shape.end(), grid.begin(), grid.end());
  bool same = true;
  for (int64_t k = 2; k < like.dim(); ++k) same &= like.size(k) == grid[k - 2];
  if (same) return empty_as(like);
  using torch::headeronly::MemoryFormat;
  const auto last = like.dim() == 4 ? MemoryFormat::ChannelsLast
                                    : MemoryFormat::ChannelsLast3d;
  return torch::stable::empty(
      shape, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      like.is_contiguous() ? MemoryFormat::Contiguous : last);
}

inline std::vector<int64_t> spatial_size(const Tensor& tensor) {
  std::vector<int64_t> size;
  for (int64_t k = 2; k < tensor.dim(); ++k) size.push_back(tensor.size(k));
  return size;
}

// A copy of `tensor` where it is not laid out as `like`, a dense tensor.
inline Tensor with_layout_of(const Tensor& tensor, const Tensor& like) {
  const bool planes = tensor.is_contiguous() && like.is_contiguous();
  const bool last = !like.is_contiguous() && is_channels_last(tensor);
  if (planes || last) return tensor;
  Tensor copy = empty_on_grid(like, spatial_size(tensor));
  torch::stable::copy_(copy, tensor);
  return copy;
}

// The length of an axis; checked in Python too, but not in what was exported or
// compiled.
inline int32_t checked_length(int64_t length) {
  STD_TORCH_CHECK(length <= kLongestAxis, "tcwarp: no axis may be longer ",
                  "than ", kLongestAxis, ", got ", length);
  return static_cast<int32_t>(length);
}

inline bool is_floating(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
    case ScalarType::BFloat16:
    case ScalarType::Float:
    case ScalarType::Double:
      return true;
    default:
      return false;
  }
}

// What a warp relies on, whoever calls it: a program that was exported does so
// without the checks in Python, which say in more words what is wrong.
inline void check_warp(const Tensor& image, const Tensor& displacement,
                       int64_t mode) {
  const int64_t axes = displacement.dim() - 2;
  STD_TORCH_CHECK((axes == 2 || axes == 3) && displacement.size(1) == axes &&
                      image.dim() == displacement.dim(),
                  "warp: input must have shape (N, C, *image), displacement "
                  "(N or 1, D, *size), with D = 2 or 3 axes");
  STD_TORCH_CHECK(
      displacement.size(0) == 1 || displacement.size(0) == image.size(0),
      "warp: displacement must have the samples of input, or one");
  STD_TORCH_CHECK(pixels_of(image) > 0 || pixels_of(displacement) == 0,
                  "warp: input must have pixels");
  STD_TORCH_CHECK(image.device() == displacement.device(),
                  "warp: input and displacement must be on one device");
  STD_TORCH_CHECK(
      is_floating(displacement) &&
          (static_cast<Mode>(mode) == Mode::kNearest || is_floating(image)),
      "warp: displacement must be floating, input too unless nearest");
  for (int64_t k = 2; k < displacement.dim(); ++k) {
    checked_length(displacement.size(k));
  }
}

// The shape (planes, *modes) of the coefficients of random fields.
inline std::vector<int64_t> coefficient_shape(
    int64_t planes, const std::vector<int64_t>& modes) {
  std::vector<int64_t> shape{planes};
  shape.insert(shape.end(), modes.begin(), modes.end());
  return shape;
}

// A displacement (N, D, *size), contiguous, as rows along the last axis, and
// the size of the image that it reads. One of one sample serves all. T is what
// it is computed in; one of half precision is read through `half` or `bfloat16`
// instead of `data`.
template <int D, typename T>
struct Field {
  static constexpr int kDimensions = D;
  using Scalar = T;

  const T* data = nullptr;
  const Half* half = nullptr;
  const BFloat16* bfloat16 = nullptr;
  int32_t size[D], image_size[D];
  int64_t pixels = 1, image_pixels = 1;
  int64_t sample_stride = 0;

  bool is_shared() const { return sample_stride == 0; }

  Field(const Tensor& displacement, const std::vector<int64_t>& image) {
    switch (displacement.scalar_type()) {
      case ScalarType::Half:
        half = displacement.const_data_ptr<Half>();
        break;
      case ScalarType::BFloat16:
        bfloat16 = displacement.const_data_ptr<BFloat16>();
        break;
      default:
        data = displacement.const_data_ptr<T>();
    }
    for (int k = 0; k < D; ++k) {
      size[k] = checked_length(displacement.size(2 + k));
      image_size[k] = checked_length(image[k]);
      pixels *= size[k];
      image_pixels *= image_size[k];
    }
    if (displacement.size(0) > 1) sample_stride = D * pixels;
  }
};

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

// Bits of one element: nearest copies them whatever they mean.
struct alignas(16) Bits128 {  // loaded and stored at once
  uint64_t low, high;
};

// Calls body with an unsigned type of that many bytes.
template <typename Body>
void dispatch_width(int64_t width, const Body& body) {
  switch (width) {
    case 1:
      return body(uint8_t{});
    case 2:
      return body(uint16_t{});
    case 4:
      return body(uint32_t{});
    case 8:
      return body(uint64_t{});
    case 16:
      return body(Bits128{});
  }
  STD_TORCH_CHECK(false, "warp: input elements of ", width,
                  " bytes are not supported");
}

// Calls body(field) with the Field<D, T> of a contiguous displacement that
// reads an image of that size.
template <typename Body>
void dispatch_field(const Tensor& displacement,
                    const std::vector<int64_t>& image, const Body& body) {
  const auto with_dimensions = [&](auto coordinate) {
    using T = decltype(coordinate);
    if (displacement.size(1) == 2) {
      body(Field<2, T>(displacement, image));
    } else {
      body(Field<3, T>(displacement, image));
    }
  };
  if (displacement.scalar_type() == ScalarType::Double) {
    with_dimensions(double{});
  } else {
    with_dimensions(float{});
  }
}

// Calls body(field, value) with a value of the type that the displacement is
// stored in as well.
template <typename Body>
void dispatch_stored(const Tensor& displacement,
                     const std::vector<int64_t>& image, const Body& body) {
  dispatch_field(displacement, image, [&](const auto& field) {
    using T = typename std::decay_t<decltype(field)>::Scalar;
    if constexpr (std::is_same_v<T, float>) {
      if (field.half != nullptr) return body(field, Half{});
      if (field.bfloat16 != nullptr) return body(field, BFloat16{});
    }
    body(field, T{});
  });
}

// Most elements of a sample, of the image or the field, that 32 bits count:
// some beyond the last pixel are counted as well, before they are left out.
// Tests make do with fewer.
#if !defined(TCWARP_MOST_32)
#define TCWARP_MOST_32 (2147483647 - (1 << 20))
#endif

// Calls body(field, index) with the type of offsets within a sample as well: 32
// bits, where they fit, are twice as many to a register.
template <typename Body>
void dispatch_indexed(const Tensor& displacement,
                      const std::vector<int64_t>& image, int64_t channels,
                      const Body& body) {
  constexpr int64_t most = TCWARP_MOST_32;
  dispatch_field(displacement, image, [&](const auto& field) {
    const int64_t elements = std::max(channels, displacement.size(1)) *
                             std::max(field.pixels, field.image_pixels);
    if (elements <= most) {
      body(field, int32_t{});
    } else {
      body(field, int64_t{});
    }
  });
}

// Calls body(field, padding, index) with a constant for the padding as well.
template <typename Body>
void dispatch_warp(const Tensor& displacement,
                   const std::vector<int64_t>& image, int64_t channels,
                   int64_t padding_mode, const Body& body) {
  dispatch_indexed(
      displacement, image, channels, [&](const auto& field, auto index) {
        dispatch_padding(padding_mode,
                         [&](auto padding) { body(field, padding, index); });
      });
}

}  // namespace tcwarp
