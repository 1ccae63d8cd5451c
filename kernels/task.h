// What the forward and the backward scan share: sizes derived from the problem, and the memory of each thread.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "selective_scan.h"
#include "simd.h"

namespace {

inline int64_t padded_channels(const avsseg_scan& s) {
  return (s.channels + AVSSEG_CHANNEL_PADDING - 1) / AVSSEG_CHANNEL_PADDING * AVSSEG_CHANNEL_PADDING;
}
inline int64_t projection_width(const avsseg_scan& s) { return s.rank + 2 * s.states; }
inline int64_t chunk_count(const avsseg_scan& s) {
  return (s.length + s.checkpoint_interval - 1) / s.checkpoint_interval;
}

// Lanes in use of the vector that starts at channel d.
inline int64_t lanes_at(const avsseg_scan& s, int64_t d) { return s.channels - d < kLanes ? s.channels - d : kLanes; }

inline int thread_number() {
#if defined(_OPENMP)
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// `count` elements for each thread, on cache lines of its own.
template <class Element>
class Workspace {
 public:
  Workspace(int64_t threads, int64_t count)
      : bytes_((count * static_cast<int64_t>(sizeof(Element)) + kAlignment) / kAlignment * kAlignment),
        memory_(static_cast<char*>(aligned_alloc(kAlignment, static_cast<size_t>(bytes_ * threads)))) {}
  ~Workspace() { free(memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  bool valid() const { return memory_ != nullptr; }
  Element* of(int thread) const { return reinterpret_cast<Element*>(memory_ + bytes_ * thread); }

 private:
  static constexpr int64_t kAlignment = 128;
  const int64_t bytes_;
  char* const memory_;
};

}  // namespace
