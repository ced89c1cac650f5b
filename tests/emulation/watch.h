// What ThreadSanitizer is told of the fibers, where it watches: each is a
// thread of its own, and only barriers order what two of them do.
#pragma once

#if defined(__SANITIZE_THREAD__)
extern "C" {
void* __tsan_create_fiber(unsigned flags);
void* __tsan_get_current_fiber();
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* key);
void __tsan_release(void* key);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}

namespace emulation {

constexpr bool kWatched = true;
inline void* create_fiber() { return __tsan_create_fiber(0); }
inline void* this_fiber() { return __tsan_get_current_fiber(); }
// 1: the switch itself orders nothing.
inline void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, 1); }
// What came before release(key) has happened before what follows acquire(key).
inline void acquire(void* key) { __tsan_acquire(key); }
inline void release(void* key) { __tsan_release(key); }

// The accesses of the scheduler are none of the kernels'.
struct Unwatched {
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
};

}  // namespace emulation
#else
namespace emulation {

constexpr bool kWatched = false;
inline void* create_fiber() { return nullptr; }
inline void* this_fiber() { return nullptr; }
inline void switch_to(void*) {}
inline void acquire(void*) {}
inline void release(void*) {}
struct Unwatched {
  Unwatched() {}
  ~Unwatched() {}
};

}  // namespace emulation
#endif
