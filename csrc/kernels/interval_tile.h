// What forward and backward of interval_attention share on the CPU: which query stands in which lane, which keys it sees.
#pragma once

#include "interval_attention.h"
#include "softmax_tile.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

// The keys of one query as two intervals that don't overlap.
struct Spans {
  int32_t a, b, c, d;

  Spans() : a(0), b(0), c(0), d(0) {}
  explicit Spans(const int32_t* from) : a(from[0]), b(from[1]), c(from[2]), d(from[3]) {
    if (a == b) {
      a = c, b = d, c = d = 0;
    } else if (c == d) {
      c = d = 0;
    } else if (c <= b && a <= d) {  // they overlap or touch
      a = a < c ? a : c, b = b > d ? b : d, c = d = 0;
    }
  }
  template <class Function>
  void each(const Function& function) const {
    for (int64_t j = a; j < b; ++j) function(j);
    for (int64_t j = c; j < d; ++j) function(j);
  }
  // function(begin, stop) for the parts of both that lie within [first, last).
  template <class Function>
  void each_within(int64_t first, int64_t last, const Function& function) const {
    const auto part = [&](int64_t begin, int64_t stop) {
      begin = begin < first ? first : begin;
      stop = stop > last ? last : stop;
      if (begin < stop) function(begin, stop);
    };
    part(a, b);
    part(c, d);
  }
};

// The queries that read one head of keys: row r is query r % S of the r / S-th of its query heads.
struct QueryRows {
  int64_t count;
  int64_t batch = 0, kv_head = 0;
  int64_t group, num_queries, heads;

  explicit QueryRows(const IntervalAttentionShape& s)
      : count(s.heads / s.kv_heads * s.num_queries),
        group(s.heads / s.kv_heads),
        num_queries(s.num_queries),
        heads(s.heads) {}
  int64_t head(int64_t r) const { return kv_head * group + r / num_queries; }
  template <class T>
  const T* row(const T* base, const HeadStrides& strides, int64_t r) const {
    return base + batch * strides.batch + head(r) * strides.head + r % num_queries * strides.row;
  }
  // Of row r among the (B, H, S) of a contiguous tensor.
  int64_t index(int64_t r) const { return (batch * heads + head(r)) * num_queries + r % num_queries; }
  Spans spans(const int32_t* intervals, int64_t interval_batch, int64_t r) const {
    return Spans(intervals + batch * interval_batch + r % num_queries * 4);
  }
};

// A positive scale is applied to differences of scores, where it does not blow up their rounding; any other to q.
struct Scale {
  float of_query, of_score;
  explicit Scale(double scale) : of_query(scale > 0 ? 1 : (float)scale), of_score(scale > 0 ? (float)scale : 1) {}
};

constexpr int64_t kFew = 4;  // queries of a head of keys up to which lanes run along D, or along the keys, in forward

enum class Sight { none, some, all };

// The intervals of a block of queries, in lanes.
struct SeenBy {
  int32_t a[kBlockQueries], b[kBlockQueries], c[kBlockQueries], d[kBlockQueries];
  int64_t vecs;

  // Rows [first, end) at most; the lanes behind them repeat the last row.
  void load(const QueryRows& rows, const int32_t* intervals, int64_t interval_batch, int64_t first, int64_t end) {
    const int64_t left = end - first;
    vecs = left < kBlockQueries ? ceil_div(left, (int64_t)kLanes) : kTileVecs;
    for (int64_t lane = 0; lane < kBlockQueries; ++lane) {
      const Spans s = rows.spans(intervals, interval_batch, first + (lane < left ? lane : left - 1));
      a[lane] = s.a, b[lane] = s.b, c[lane] = s.c, d[lane] = s.d;
    }
  }

  // What the block sees of the keys [first, stop).
  Sight sight(int64_t first, int64_t stop) const {
    const int32_t f = (int32_t)first, s = (int32_t)stop;
    int32_t any = 0, all = -1;
    for (int64_t i = 0; i < kBlockQueries; ++i) {
      any |= -(int32_t)((a[i] < s) & (b[i] > f) & (a[i] < b[i])) | -(int32_t)((c[i] < s) & (d[i] > f) & (c[i] < d[i]));
      all &= -(int32_t)((a[i] <= f) & (b[i] >= s)) | -(int32_t)((c[i] <= f) & (d[i] >= s));
    }
    return !any ? Sight::none : all ? Sight::all : Sight::some;
  }

  PYRAMID_INLINE IVec of_key(int64_t vec, int32_t key) const {
    const IVec j = (IVec){} + key;
    const auto at = [&](const int32_t* from) { return kernels::PYRAMID_ISA::load<IVec>(from + vec * kLanes); };
    return ((at(a) <= j) & (j < at(b))) | ((at(c) <= j) & (j < at(d)));
  }

  // Scores (count, kBlockQueries) of the keys from `first` on: -inf where they are not seen.
  void hide(float* scores, int64_t first, int64_t count) const {
    const Vec nothing = splat(-__builtin_inff());
    for (int64_t v = 0; v < vecs; ++v)
      for (int64_t j = 0; j < count; ++j) {
        float* const at = scores + j * kBlockQueries + v * kLanes;
        store(at, select(of_key(v, (int32_t)(first + j)), kernels::PYRAMID_ISA::load<Vec>(at), nothing));
      }
  }
};

// A row length in floats, at least `count`: an odd number of cache lines, so that neighbouring rows meet in no set.
PYRAMID_INLINE int64_t odd_lines(int64_t count) { return (ceil_div(count, (int64_t)16) | 1) * 16; }

struct Tile {
  const float* data;
  int64_t step;
};

// Rows [0, count) of a strided (count, dim) as float, zeros up to whole tiles in both directions.
template <class T>
inline Tile load_rows(const T* from, int64_t from_step, int64_t count, int64_t dim, float* to, int64_t to_step) {
  for (int64_t j = 0; j < count; ++j) {
    widen_row(from + j * from_step, dim, to + j * to_step);
    fill(to + j * to_step + dim, round_up(dim, kTileRows) - dim, 0);
  }
  for (int64_t j = count; j < round_up(count, kTileRows); ++j) fill(to + j * to_step, round_up(dim, kTileRows), 0);
  return {to, to_step};
}

// The rows themselves where they are whole tiles already, one behind the other (and so meet in no set); or none.
template <class T>
inline Tile rows_as_they_are(const T* from, int64_t step, int64_t count, int64_t dim) {
  if constexpr (sizeof(T) == 4)
    if (step == dim && count % kTileRows == 0 && dim % kTileRows == 0) return {from, step};
  return {nullptr, 0};
}

PYRAMID_INLINE float lane_sum(Vec x) {
  float sum = x[0];
  for (int i = 1; i < kLanes; ++i) sum += x[i];
  return sum;
}

// Lanes with the bit kStep: b[l] + b[l ^ kStep]; the others: the same of a.
template <int kStep>
PYRAMID_INLINE Vec fold(Vec a, Vec b) {
  IVec same, other;
  for (int l = 0; l < kLanes; ++l) {
    same[l] = l & kStep ? l + kLanes : l;
    other[l] = l & kStep ? (l ^ kStep) + kLanes : l ^ kStep;
  }
  return shuffle(a, b, same) + shuffle(a, b, other);
}
template <int kStep>
PYRAMID_INLINE void fold_all(Vec* x) {
  if constexpr (kStep > 0) {
    for (int i = 0; i < kStep; ++i) x[i] = fold<kStep>(x[i], x[i + kStep]);
    fold_all<kStep / 2>(x);
  }
}

// Up to kLanes numbers, zeros behind them.
template <class T>
PYRAMID_INLINE Vec load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load_wide(from);
  Vec some = splat(0.0f);
  for (int64_t i = 0; i < count; ++i) some[i] = widen(from[i]);
  return some;
}

// a has zeros up to a multiple of kLanes.
template <class T>
inline float dot(const float* a, const T* b, int64_t count) {
  Vec sum = splat(0.0f);
  for (int64_t i = 0; i < count; i += kLanes) sum = fma(load<Vec>(a + i), load_some(b + i, count - i), sum);
  return lane_sum(sum);
}

// out_j = a . row_j, kLanes rows at a time; a as above. A sum per row, and one fold of all to get each into its lane.
template <class T>
inline void dots(const float* a, const T* rows, int64_t step, int64_t count, int64_t dim, float* out) {
  for (int64_t j = 0; j < count; j += kLanes) {
    const int64_t last = count - j - 1;
    Vec sums[kLanes];
    for (int l = 0; l < kLanes; ++l) sums[l] = splat(0.0f);
    const T* const row = rows + j * step;
    if (last >= kLanes - 1 && dim % kLanes == 0) {
      for (int64_t d = 0; d < dim; d += kLanes) {
        const Vec x = load<Vec>(a + d);
        for (int l = 0; l < kLanes; ++l) sums[l] = fma(x, load_wide(row + l * step + d), sums[l]);
      }
    } else {
      for (int l = 0; l < kLanes; ++l)
        for (int64_t d = 0; d < dim; d += kLanes)
          sums[l] = fma(load<Vec>(a + d), load_some(row + (l < last ? l : last) * step + d, dim - d), sums[l]);
    }
    fold_all<kLanes / 2>(sums);
    if (last >= kLanes - 1)
      store(out + j, sums[0]);
    else
      for (int l = 0; l <= last; ++l) out[j + l] = sums[0][l];
  }
}

inline double dot_double(const double* a, const double* b, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// out (dim, rounded up to kLanes) += sum_j weights_j rows_j. Even and odd rows have sums of their own: a chain of additions
// fills the processor's pipeline only together with seven others.
template <class T>
inline void add_rows(float* out, const float* weights, const T* rows, int64_t step, int64_t count, int64_t dim) {
  int64_t e = 0;
  for (; e + 4 * kLanes <= dim; e += 4 * kLanes) {
    Vec even[4], odd[4];
    for (int i = 0; i < 4; ++i) even[i] = load<Vec>(out + e + i * kLanes), odd[i] = splat(0.0f);
    const T* row = rows + e;
    int64_t j = 0;
    for (; j + 2 <= count; j += 2, row += 2 * step) {
      const Vec w0 = splat(weights[j]), w1 = splat(weights[j + 1]);
      for (int i = 0; i < 4; ++i) even[i] = fma(w0, load_wide(row + i * kLanes), even[i]);
      for (int i = 0; i < 4; ++i) odd[i] = fma(w1, load_wide(row + step + i * kLanes), odd[i]);
    }
    if (j < count)
      for (int i = 0; i < 4; ++i) even[i] = fma(splat(weights[j]), load_wide(row + i * kLanes), even[i]);
    for (int i = 0; i < 4; ++i) store(out + e + i * kLanes, even[i] + odd[i]);
  }
  for (; e < dim; e += kLanes) {
    Vec sum = load<Vec>(out + e);
    for (int64_t j = 0; j < count; ++j) sum = fma(splat(weights[j]), load_some(rows + j * step + e, dim - e), sum);
    store(out + e, sum);
  }
}

}  // namespace
}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
