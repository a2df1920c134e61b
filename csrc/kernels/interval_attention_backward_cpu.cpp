// interval_attention on the CPU, backward. As forward (interval_attention_cpu.cpp), lanes are queries where scores are
// formed; the gradients of keys and values sum over queries, so there the lanes run along D:
//   P = exp(K Q^T - logsumexp)        dP = V dO^T               dS = P (dP - delta)          (keys, queries)
//   dV += P dO                        dK += dS Q                                             (keys, D)
//   dQ^T += K^T dS                                                                           (D, queries)
// delta is the mean of dP over the keys, weighted by P: on the spot where a block of queries sees one block of keys; by a
// pass of its own for few queries and for 16-bit numbers, whose out is rounded; else it is grad_out . out, which costs
// nothing, and is as exact where the softmax is not all but one key's.
// A task is a head of keys with all queries that read it: nothing is added up by two threads.
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
  const IntervalAttentionBackwardParams<T, double>& p;
  QueryRows rows;
  const T* k;
  const T* v;
  Scale scale;
  int64_t key_index;  // of the head among the (B, Hkv, Skv) of a contiguous tensor

  Task(const IntervalAttentionBackwardParams<T, double>& params, int64_t index)
      : p(params), rows(params.shape), scale(params.shape.scale) {
    rows.batch = index / p.shape.kv_heads;
    rows.kv_head = index % p.shape.kv_heads;
    k = p.k + rows.batch * p.shape.k.batch + rows.kv_head * p.shape.k.head;
    v = p.v + rows.batch * p.shape.v.batch + rows.kv_head * p.shape.v.head;
    key_index = index * p.shape.num_keys;
  }
};

struct Workspace {
  float *q, *q_lanes, *grad_out, *grad_out_lanes, *delta, *grad_q;  // of a panel
  float *logsumexp, *below, *total;                                 // its nearest float, what is left; the sum of P
  float *keys, *values, *p, *ds;                                    // of a block of keys
  float *grad_keys, *grad_values;                                   // of all keys
  SeenBy* seen;
  bool alone[kPanelBlocks];
  int64_t dim, value_dim, key_step, value_step, grad_q_rows, all_keys;

  static int64_t size(const IntervalAttentionShape& s) {
    Carver carver{nullptr, 0};
    Workspace().carve(carver, s);
    return carver.count;
  }
  void carve(Carver& carver, const IntervalAttentionShape& s) {
    dim = round_up(s.dim, kLanes);
    value_dim = round_up(s.value_dim, kLanes);
    key_step = odd_lines(dim);
    value_step = odd_lines(value_dim);
    grad_q_rows = round_up(s.dim, kTileRows);
    all_keys = round_up(s.num_keys, kTileRows);
    q = carver.take(kPanel * dim);
    q_lanes = carver.take(kPanel * s.dim);
    grad_out = carver.take(kPanel * value_dim);
    grad_out_lanes = carver.take(kPanel * s.value_dim);
    logsumexp = carver.take(kPanel);
    below = carver.take(kPanel);
    total = carver.take(kPanel);
    delta = carver.take(kPanel);
    grad_q = carver.take(kPanel * grad_q_rows);
    keys = carver.take(kBlockKeys * key_step);
    values = carver.take(kBlockKeys * value_step);
    p = carver.take(kBlockKeys * kBlockQueries);
    ds = carver.take(kBlockKeys * kBlockQueries);
    grad_keys = carver.take(all_keys * dim);
    grad_values = carver.take(all_keys * value_dim);
    seen = (SeenBy*)carver.take(kPanelBlocks * (int64_t)(sizeof(SeenBy) / 4));
  }
};

template <class T>
void load_panel(const Task<T>& t, Workspace& w, int64_t begin, int64_t end) {
  const IntervalAttentionShape& s = t.p.shape;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t at = r - begin, block = at / kBlockQueries, lane = at % kBlockQueries, index = t.rows.index(r);
    float* const q = w.q + at * w.dim;
    fill(q + s.dim, w.dim - s.dim, 0);
    widen_row(t.rows.row(t.p.q, s.q, r), s.dim, q);
    for (int64_t d = 0; d < s.dim; ++d) q[d] *= t.scale.of_query;
    into_lane(q, s.dim, 1, w.q_lanes + block * s.dim * kBlockQueries + lane);

    float* const grad_out = w.grad_out + at * w.value_dim;
    fill(grad_out + s.value_dim, w.value_dim - s.value_dim, 0);
    widen_row(t.p.grad_out + index * s.value_dim, s.value_dim, grad_out);
    into_lane(grad_out, s.value_dim, 1, w.grad_out_lanes + block * s.value_dim * kBlockQueries + lane);
    // Where nothing was seen every probability is exp(-infinity).
    const double logsumexp = t.p.logsumexp[index];
    const bool nothing = logsumexp == -__builtin_inf();
    w.logsumexp[at] = nothing ? __builtin_inff() : (float)logsumexp;
    w.below[at] = nothing ? 0 : (float)(logsumexp - (double)w.logsumexp[at]);
  }
  for (int64_t at = end - begin; at % kLanes; ++at) {  // lanes behind the last query
    const int64_t block = at / kBlockQueries, lane = at % kBlockQueries;
    for (int64_t d = 0; d < s.dim; ++d) w.q_lanes[(block * s.dim + d) * kBlockQueries + lane] = 0;
    for (int64_t e = 0; e < s.value_dim; ++e)
      w.grad_out_lanes[(block * s.value_dim + e) * kBlockQueries + lane] = 0;
    w.logsumexp[at] = w.below[at] = 0;
  }
}

// scores -> p in place, and ds from dp in place: (count, kBlockQueries).
inline void probabilities(float* scores, float scale, const float* logsumexp, const float* below, int64_t count,
                          int64_t vecs) {
  for (int64_t v = 0; v < vecs; ++v) {
    const Vec by = splat(scale), shift = -load<Vec>(logsumexp + v * kLanes), rest = load<Vec>(below + v * kLanes);
    for (int64_t j = 0; j < count; ++j) {
      float* const at = scores + j * kBlockQueries + v * kLanes;
      store(at, exp_or_zero(fma(load<Vec>(at), by, shift) - rest));
    }
  }
}

// delta += the sum of p dp over the keys, total += that of p.
inline void add_products(const float* p, const float* dp, int64_t count, int64_t vecs, float* delta, float* total) {
  for (int64_t v = 0; v < vecs; ++v) {
    Vec products = load<Vec>(delta + v * kLanes), weights = load<Vec>(total + v * kLanes);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = j * kBlockQueries + v * kLanes;
      products = fma(load<Vec>(p + at), load<Vec>(dp + at), products);
      weights += load<Vec>(p + at);
    }
    store(delta + v * kLanes, products);
    store(total + v * kLanes, weights);
  }
}

// grad_out . out of a block's queries, added up in the order of dP, so that the two cancel where a query sees one key.
template <class T>
void deltas_of_out(const Task<T>& t, Workspace& w, int64_t begin, int64_t block, int64_t count) {
  const int64_t value_dim = t.p.shape.value_dim;
  for (int64_t at = block * kBlockQueries; at < block * kBlockQueries + count; ++at) {
    const T* const out = t.p.out + t.rows.index(begin + at) * value_dim;
    const float* const grad_out = w.grad_out + at * w.value_dim;
    for (int64_t e = 0; e < value_dim; ++e) w.delta[at] = fma(grad_out[e], widen(out[e]), w.delta[at]);
  }
}

inline void divide(float* delta, const float* total) {
  for (int64_t lane = 0; lane < kBlockQueries; ++lane) delta[lane] /= total[lane] == 0 ? 1 : total[lane];
}

inline void score_gradients(const float* p, float* dp, const float* delta, int64_t count, int64_t vecs) {
  for (int64_t v = 0; v < vecs; ++v) {
    const Vec shift = load<Vec>(delta + v * kLanes);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = j * kBlockQueries + v * kLanes;
      store(dp + at, load<Vec>(p + at) * (load<Vec>(dp + at) - shift));
    }
  }
}

// A block of queries against a block of keys.
struct Pair {
  int64_t block, queries, first, count;
  Sight sight;
  bool alone;  // the queries see no other block of keys
};

// P and dP of a pair.
template <class T>
void probabilities_and_gradients(const Task<T>& t, Workspace& w, const Pair& pair) {
  const IntervalAttentionShape& s = t.p.shape;
  const SeenBy& seen = w.seen[pair.block];
  const int64_t at = pair.block * kBlockQueries, rows = round_up(pair.count, kTileRows);
  if (t.rows.count > kFew) {
    multiply<Along::columns>(w.keys, w.key_step, w.q_lanes + at * s.dim, kBlockQueries, rows, s.dim, seen.vecs, w.p,
                             kBlockQueries, false);
  } else {  // added up in the order of forward: a score that is rounded otherwise is no longer that of logsumexp
    fill(w.p, rows * kBlockQueries, 0);
    for (int64_t i = 0; i < pair.queries; ++i) {
      dots(w.q + (at + i) * w.dim, w.keys, w.key_step, pair.count, s.dim, w.ds);
      into_lane(w.ds, pair.count, 1, w.p + i);
    }
  }
  if (pair.sight == Sight::some) seen.hide(w.p, pair.first, pair.count);
  probabilities(w.p, t.scale.of_score, w.logsumexp + at, w.below + at, pair.count, seen.vecs);
  multiply<Along::columns>(w.values, w.value_step, w.grad_out_lanes + at * s.value_dim, kBlockQueries, rows,
                           s.value_dim, seen.vecs, w.ds, kBlockQueries, false);
}

template <class T>
void add_gradients(const Task<T>& t, Workspace& w, const Pair& pair) {
  probabilities_and_gradients(t, w, pair);
  const int64_t at = pair.block * kBlockQueries, rows = round_up(pair.count, kTileRows);
  const int64_t vecs = w.seen[pair.block].vecs;
  if (pair.alone) {
    add_products(w.p, w.ds, pair.count, vecs, w.delta + at, w.total + at);
    divide(w.delta + at, w.total + at);
  }
  multiply<Along::columns>(w.p, kBlockQueries, w.grad_out + at * w.value_dim, w.value_dim, rows, pair.queries,
                           w.value_dim / kLanes, w.grad_values + pair.first * w.value_dim, w.value_dim, true);
  score_gradients(w.p, w.ds, w.delta + at, pair.count, vecs);
  multiply<Along::columns>(w.ds, kBlockQueries, w.q + at * w.dim, w.dim, rows, pair.queries, w.dim / kLanes,
                           w.grad_keys + pair.first * w.dim, w.dim, true);
  multiply<Along::rows>(w.keys, w.key_step, w.ds, kBlockQueries, w.grad_q_rows, pair.count, vecs,
                        w.grad_q + at * w.grad_q_rows, kBlockQueries, true);
}

inline int64_t queries_of(int64_t block, int64_t num_queries) {
  const int64_t left = num_queries - block * kBlockQueries;
  return left < kBlockQueries ? left : (int64_t)kBlockQueries;
}

// function(pair) for each block of keys, loaded, and each block of the panel's queries that sees any of it.
template <class T, class Function>
void each_pair(const Task<T>& t, Workspace& w, int64_t num_queries, const Function& function) {
  const IntervalAttentionShape& s = t.p.shape;
  for (int64_t first = 0; first < s.num_keys; first += kBlockKeys) {
    const int64_t count = s.num_keys - first < kBlockKeys ? s.num_keys - first : kBlockKeys;
    bool loaded = false;
    for (int64_t block = 0; block * kBlockQueries < num_queries; ++block) {
      const Sight sight = w.seen[block].sight(first, first + count);
      if (sight == Sight::none) continue;
      if (!loaded) {
        load_rows(t.k + first * s.k.row, s.k.row, count, s.dim, w.keys, w.key_step);
        load_rows(t.v + first * s.v.row, s.v.row, count, s.value_dim, w.values, w.value_step);
        loaded = true;
      }
      function(Pair{block, queries_of(block, num_queries), first, count, sight, w.alone[block]});
    }
  }
}

inline bool sees_one_block(const SeenBy& seen, int64_t num_keys) {
  int64_t count = 0;
  for (int64_t first = 0; first < num_keys; first += kBlockKeys)
    count += seen.sight(first, first + kBlockKeys) != Sight::none;
  return count == 1;
}

template <class T>
void run(const Task<T>& t, Workspace& w) {
  const IntervalAttentionShape& s = t.p.shape;
  fill(w.grad_keys, w.all_keys * w.dim, 0);
  fill(w.grad_values, w.all_keys * w.value_dim, 0);
  for (int64_t begin = 0; begin < t.rows.count; begin += kPanel) {
    const int64_t end = begin + kPanel < t.rows.count ? begin + kPanel : t.rows.count;
    const int64_t blocks = ceil_div(end - begin, (int64_t)kBlockQueries);
    load_panel(t, w, begin, end);
    fill(w.grad_q, blocks * kBlockQueries * w.grad_q_rows, 0);
    const bool pass = sizeof(T) < 4 || t.rows.count <= kFew;
    for (int64_t block = 0; block < blocks; ++block) {
      w.seen[block].load(t.rows, t.p.intervals, s.interval_batch, begin + block * kBlockQueries, end);
      w.alone[block] = sees_one_block(w.seen[block], s.num_keys);
      fill(w.delta + block * kBlockQueries, kBlockQueries, 0);
      fill(w.total + block * kBlockQueries, kBlockQueries, 0);
      if (!pass && !w.alone[block]) deltas_of_out(t, w, begin, block, queries_of(block, end - begin));
    }
    if (pass) {
      each_pair(t, w, end - begin, [&](const Pair& pair) {
        if (pair.alone) return;
        probabilities_and_gradients(t, w, pair);
        const int64_t at = pair.block * kBlockQueries;
        add_products(w.p, w.ds, pair.count, w.seen[pair.block].vecs, w.delta + at, w.total + at);
      });
      for (int64_t block = 0; block < blocks; ++block)
        if (!w.alone[block]) divide(w.delta + block * kBlockQueries, w.total + block * kBlockQueries);
    }
    each_pair(t, w, end - begin, [&](const Pair& pair) { add_gradients(t, w, pair); });
    for (int64_t r = begin; r < end; ++r) {
      const int64_t block = (r - begin) / kBlockQueries, lane = (r - begin) % kBlockQueries;
      const float* from = w.grad_q + block * kBlockQueries * w.grad_q_rows + lane;
      T* to = t.p.grad_q + t.rows.index(r) * s.dim;
      for (int64_t d = 0; d < s.dim; ++d) to[d] = narrow<T>(from[d * kBlockQueries] * (float)s.scale);
    }
  }
  for (int64_t j = 0; j < s.num_keys; ++j) {
    T* const grad_k = t.p.grad_k + (t.key_index + j) * s.dim;
    T* const grad_v = t.p.grad_v + (t.key_index + j) * s.value_dim;
    for (int64_t d = 0; d < s.dim; ++d) grad_k[d] = narrow<T>(w.grad_keys[j * w.dim + d] * t.scale.of_score);
    for (int64_t e = 0; e < s.value_dim; ++e) grad_v[e] = narrow<T>(w.grad_values[j * w.value_dim + e]);
  }
}

// double is there for gradcheck: one query after the other.
void run(const Task<double>& t, Workspace&) {
  const IntervalAttentionShape& s = t.p.shape;
  double* const grad_k = t.p.grad_k + t.key_index * s.dim;
  double* const grad_v = t.p.grad_v + t.key_index * s.value_dim;
  for (int64_t i = 0; i < s.num_keys * s.dim; ++i) grad_k[i] = 0;
  for (int64_t i = 0; i < s.num_keys * s.value_dim; ++i) grad_v[i] = 0;
  for (int64_t r = 0; r < t.rows.count; ++r) {
    const double* q = t.rows.row(t.p.q, s.q, r);
    const int64_t at = t.rows.index(r);
    const double* grad_out = t.p.grad_out + at * s.value_dim;
    double* const grad_q = t.p.grad_q + at * s.dim;
    const double delta = dot_double(grad_out, t.p.out + at * s.value_dim, s.value_dim);
    for (int64_t d = 0; d < s.dim; ++d) grad_q[d] = 0;
    t.rows.spans(t.p.intervals, s.interval_batch, r).each([&](int64_t j) {
      const double* k = t.k + j * s.k.row;
      const double p = ::exp(dot_double(q, k, s.dim) * s.scale - t.p.logsumexp[at]);
      const double ds = p * (dot_double(grad_out, t.v + j * s.v.row, s.value_dim) - delta) * s.scale;
      for (int64_t d = 0; d < s.dim; ++d) {
        grad_q[d] += ds * k[d];
        grad_k[j * s.dim + d] += ds * q[d];
      }
      for (int64_t e = 0; e < s.value_dim; ++e) grad_v[j * s.value_dim + e] += p * grad_out[e];
    });
  }
}

}  // namespace

int64_t interval_attention_backward_num_tasks(const IntervalAttentionShape& s) { return s.batch * s.kv_heads; }

template <class T>
bool interval_attention_backward_tasks(const IntervalAttentionBackwardParams<T, double>& p, int64_t begin, int64_t end) {
  const Scratch scratch(sizeof(T) == 8 ? 1 : Workspace::size(p.shape));
  if (!scratch.data) return false;
  Workspace w{};
  Carver carver{scratch.data, 0};
  if (sizeof(T) != 8) w.carve(carver, p.shape);
  for (int64_t index = begin; index < end; ++index) run(Task<T>(p, index), w);
  return true;
}

#define PYRAMID_INSTANTIATE(T) \
  template bool interval_attention_backward_tasks<T>(const IntervalAttentionBackwardParams<T, double>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
