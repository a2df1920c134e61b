// interval_attention on the CPU, forward. The lanes of vectors are queries: maxima, sums and masks never go across lanes,
// and both products have the one form of tile.h:
//   scores (keys, queries) = K Q^T          out^T (Dv, queries) += V^T P
// A task is a panel of queries that share a head of keys (those of all H / Hkv query heads). Each block of keys is copied
// once a panel into scratch (widened, rows apart by an odd number of cache lines) and then meets every block of queries
// that sees any of it. Few queries, as in decoding token by token, would leave the lanes empty: there the lanes run along D.
#include "interval_attention.h"

#include <cmath>

#include "interval_tile.h"
#include "scratch.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

constexpr int64_t kPanelBlocks = 5;
constexpr int64_t kPanel = kPanelBlocks * kBlockQueries;
constexpr int64_t kFew = 4;  // queries up to which the lanes run along D

template <class T>
struct Task {
  const IntervalAttentionParams<T>& p;
  QueryRows rows;
  Scale scale;
  int64_t begin, end;  // rows of this panel
  const T* k;
  const T* v;

  Task(const IntervalAttentionParams<T>& params, int64_t index) : p(params), rows(params.shape), scale(params.shape.scale) {
    const int64_t panels = ceil_div(rows.count, kPanel), pair = index / panels;
    rows.batch = pair / p.shape.kv_heads;
    rows.kv_head = pair % p.shape.kv_heads;
    begin = index % panels * kPanel;
    end = begin + kPanel < rows.count ? begin + kPanel : rows.count;
    k = p.k + rows.batch * p.shape.k.batch + rows.kv_head * p.shape.k.head;
    v = p.v + rows.batch * p.shape.v.batch + rows.kv_head * p.shape.v.head;
  }
};

struct Workspace {
  float *queries, *out, *greatest, *sum, *keys, *values, *scores, *row;
  int64_t key_step, value_step, value_rows;
  SeenBy* seen;

  static int64_t size(const IntervalAttentionShape& s) {
    Carver carver{nullptr, 0};
    Workspace().carve(carver, s);
    return carver.count;
  }
  void carve(Carver& carver, const IntervalAttentionShape& s) {
    key_step = odd_lines(s.dim);
    value_step = odd_lines(round_up(s.value_dim, kTileRows));
    value_rows = round_up(s.value_dim, kTileRows);
    queries = carver.take(kPanel * s.dim);
    out = carver.take(kPanel * value_rows);
    greatest = carver.take(kPanel);
    sum = carver.take(kPanel);
    keys = carver.take(kBlockKeys * key_step);
    values = carver.take(kBlockKeys * value_step);
    scores = carver.take(kBlockKeys * kBlockQueries);
    row = carver.take(s.dim > s.value_dim ? s.dim : s.value_dim);
    seen = (SeenBy*)carver.take(kPanelBlocks * (int64_t)(sizeof(SeenBy) / 4));
  }
};

template <class T>
void load_queries(const Task<T>& t, const Workspace& w) {
  for (int64_t r = t.begin; r < t.end; ++r) {
    const int64_t block = (r - t.begin) / kBlockQueries, lane = (r - t.begin) % kBlockQueries;
    widen_row(t.rows.row(t.p.q, t.p.shape.q, r), t.p.shape.dim, w.row);
    into_lane(w.row, t.p.shape.dim, t.scale.of_query, w.queries + block * t.p.shape.dim * kBlockQueries + lane);
  }
}

// Lanes behind the last query count as zeros: their results are dropped, but should cost no more than others.
template <class T>
void clear_lanes(const Task<T>& t, const Workspace& w) {
  for (int64_t at = t.end - t.begin; at % kLanes; ++at)
    for (int64_t d = 0; d < t.p.shape.dim; ++d)
      w.queries[(at / kBlockQueries * t.p.shape.dim + d) * kBlockQueries + at % kBlockQueries] = 0;
}

template <class T>
void store_block(const Task<T>& t, const Workspace& w, int64_t block) {
  const int64_t first = t.begin + block * kBlockQueries;
  for (int64_t lane = 0; lane < kBlockQueries && first + lane < t.end; ++lane) {
    const float sum = w.sum[block * kBlockQueries + lane], inverse = sum == 0 ? 0 : 1 / sum;
    const float* from = w.out + block * w.value_rows * kBlockQueries + lane;
    const int64_t at = t.rows.index(first + lane);
    T* to = t.p.out + at * t.p.shape.value_dim;
    for (int64_t e = 0; e < t.p.shape.value_dim; ++e) to[e] = narrow<T>(from[e * kBlockQueries] * inverse);
    t.p.logsumexp[at] = sum == 0 ? -__builtin_inff()
                                 : w.greatest[block * kBlockQueries + lane] * t.scale.of_score + (float)__builtin_log((double)sum);
  }
}

template <class T>
void run_panel(const Task<T>& t, Workspace& w) {
  const IntervalAttentionShape& s = t.p.shape;
  const int64_t blocks = ceil_div(t.end - t.begin, (int64_t)kBlockQueries);
  load_queries(t, w);
  clear_lanes(t, w);
  fill(w.out, blocks * w.value_rows * kBlockQueries, 0);
  fill(w.sum, blocks * kBlockQueries, 0);
  fill(w.greatest, blocks * kBlockQueries, -__builtin_inff());
  for (int64_t block = 0; block < blocks; ++block)
    w.seen[block].load(t.rows, t.p.intervals, s.interval_batch, t.begin + block * kBlockQueries, t.end);

  for (int64_t first = 0; first < s.num_keys; first += kBlockKeys) {
    const int64_t count = s.num_keys - first < kBlockKeys ? s.num_keys - first : kBlockKeys;
    bool loaded = false;
    for (int64_t block = 0; block < blocks; ++block) {
      const SeenBy& seen = w.seen[block];
      const Sight sight = seen.sight(first, first + count);
      if (sight == Sight::none) continue;
      if (!loaded) {
        load_rows(t.k + first * s.k.row, s.k.row, count, s.dim, w.keys, w.key_step);
        load_rows(t.v + first * s.v.row, s.v.row, count, s.value_dim, w.values, w.value_step);
        loaded = true;
      }
      multiply<Along::columns>(w.keys, w.key_step, w.queries + block * s.dim * kBlockQueries, kBlockQueries,
                               round_up(count, kTileRows), s.dim, seen.vecs, w.scores, kBlockQueries, false);
      if (sight == Sight::some) seen.hide(w.scores, first, count);
      float* out = w.out + block * w.value_rows * kBlockQueries;
      online_softmax(w.scores, t.scale.of_score, count, seen.vecs, w.greatest + block * kBlockQueries, w.sum + block * kBlockQueries, out,
                     w.value_rows);
      multiply<Along::rows>(w.values, w.value_step, w.scores, kBlockQueries, w.value_rows, count, seen.vecs, out,
                            kBlockQueries, true);
    }
  }
  for (int64_t block = 0; block < blocks; ++block) store_block(t, w, block);
}

// One query against the keys, lanes along D.
template <class T>
void run_row(const Task<T>& t, Workspace& w, int64_t r) {
  const IntervalAttentionShape& s = t.p.shape;
  const int64_t dim = round_up(s.dim, kLanes), value_dim = round_up(s.value_dim, kLanes);
  float* const query = w.queries;  // (dim,) then out (value_dim,): a panel is longer than both
  float* const out = w.out;
  fill(query, dim, 0);
  fill(out, value_dim, 0);
  widen_row(t.rows.row(t.p.q, s.q, r), s.dim, query);
  for (int64_t d = 0; d < s.dim; ++d) query[d] *= t.scale.of_query;
  const Spans spans = t.rows.spans(t.p.intervals, s.interval_batch, r);
  const Vec by = splat(t.scale.of_score);
  float greatest = -__builtin_inff(), sum = 0;
  for (int part = 0; part < 2; ++part) {
    const int64_t stop = part ? spans.d : spans.b;
    for (int64_t first = part ? spans.c : spans.a; first < stop; first += kBlockKeys) {
      const int64_t count = stop - first < kBlockKeys ? stop - first : kBlockKeys;
      float top = greatest;
      for (int64_t j = 0; j < count; ++j) {
        w.scores[j] = dot(query, t.k + (first + j) * s.k.row, s.dim);
        if (!(w.scores[j] <= top)) top = w.scores[j];
      }
      const float shift = top == -__builtin_inff() ? 0 : top;
      for (int64_t j = count; j < round_up(count, kLanes); ++j) w.scores[j] = -__builtin_inff();
      Vec total = splat(0.0f);
      for (int64_t j = 0; j < count; j += kLanes) {
        const Vec weight = exp_or_zero((load<Vec>(w.scores + j) - splat(shift)) * by);
        store(w.scores + j, weight);
        total += weight;
      }
      const Vec keep = exp_or_zero(splat(greatest - shift) * by);
      sum = sum * keep[0] + lane_sum(total);
      add_rows(out, keep, w.scores, t.v + first * s.v.row, s.v.row, count, s.value_dim);
      greatest = top;
    }
  }
  const int64_t at = t.rows.index(r);
  for (int64_t e = 0; e < s.value_dim; ++e) t.p.out[at * s.value_dim + e] = narrow<T>(sum == 0 ? 0 : out[e] / sum);
  t.p.logsumexp[at] = sum == 0 ? -__builtin_inff() : greatest * t.scale.of_score + (float)__builtin_log((double)sum);
}

// double is there for gradcheck: one query after the other.
void run_panel(const Task<double>& t, Workspace&) {
  const IntervalAttentionShape& s = t.p.shape;
  for (int64_t r = t.begin; r < t.end; ++r) {
    const double* q = t.rows.row(t.p.q, s.q, r);
    const int64_t at = t.rows.index(r);
    double* out = t.p.out + at * s.value_dim;
    const Spans spans = t.rows.spans(t.p.intervals, s.interval_batch, r);
    double greatest = -__builtin_inf(), sum = 0;
    spans.each([&](int64_t j) {
      const double score = dot_double(q, t.k + j * s.k.row, s.dim) * s.scale;
      if (!(score <= greatest)) greatest = score;
    });
    for (int64_t e = 0; e < s.value_dim; ++e) out[e] = 0;
    spans.each([&](int64_t j) {
      const double p = ::exp(dot_double(q, t.k + j * s.k.row, s.dim) * s.scale - greatest);
      sum += p;
      for (int64_t e = 0; e < s.value_dim; ++e) out[e] += p * t.v[j * s.v.row + e];
    });
    for (int64_t e = 0; e < s.value_dim; ++e) out[e] = sum == 0 ? 0 : out[e] / sum;
    t.p.logsumexp[at] = sum == 0 ? -__builtin_inf() : greatest + ::log(sum);
  }
}
void run_row(const Task<double>& t, Workspace& w, int64_t) { run_panel(t, w); }

}  // namespace

int64_t interval_attention_num_tasks(const IntervalAttentionShape& s) {
  return s.batch * s.kv_heads * ceil_div(s.heads / s.kv_heads * s.num_queries, kPanel);
}

template <class T>
bool interval_attention_tasks(const IntervalAttentionParams<T>& p, int64_t begin, int64_t end) {
  const Scratch scratch(sizeof(T) == 8 ? 1 : Workspace::size(p.shape));
  if (!scratch.data) return false;
  Workspace w{};
  Carver carver{scratch.data, 0};
  if (sizeof(T) != 8) w.carve(carver, p.shape);
  for (int64_t index = begin; index < end; ++index) {
    const Task<T> task(p, index);
    if (task.rows.count > kFew)
      run_panel(task, w);
    else
      for (int64_t r = task.begin; r < task.end; r += sizeof(T) == 8 ? kPanel : 1) run_row(task, w, r);
  }
  return true;
}

#define PYRAMID_INSTANTIATE(T) \
  template bool interval_attention_tasks<T>(const IntervalAttentionParams<T>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
