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

template <class T>
struct Task {
  const IntervalAttentionParams<T, double>& p;
  QueryRows rows;
  Scale scale;
  int64_t begin, end;  // rows of this panel
  const T* k;
  const T* v;

  Task(const IntervalAttentionParams<T, double>& params, int64_t index)
      : p(params), rows(params.shape), scale(params.shape.scale) {
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

inline double logsumexp_of(float greatest, float sum, const Scale& scale) {
  return sum == 0 ? -__builtin_inf() : (double)greatest * scale.of_score + __builtin_log((double)sum);
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
    t.p.logsumexp[at] = logsumexp_of(w.greatest[block * kBlockQueries + lane], sum, t.scale);
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
    Tile keys = rows_as_they_are(t.k + first * s.k.row, s.k.row, count, s.dim);
    Tile values = rows_as_they_are(t.v + first * s.v.row, s.v.row, count, s.value_dim);
    for (int64_t block = 0; block < blocks; ++block) {
      const SeenBy& seen = w.seen[block];
      const Sight sight = seen.sight(first, first + count);
      if (sight == Sight::none) continue;
      if (!keys.data) keys = load_rows(t.k + first * s.k.row, s.k.row, count, s.dim, w.keys, w.key_step);
      if (!values.data) values = load_rows(t.v + first * s.v.row, s.v.row, count, s.value_dim, w.values, w.value_step);
      multiply<Along::columns>(keys.data, keys.step, w.queries + block * s.dim * kBlockQueries, kBlockQueries,
                               round_up(count, kTileRows), s.dim, seen.vecs, w.scores, kBlockQueries, false);
      if (sight == Sight::some) seen.hide(w.scores, first, count);
      float* out = w.out + block * w.value_rows * kBlockQueries;
      online_softmax(w.scores, t.scale.of_score, count, seen.vecs, w.greatest + block * kBlockQueries, w.sum + block * kBlockQueries, out,
                     w.value_rows);
      multiply<Along::rows>(values.data, values.step, w.scores, kBlockQueries, w.value_rows, count, seen.vecs, out,
                            kBlockQueries, true);
    }
  }
  for (int64_t block = 0; block < blocks; ++block) store_block(t, w, block);
}

// One query of few.
struct Row {
  float *query, *out;  // (dim,), (value_dim,), both rounded up to kLanes
  float* weights;      // (kBlockKeys,)
  float greatest, sum;
  Spans spans;
};

// The softmax of a row goes on with its scores of a block of keys, -inf where it sees none; they become weights.
inline void add_scores(Row& row, float of_score, int64_t value_dim) {
  const Vec by = splat(of_score);
  Vec top = splat(row.greatest);
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) top = max(load<Vec>(row.weights + j), top);
  const float greatest = lane_max(top), shift = greatest == -__builtin_inff() ? 0 : greatest;
  Vec total = splat(0.0f);
  for (int64_t j = 0; j < kBlockKeys; j += kLanes) {
    const Vec weight = exp_or_zero((load<Vec>(row.weights + j) - splat(shift)) * by);
    store(row.weights + j, weight);
    total += weight;
  }
  const Vec keep = exp_or_zero(splat(row.greatest - shift) * by);
  row.sum = row.sum * keep[0] + lane_sum(total);
  if (row.greatest != greatest)
    for (int64_t e = 0; e < value_dim; e += kLanes) store(row.out + e, load<Vec>(row.out + e) * keep);
  row.greatest = greatest;
}

// Few queries: a block of keys, in the first cache, meets all of them, and so does the block of values.
template <class T>
void run_few(const Task<T>& t, Workspace& w) {
  const IntervalAttentionShape& s = t.p.shape;
  const int64_t dim = round_up(s.dim, kLanes), value_dim = round_up(s.value_dim, kLanes), count = t.end - t.begin;
  static_assert(kPanel >= kFew * kLanes, "the queries of a panel leave room for few, rounded up");
  static_assert(kBlockQueries >= kFew && kBlockKeys % kLanes == 0, "the scores of a block leave room for few");
  Row rows[kFew];
  for (int64_t i = 0; i < count; ++i) {
    rows[i] = {w.queries + i * dim, w.out + i * value_dim, w.scores + i * kBlockKeys, -__builtin_inff(), 0,
               t.rows.spans(t.p.intervals, s.interval_batch, t.begin + i)};
    fill(rows[i].query, dim, 0);
    fill(rows[i].out, value_dim, 0);
    widen_row(t.rows.row(t.p.q, s.q, t.begin + i), s.dim, rows[i].query);
    for (int64_t d = 0; d < s.dim; ++d) rows[i].query[d] *= t.scale.of_query;
  }
  for (int64_t first = 0; first < s.num_keys; first += kBlockKeys) {
    bool any[kFew];
    for (int64_t i = 0; i < count; ++i) {
      Row& row = rows[i];
      any[i] = false;
      fill(row.weights, kBlockKeys, -__builtin_inff());
      row.spans.each_within(first, first + kBlockKeys, [&](int64_t begin, int64_t stop) {
        dots(row.query, t.k + begin * s.k.row, s.k.row, stop - begin, s.dim, row.weights + begin - first);
        any[i] = true;
      });
      if (any[i]) add_scores(row, t.scale.of_score, value_dim);
    }
    for (int64_t i = 0; i < count; ++i)
      rows[i].spans.each_within(first, first + kBlockKeys, [&](int64_t begin, int64_t stop) {
        add_rows(rows[i].out, rows[i].weights + begin - first, t.v + begin * s.v.row, s.v.row, stop - begin, s.value_dim);
      });
  }
  for (int64_t i = 0; i < count; ++i) {
    const Row& row = rows[i];
    const int64_t at = t.rows.index(t.begin + i);
    const float inverse = row.sum == 0 ? 0 : 1 / row.sum;
    for (int64_t e = 0; e < s.value_dim; ++e) t.p.out[at * s.value_dim + e] = narrow<T>(row.out[e] * inverse);
    t.p.logsumexp[at] = logsumexp_of(row.greatest, row.sum, t.scale);
  }
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
void run_few(const Task<double>& t, Workspace& w) { run_panel(t, w); }

}  // namespace

int64_t interval_attention_num_tasks(const IntervalAttentionShape& s) {
  return s.batch * s.kv_heads * ceil_div(s.heads / s.kv_heads * s.num_queries, kPanel);
}

template <class T>
bool interval_attention_tasks(const IntervalAttentionParams<T, double>& p, int64_t begin, int64_t end) {
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
      run_few(task, w);
  }
  return true;
}

#define PYRAMID_INSTANTIATE(T) \
  template bool interval_attention_tasks<T>(const IntervalAttentionParams<T, double>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
