// What the CPU kernels share: how their work is split.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "../shared/tensors.h"

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

// Pixels handled at once, channel by channel: long enough that the planes of
// several channels do not evict each other line by line, short enough that
// indices (nearest) or taps (linear) stay in the second cache.
constexpr int64_t kNearestTile = 1 << 15;
constexpr int64_t kLinearTile = 1 << 12;
constexpr int64_t kCubicTile = 1 << 10;

#if defined(__GNUC__)
#define TCWARP_INLINE __attribute__((always_inline))
#else
#define TCWARP_INLINE
#endif

// Room for one T that the calling thread keeps: up to a mebibyte, more than the
// stacks of some threads (musl gives 128 KiB) and too much to allocate for
// every tile. One at a time; not initialised.
template <typename T>
T& scratch() {
  static_assert(std::is_trivially_default_constructible_v<T>);
  struct Area {
    void* data = nullptr;
    std::size_t size = 0;
    ~Area() { std::free(data); }
  };
  thread_local Area area;
  constexpr std::size_t line = 64;
  constexpr std::size_t needed = (sizeof(T) + line - 1) / line * line;
  if (area.size < needed) {
    std::free(area.data);
    area.data = std::aligned_alloc(line, needed);
    area.size = area.data == nullptr ? 0 : needed;
    if (area.data == nullptr) throw std::bad_alloc();
  }
  return *static_cast<T*>(area.data);
}

// How many pixels ahead memory is asked for.
constexpr int64_t kAhead = 1024;

// Calls body(i) for i in [0, count) and asks ahead for the memory at
// address(i): a warp reads nearly a stream, but not nearly enough for the
// processor to see it. (Nearest, (8, 6, 512, 512) float, one core: 16 ms
// without, 7 ms with.)
template <typename Address, typename Body>
TCWARP_HOST_DEVICE void for_each_prefetched(int64_t count,
                                            const Address& address,
                                            const Body& body) {
  constexpr int64_t every = 8;
  int64_t i = 0;
#if defined(__GNUC__)
  for (; i + kAhead + every <= count; i += every) {
    __builtin_prefetch(address(i + kAhead));
    for (int64_t j = i; j < i + every; ++j) body(j);
  }
#endif
  for (; i < count; ++i) body(i);
}

// Consecutive pixels of one row of a field.
template <int D, typename T>
struct Run {
  const T* displacement[D];  // component k of the first pixel
  int32_t position[D];       // of the first pixel
  int32_t image_size[D];
  int64_t first;  // flat index of the first pixel
  int64_t count;
};

template <typename V>
TCWARP_MULTIVERSION void to_float(const V* __restrict from, int64_t count,
                                  float* __restrict to) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

// Calls body(run) for every run in pixels [begin, end) of sample n, a tile.
template <int D, typename T, typename Body>
void for_each_run(const Field<D, T>& field, int64_t n, int64_t begin,
                  int64_t end, const Body& body) {
  const int64_t width = field.size[D - 1];
  const T* displacement[D];  // component k of pixel begin
  struct Floats {
    float value[D][kNearestTile];
  };
  for (int k = 0; k < D; ++k) {
    const int64_t at = n * field.sample_stride + k * field.pixels + begin;
    displacement[k] = field.data == nullptr ? nullptr : field.data + at;
    if constexpr (std::is_same_v<T, float>) {
      if (field.data != nullptr) continue;
      float* const floats = scratch<Floats>().value[k];
      if (field.half != nullptr) to_float(field.half + at, end - begin, floats);
      if (field.bfloat16 != nullptr) {
        to_float(field.bfloat16 + at, end - begin, floats);
      }
      displacement[k] = floats;
    }
  }
  for (int64_t first = begin; first < end;) {
    Run<D, T> run;
    int64_t rest = first;
    for (int k = D - 1; k >= 0; --k) {
      run.image_size[k] = field.image_size[k];
      run.position[k] = static_cast<int32_t>(rest % field.size[k]);
      rest /= field.size[k];
      run.displacement[k] = displacement[k] + (first - begin);
    }
    run.first = first;
    run.count = std::min(end - first, width - run.position[D - 1]);
    body(run);
    first += run.count;
  }
}

// Work, in copied values, below which a second thread costs more than it saves.
constexpr int64_t kGrainWork = 1 << 15;

// Calls body(n, begin, end) in parallel over tiles of pixels of each sample.
template <typename Body>
void parallel_over_tiles(const Layout& layout, int64_t largest_tile,
                         int64_t work_per_pixel, const Body& body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t share =
      (layout.samples * layout.pixels + threads - 1) / threads;
  const int64_t tile = std::clamp<int64_t>(share, 1, largest_tile);
  const int64_t tiles = (layout.pixels + tile - 1) / tile;
  const int64_t work = std::min(tile, layout.pixels) * work_per_pixel;
  const int64_t grain = 1 + kGrainWork / std::max<int64_t>(1, work);
  torch::stable::parallel_for(
      0, layout.samples * tiles, grain, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t first = task % tiles * tile;
          body(task / tiles, first, std::min(first + tile, layout.pixels));
        }
      });
}

// Asks for huge pages behind a large result that is about to be written: a
// fresh one costs a page fault for each 4 KiB otherwise. A hint; where it is
// not taken nothing changes.
inline void prefer_huge_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 1 << 21;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  const uintptr_t end = begin + tensor.numel() * tensor.element_size();
  const uintptr_t first = (begin + page - 1) / page * page;
  if (first + 4 * page <= end) {
    madvise(reinterpret_cast<void*>(first), (end - first) / page * page,
            MADV_HUGEPAGE);
  }
#else
  static_cast<void>(tensor);
#endif
}

// Calls body with the pixel stride, as a constant for planes: the hot loops are
// compiled without it then.
template <typename Body>
void dispatch_stride(int64_t pixel_stride, const Body& body) {
  if (pixel_stride == 1) {
    body(std::integral_constant<int64_t, 1>{});
  } else {
    body(pixel_stride);
  }
}

// Calls body(n, first channel, last channel) in parallel over groups of whole
// planes: a scatter then needs no atomics and adds in one fixed order.
template <typename Body>
void parallel_over_channels(const Layout& layout, const Body& body) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t groups = std::min(
      layout.channels, (threads + layout.samples - 1) / layout.samples);
  const int64_t grain =
      1 +
      kGrainWork / (layout.pixels * ((layout.channels + groups - 1) / groups));
  torch::stable::parallel_for(
      0, layout.samples * groups, grain, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) {
          const int64_t group = task % groups;
          body(task / groups, layout.channels * group / groups,
               layout.channels * (group + 1) / groups);
        }
      });
}

}  // namespace tcwarp::cpu
