// Runs the blocks of a launch: threads are fibers, which change where they wait
// for each other. Blocks, and threads between two barriers, take another order
// at every launch, a permutation seeded with the launch's number. Under
// ThreadSanitizer all blocks run at once, each in a thread of the host.
#pragma once

#include <link.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include "watch.h"

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1)
      : x(x_), y(y_), z(z_) {}
};

inline dim3 gridDim, blockDim;
constexpr int warpSize = 32;

namespace emulation {

// What a barrier orders by. Two in turn: who is first at the next barrier must
// not be taken for one who came to this one.
struct Keys {
  char pair[2];
  unsigned turn = 0;
  void* now() { return &pair[turn % 2]; }
};

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Thread {
  static constexpr size_t kStackBytes = 1 << 17;

  ucontext_t context;
  // Not a vector, which would write, and so occupy, all of it.
  std::unique_ptr<char[]> stack;
  void* fiber = nullptr;
  dim3 index, block;
  State state;
  const char* call = "";  // what it waits in, and where
  int line = 0;
  unsigned mask = 0;
  Keys keys;                // of masks of which this is the first lane
  uint64_t value = 0;       // what it gives to its warp,
  uint64_t seen[warpSize];  // and what the lanes of the mask gave

  unsigned lane() const { return index.x % warpSize; }
};

struct Block {
  Thread* threads;
  unsigned count;
  const std::function<void()>* body;
  ucontext_t scheduler;
  void* fiber;
  Keys keys;
  char start, end;
};

inline thread_local Block* block = nullptr;
inline thread_local Thread* current = nullptr;

// What is undefined on a GPU ends the process here.
[[noreturn]] inline void fail(const Thread& thread, const char* what) {
  std::fprintf(stderr, "emulation: block (%u, %u, %u), thread %u, %s: %s\n",
               thread.block.x, thread.block.y, thread.block.z, thread.index.x,
               thread.call, what);
  std::abort();
}

// Reads nothing between telling and doing.
inline void change(ucontext_t* from, ucontext_t* to, void* fiber) {
  switch_to(fiber);
  swapcontext(from, to);
}

inline void wait(State state, const char* call, int line) {
  current->state = state;
  current->call = call;
  current->line = line;
  change(&current->context, &block->scheduler, block->fiber);
}

inline void barrier(int line) {
  void* const key = block->keys.now();
  release(key);
  wait(State::kAtBarrier, "__syncthreads", line);
  acquire(key);
}

// What every lane of the mask gives, once all of them have come. Alone it
// orders no memory, as on a GPU.
inline const uint64_t* exchange(const char* call, unsigned mask,
                                uint64_t value) {
  current->mask = mask;
  current->value = value;
  if ((mask >> current->lane() & 1) == 0) {
    current->call = call;
    fail(*current, "the mask does not name the thread itself");
  }
  wait(State::kInWarp, call, 0);
  return current->seen;
}

inline void warp_barrier(unsigned mask) {
  Thread* const warp = current - current->lane();
  void* const key = warp[mask == 0 ? 0 : __builtin_ctz(mask)].keys.now();
  release(key);
  exchange("__syncwarp", mask, 0);
  acquire(key);
}

// Lanes of the calling thread's warp that have not returned.
inline unsigned live_lanes() {
  const Unwatched unwatched;
  const unsigned first = current->index.x - current->lane();
  unsigned lanes = 0;
  for (unsigned l = 0; l < warpSize && first + l < block->count; ++l) {
    if (block->threads[first + l].state != State::kDone) lanes |= 1u << l;
  }
  return lanes;
}

// Not the sanitizer's: the first and the last access are the scheduler's, and
// it never returns.
__attribute__((no_sanitize_thread)) inline void enter() {
  acquire(&block->start);
  (*block->body)();
  release(&block->end);
  wait(State::kDone, "", 0);
}

// Reads of shared memory that nobody wrote give NaN or -1: all thread-local
// variables of this library, but the scheduler's own.
inline void poison_shared() {
  Block* const running = block;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* own) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          auto* const from = static_cast<char*>(info->dlpi_tls_data);
          if (header.p_type != PT_TLS || from == nullptr || own < from ||
              own >= from + header.p_memsz) {
            continue;
          }
          std::memset(from, 0xFF, header.p_memsz);
          return 1;
        }
        return 0;
      },
      &block);
  block = running;
}

// Runs every thread that can run until it waits; whether one is left.
inline bool sweep(const std::vector<unsigned>& order) {
  bool left = false;
  for (unsigned t : order) {
    Thread& thread = block->threads[t];
    if (thread.state == State::kReady) {
      current = &thread;
      change(&block->scheduler, &thread.context, thread.fiber);
    }
    left = left || thread.state != State::kDone;
  }
  return left;
}

// Threads that have returned take no part in barriers.
inline bool release_barrier() {
  Thread* first = nullptr;
  for (unsigned t = 0; t < block->count; ++t) {
    Thread& thread = block->threads[t];
    if (thread.state == State::kDone) continue;
    if (thread.state != State::kAtBarrier) return false;
    if (first == nullptr) first = &thread;
    if (thread.line != first->line) fail(thread, "others are at another one");
  }
  for (unsigned t = 0; t < block->count; ++t) {
    Thread& thread = block->threads[t];
    if (thread.state == State::kAtBarrier) thread.state = State::kReady;
  }
  ++block->keys.turn;
  return true;
}

// Lets the lanes go on for which `waiting` waits, if all of them have come.
inline bool release_lanes(const Thread& waiting, Thread* warp, unsigned count) {
  const unsigned mask = waiting.mask;
  uint64_t values[warpSize] = {};
  for (unsigned l = 0; l < warpSize; ++l) {
    if ((mask >> l & 1) == 0) continue;
    if (l >= count || warp[l].state == State::kDone) {
      fail(waiting, "the mask names a thread that has returned");
    }
    if (warp[l].state != State::kInWarp || warp[l].mask != mask ||
        std::strcmp(warp[l].call, waiting.call) != 0) {
      return false;
    }
    values[l] = warp[l].value;
  }
  for (unsigned l = 0; l < warpSize; ++l) {
    if ((mask >> l & 1) == 0) continue;
    std::memcpy(warp[l].seen, values, sizeof(values));
    warp[l].state = State::kReady;
  }
  ++warp[__builtin_ctz(mask)].keys.turn;
  return true;
}

// Lets those go on who have waited for each other.
inline void release_waiting() {
  bool released = release_barrier();
  for (unsigned t = 0; t < block->count; ++t) {
    const unsigned first = t - t % warpSize;
    if (block->threads[t].state != State::kInWarp) continue;
    released = release_lanes(block->threads[t], block->threads + first,
                             block->count - first) ||
               released;
  }
  for (unsigned t = 0; t < block->count && !released; ++t) {
    const Thread& thread = block->threads[t];
    if (thread.state == State::kInWarp) fail(thread, "lanes have diverged");
  }
}

inline void run_block(Block running, dim3 index,
                      const std::vector<unsigned>& order) {
  const Unwatched unwatched;
  block = &running;
  poison_shared();
  running.fiber = this_fiber();
  for (unsigned t = 0; t < running.count; ++t) {
    Thread& thread = running.threads[t];
    thread.index = dim3(t, 0, 0);
    thread.block = index;
    thread.state = State::kReady;
    if (thread.stack == nullptr) {
      thread.stack.reset(new char[Thread::kStackBytes]);
      thread.fiber = create_fiber();
    }
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.get();
    thread.context.uc_stack.ss_size = Thread::kStackBytes;
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, enter, 0);
  }
  release(&running.start);
  while (sweep(order)) release_waiting();
  acquire(&running.end);
}

inline std::vector<unsigned> shuffled(unsigned count, std::mt19937& random) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), random);
  return order;
}

inline void launch(dim3 blocks, unsigned threads,
                   const std::function<void()>& body) {
  static unsigned launches = 0;
  constexpr unsigned most = kWatched ? 4096 : 1024;  // fibers
  static Thread* const pool = new Thread[most];
  const unsigned count = blocks.x * blocks.y * blocks.z;
  if (kWatched && count * threads > most) {
    throw std::runtime_error("emulation: too many threads to run at once");
  }
  std::mt19937 random(++launches);
  gridDim = blocks;
  blockDim = dim3(threads);
  const std::vector<unsigned> order = shuffled(threads, random);
  std::vector<std::thread> running;
  for (unsigned b : shuffled(count, random)) {
    const dim3 index(b % blocks.x, b / blocks.x % blocks.y,
                     b / blocks.x / blocks.y);
    Thread* const own = pool + running.size() * threads;
    const auto run = [&, own, index] {
      run_block({own, threads, &body, {}, nullptr, {}, 0, 0}, index, order);
    };
    if (kWatched) {
      running.emplace_back(run);
    } else {
      run();
    }
  }
  for (std::thread& thread : running) thread.join();
}

}  // namespace emulation

#define threadIdx (emulation::current->index)
#define blockIdx (emulation::current->block)
