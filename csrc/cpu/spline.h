// From pixels to the coefficients of the cubic spline through them, axis by
// axis, and the transpose of that.
#pragma once

#include "../shared/spline.h"
#include "common.h"

namespace tcwarp::cpu {

// Solves the lines of one axis side by side: line l of `lines` starts at
// l * line_stride, its pixels are `step` apart. Input and output may be one.
template <typename V, typename S, typename LineStride, typename Step>
TCWARP_MULTIVERSION void filter_lines(const V* input, S* output, int64_t lines,
                                      LineStride line_stride, Step step,
                                      const SplineFilter<S>& filter,
                                      bool transposed) {
  const int64_t n = filter.n;
  for (int64_t k = 0; k < n; ++k) {
    const V* const from = input + k * step;
    S* const to = output + k * step;
    const auto eliminate = filter.elimination(k, transposed);
    if (k == 0) {
      for (int64_t l = 0; l < lines; ++l) {
        const int64_t at = l * line_stride;
        to[at] = eliminate(static_cast<S>(from[at]), S(0));
      }
      continue;
    }
    const S* const before = to - step;
    for (int64_t l = 0; l < lines; ++l) {
      const int64_t at = l * line_stride;
      to[at] = eliminate(static_cast<S>(from[at]), before[at]);
    }
  }
  for (int64_t k = n - 1; k >= 0; --k) {
    S* const to = output + k * step;
    const auto substitute = filter.substitution(k);
    if (k == n - 1) {
      for (int64_t l = 0; l < lines; ++l) {
        to[l * line_stride] = substitute(to[l * line_stride], S(0));
      }
      continue;
    }
    const S* const after = to + step;
    for (int64_t l = 0; l < lines; ++l) {
      const int64_t at = l * line_stride;
      to[at] = substitute(to[at], after[at]);
    }
  }
  if (!transposed) return;
  for (int64_t k = 0; k < n; k += n > 1 ? n - 1 : 1) {
    for (int64_t l = 0; l < lines; ++l) {
      output[k * step + l * line_stride] *= filter.corner;
    }
  }
}

// Filters every axis of a tensor of that layout; the first pass goes from input
// to output, which may be one, the others stay there.
template <int D, typename V, typename S>
void spline_filter(const V* input, S* output, const Layout& layout,
                   const int32_t (&size)[D], Padding padding, bool transposed) {
  constexpr int64_t kRows = 8;  // rows filtered side by side
  using One = std::integral_constant<int64_t, 1>;
  const int64_t total = layout.samples * layout.channels * layout.pixels;
  int64_t step = layout.pixel_stride;
  for (int k = D - 1; k >= 0; --k) {
    const SplineFilter<S> filter(size[k], padding);
    const int64_t n = size[k], lines = total / n;
    const auto pass = [&](const auto* from) {
      if (step == 1) {
        torch::stable::parallel_for(
            0, (lines + kRows - 1) / kRows, 1 + kGrainWork / (kRows * n),
            [&](int64_t begin, int64_t end) {
              for (int64_t task = begin; task < end; ++task) {
                const int64_t first = task * kRows;
                filter_lines(from + first * n, output + first * n,
                             std::min(kRows, lines - first), n, One{}, filter,
                             transposed);
              }
            });
        return;
      }
      // Neighbours along the last axis (and the channels) side by side, as many
      // as the second cache holds.
      const int64_t chunk =
          std::min(step, std::max<int64_t>(16, (1 << 15) / n));
      const int64_t chunks = (step + chunk - 1) / chunk;
      torch::stable::parallel_for(
          0, lines / step * chunks, 1 + kGrainWork / (chunk * n),
          [&](int64_t begin, int64_t end) {
            for (int64_t task = begin; task < end; ++task) {
              const int64_t first = task % chunks * chunk;
              const int64_t at = task / chunks * step * n + first;
              filter_lines(from + at, output + at,
                           std::min(chunk, step - first), One{}, step, filter,
                           transposed);
            }
          });
    };
    if (k == D - 1) {
      pass(input);
    } else {
      pass(output);
    }
    step *= n;
  }
}

// Samples that are worked on together: few, so that their coefficients stay in
// the cache, and in little memory; enough for every thread to have a plane.
inline int64_t samples_at_once(const Layout& layout, bool all) {
  if (all) return layout.samples;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t channels = std::max<int64_t>(1, layout.channels);
  const int64_t few = std::max<int64_t>((1 << 20) / (channels * layout.pixels),
                                        (threads + channels - 1) / channels);
  return std::clamp<int64_t>(few, 1, layout.samples);
}

// Calls body(part, n) with the layout of those samples, n being the first; of
// all where they have a sum.
template <typename Body>
void for_few_samples(const Layout& layout, const Body& body, bool all = false) {
  Layout part = layout;
  part.samples = samples_at_once(layout, all);
  for (int64_t n = 0; n < layout.samples; n += part.samples) {
    part.samples = std::min(part.samples, layout.samples - n);
    body(part, n);
  }
}

// An uninitialised buffer for their coefficients.
template <typename S>
Tensor coefficient_buffer(const Layout& layout, bool all = false) {
  const auto type =
      std::is_same_v<S, double> ? ScalarType::Double : ScalarType::Float;
  Tensor buffer = torch::stable::empty(
      {layout.sample_offset(samples_at_once(layout, all))}, type);
  prefer_huge_pages(buffer);
  return buffer;
}

}  // namespace tcwarp::cpu
