// One step of the online softmax (1805.02867) over a tile of scores whose lanes are queries: no step goes across lanes.
#pragma once

#include "tile.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

constexpr int kBlockQueries = kTileVecs * kLanes;  // the queries of one block, in lanes
constexpr int kBlockKeys = 96;                     // the keys of one block: their scores stay in the first cache
static_assert(kBlockKeys % kTileRows == 0, "tiles fill a block of keys");

// exp(x) for x <= 0, exactly 0 below e^-87 (so also for -inf); NaN stays NaN.
PYRAMID_INLINE Vec exp_or_zero(Vec x) {
  const Vec least = splat(-87.0f);
  return select((IVec)(x < least), splat(0.0f), exp(max(least, x)));
}

// scores (keys, kBlockQueries) become exp(scale (score - greatest)), scale > 0; greatest and sum (kBlockQueries) go on,
// and what was summed before, out (out_rows, kBlockQueries), is brought to the new greatest. A lane that has seen -inf
// alone stays at 0. (The difference is taken before it is scaled: a small temperature does not blow up its rounding.)
inline void online_softmax(float* scores, float scale, int64_t keys, int64_t vecs, float* greatest, float* sum,
                           float* out, int64_t out_rows) {
  const Vec by = splat(scale);
  for (int64_t v = 0; v < vecs; ++v) {
    float* const column = scores + v * kLanes;
    const Vec before = load<Vec>(greatest + v * kLanes);
    Vec top = before, top2 = before;
    int64_t j = 0;
    for (; j + 2 <= keys; j += 2) {
      top = max(top, load<Vec>(column + j * kBlockQueries));
      top2 = max(top2, load<Vec>(column + (j + 1) * kBlockQueries));
    }
    if (j < keys) top = max(top, load<Vec>(column + j * kBlockQueries));
    top = max(top, top2);
    const Vec infinity = splat(__builtin_inff());
    const Vec shift = select((IVec)(top == -infinity), splat(0.0f), top);
    const Vec keep = exp_or_zero((before - shift) * by);
    Vec total = load<Vec>(sum + v * kLanes) * keep;
    for (j = 0; j < keys; ++j) {
      const Vec p = exp_or_zero((load<Vec>(column + j * kBlockQueries) - shift) * by);
      store(column + j * kBlockQueries, p);
      total += p;
    }
    store(sum + v * kLanes, total);
    if (greater_mask(top, before)) {
      for (int64_t r = 0; r < out_rows; ++r) {
        float* const row = out + r * kBlockQueries + v * kLanes;
        store(row, load<Vec>(row) * keep);
      }
    }
    store(greatest + v * kLanes, top);
  }
}

// Rows of numbers into the lanes: to[d * kBlockQueries + lane] = from[d]. One lane at a time.
PYRAMID_INLINE void into_lane(const float* from, int64_t count, float scale, float* to) {
  for (int64_t d = 0; d < count; ++d) to[d * kBlockQueries] = from[d] * scale;
}

}  // namespace
}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
