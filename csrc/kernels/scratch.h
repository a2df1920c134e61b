// Memory of a thread, aligned to cache lines; `data` is null where there is none. No header of the standard library: see
// isa.h.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "isa.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

struct Scratch {
  float* data;
  explicit Scratch(int64_t count) : data((float*)::aligned_alloc(64, (size_t)((count * 4 + 127) / 64 * 64))) {}
  ~Scratch() { ::free(data); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
};

// Parts of one Scratch, each starting on a cache line. With no memory it only counts.
struct Carver {
  float* data;
  int64_t count;
  float* take(int64_t part) {
    float* const start = data ? data + count : nullptr;
    count += (part + 15) / 16 * 16;
    return start;
  }
};

}  // namespace
}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
