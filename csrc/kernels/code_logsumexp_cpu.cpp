// code_logsumexp on the CPU: attention whose keys and values are the codes (softmax_tile.h). Forward, the lanes are rows
// of z; backward, they are codes, and the rows of z come block by block. With c the centre and x' = x - c,
//   -|z - e|^2 / tau = (z' . e' - |e'|^2 / 2 - |z'|^2 / 2) 2 / tau
// The bracket less the half square of the lanes' side is one product: the other half square is one more column of it.
#include "code_logsumexp.h"

#include <cmath>

#include "scratch.h"
#include "softmax_tile.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

constexpr int64_t kPanelBlocks = 2;
constexpr int64_t kPanel = kPanelBlocks * kBlockQueries;

// `lanes`: the side of a panel, in lanes, and a row of ones; `halves`: |x'|^2 / 2 of each. `block`: the side that streams
// by, and a column -|x'|^2 / 2.
struct Workspace {
  float *lanes, *halves, *out, *greatest, *sum, *block, *scores, *row;
  int64_t dim, step, out_rows;

  static int64_t size(int64_t dim) {
    Carver carver{nullptr, 0};
    Workspace().carve(carver, dim);
    return carver.count;
  }
  void carve(Carver& carver, int64_t width) {
    dim = width;
    step = (ceil_div(round_up(dim, kTileRows) + kTileRows, (int64_t)16) | 1) * 16;
    out_rows = round_up(dim, kTileRows);
    lanes = carver.take(kPanel * (dim + 1));
    halves = carver.take(kPanel);
    out = carver.take(kPanel * out_rows);
    greatest = carver.take(kPanel);
    sum = carver.take(kPanel);
    block = carver.take(kBlockKeys * step);
    scores = carver.take(kBlockKeys * kBlockQueries);
    row = carver.take(dim);
  }
};

// from - center, and half the sum of its squares (in double: what it is off by, every score is off by).
template <class T>
inline float center_row(const T* from, const float* center, int64_t dim, float* to) {
  widen_row(from, dim, to);
  DoubleVec sum{};
  double rest = 0;
  int64_t d = 0;
  for (; d + kLanes / 2 <= dim; d += kLanes / 2) {
    const HalfVec x = load<HalfVec>(to + d) - load<HalfVec>(center + d);
    store(to + d, x);
    const DoubleVec wide = __builtin_convertvector(x, DoubleVec);
    sum += wide * wide;
  }
  for (; d < dim; ++d) {
    to[d] -= center[d];
    rest += (double)to[d] * to[d];
  }
  for (int i = 0; i < kLanes / 2; ++i) rest += sum[i];
  return (float)(0.5 * rest);
}

// Rows [begin, end) of (., dim) into the lanes of a panel; zeros behind them.
template <class T>
void load_panel(const T* from, const float* center, int64_t begin, int64_t end, Workspace& w) {
  const int64_t rows = round_up(end - begin, kLanes);
  for (int64_t r = 0; r < rows; ++r) {
    float* const lane = w.lanes + r / kBlockQueries * (w.dim + 1) * kBlockQueries + r % kBlockQueries;
    if (begin + r < end) {
      w.halves[r] = center_row(from + (begin + r) * w.dim, center, w.dim, w.row);
    } else {
      fill(w.row, w.dim, 0);
      w.halves[r] = 0;
    }
    into_lane(w.row, w.dim, 1, lane);
    lane[w.dim * kBlockQueries] = 1;
  }
}

// Rows [first, first + count) as the side that streams by.
template <class T>
void load_block(const T* from, const float* center, int64_t first, int64_t count, Workspace& w) {
  for (int64_t j = 0; j < round_up(count, kTileRows); ++j) {
    float* const row = w.block + j * w.step;
    fill(row + w.dim, round_up(w.dim, kTileRows) + kTileRows - w.dim, 0);
    if (j < count)
      row[w.dim] = -center_row(from + (first + j) * w.dim, center, w.dim, row);
    else
      fill(row, w.dim, 0);
  }
}

PYRAMID_INLINE int64_t vecs_of(int64_t left) {
  return left < kBlockQueries ? ceil_div(left, (int64_t)kLanes) : (int64_t)kTileVecs;
}

template <class T>
void run_panel(const CodeLogsumexpParams<T>& p, Workspace& w, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(end - begin, (int64_t)kBlockQueries);
  const float scale = (float)(2 / p.tau);
  load_panel(p.z, p.center, begin, end, w);
  fill(w.out, blocks * w.out_rows * kBlockQueries, 0);
  fill(w.sum, blocks * kBlockQueries, 0);
  fill(w.greatest, blocks * kBlockQueries, -__builtin_inff());
  for (int64_t first = 0; first < p.num_codes; first += kBlockKeys) {
    const int64_t count = p.num_codes - first < kBlockKeys ? p.num_codes - first : kBlockKeys;
    load_block(p.codebook, p.center, first, count, w);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = block * kBlockQueries, vecs = vecs_of(end - begin - at);
      multiply<Along::columns>(w.block, w.step, w.lanes + at * (w.dim + 1), kBlockQueries,
                               round_up(count, kTileRows), w.dim + 1, vecs, w.scores, kBlockQueries, false);
      online_softmax(w.scores, scale, count, vecs, w.greatest + at, w.sum + at, w.out + at * w.out_rows, w.out_rows);
      multiply<Along::rows>(w.block, w.step, w.scores, kBlockQueries, w.out_rows, count, vecs,
                            w.out + at * w.out_rows, kBlockQueries, true);
    }
  }
  for (int64_t r = 0; r < end - begin; ++r) {
    const float* from = w.out + r / kBlockQueries * w.out_rows * kBlockQueries + r % kBlockQueries;
    const float inverse = 1 / w.sum[r];
    p.logsumexp[begin + r] = (w.greatest[r] - w.halves[r]) * scale + (float)__builtin_log((double)w.sum[r]);
    center_row(p.z + (begin + r) * w.dim, p.center, w.dim, w.row);
    for (int64_t d = 0; d < w.dim; ++d)
      p.pull[(begin + r) * w.dim + d] = from[d * kBlockQueries] * inverse - w.row[d];
  }
}

// scores (count, lanes) -> weights exp(scale (score - half) - logsumexp) * grad, and their sums. The product is rounded as
// the logsumexp's was: where one code has all the weight, it is 1.
void weigh(float* scores, const float* halves, float scale, const float* logsumexp, const float* grad, int64_t count,
           int64_t vecs, float* sum) {
  const Vec by = splat(scale);
  for (int64_t v = 0; v < vecs; ++v) {
    const Vec half = load<Vec>(halves + v * kLanes);
    Vec total = load<Vec>(sum + v * kLanes);
    for (int64_t j = 0; j < count; ++j) {
      float* const at = scores + j * kBlockQueries + v * kLanes;
      const Vec weight = exp_or_zero(rounded_product(load<Vec>(at) - half, by) - splat(logsumexp[j])) * splat(grad[j]);
      store(at, weight);
      total += weight;
    }
    store(sum + v * kLanes, total);
  }
}

// grad_codebook_k = 2 / tau (sum_n w_nk z'_n - sum_n w_nk e'_k), w_nk = grad_n p_nk.
template <class T>
void run_panel(const CodeLogsumexpBackwardParams<T>& p, Workspace& w, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(end - begin, (int64_t)kBlockQueries);
  const float scale = (float)(2 / p.tau);
  load_panel(p.codebook, p.center, begin, end, w);
  fill(w.out, blocks * w.out_rows * kBlockQueries, 0);
  fill(w.sum, blocks * kBlockQueries, 0);
  for (int64_t first = 0; first < p.num_rows; first += kBlockKeys) {
    const int64_t count = p.num_rows - first < kBlockKeys ? p.num_rows - first : kBlockKeys;
    load_block(p.z, p.center, first, count, w);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t at = block * kBlockQueries, vecs = vecs_of(end - begin - at);
      multiply<Along::columns>(w.block, w.step, w.lanes + at * (w.dim + 1), kBlockQueries,
                               round_up(count, kTileRows), w.dim + 1, vecs, w.scores, kBlockQueries, false);
      weigh(w.scores, w.halves + at, scale, p.logsumexp + first, p.grad + first, count, vecs, w.sum + at);
      multiply<Along::rows>(w.block, w.step, w.scores, kBlockQueries, w.out_rows, count, vecs,
                            w.out + at * w.out_rows, kBlockQueries, true);
    }
  }
  for (int64_t r = 0; r < end - begin; ++r) {
    const float* from = w.out + r / kBlockQueries * w.out_rows * kBlockQueries + r % kBlockQueries;
    center_row(p.codebook + (begin + r) * w.dim, p.center, w.dim, w.row);
    for (int64_t d = 0; d < w.dim; ++d)
      p.grad_codebook[(begin + r) * w.dim + d] =
          narrow<T>(scale * (from[d * kBlockQueries] - w.sum[r] * w.row[d]));
  }
}

// double is there for gradcheck: plain loops.
double exponent(const double* z, const double* e, int64_t dim, double tau) {
  double square = 0;
  for (int64_t d = 0; d < dim; ++d) square += (z[d] - e[d]) * (z[d] - e[d]);
  return -square / tau;
}

void run_panel(const CodeLogsumexpParams<double>& p, Workspace&, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) {
    const double* z = p.z + n * p.dim;
    double* const pull = p.pull + n * p.dim;
    double greatest = -__builtin_inf(), sum = 0;
    for (int64_t k = 0; k < p.num_codes; ++k) {
      const double score = exponent(z, p.codebook + k * p.dim, p.dim, p.tau);
      if (!(score <= greatest)) greatest = score;
    }
    for (int64_t d = 0; d < p.dim; ++d) pull[d] = 0;
    for (int64_t k = 0; k < p.num_codes; ++k) {
      const double* e = p.codebook + k * p.dim;
      const double weight = ::exp(exponent(z, e, p.dim, p.tau) - greatest);
      sum += weight;
      for (int64_t d = 0; d < p.dim; ++d) pull[d] += weight * (e[d] - z[d]);
    }
    for (int64_t d = 0; d < p.dim; ++d) pull[d] /= sum;
    p.logsumexp[n] = greatest + ::log(sum);
  }
}

void run_panel(const CodeLogsumexpBackwardParams<double>& p, Workspace&, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const double* e = p.codebook + k * p.dim;
    double* const grad = p.grad_codebook + k * p.dim;
    for (int64_t d = 0; d < p.dim; ++d) grad[d] = 0;
    for (int64_t n = 0; n < p.num_rows; ++n) {
      const double* z = p.z + n * p.dim;
      const double weight = p.grad[n] * ::exp(exponent(z, e, p.dim, p.tau) - p.logsumexp[n]) * 2 / p.tau;
      for (int64_t d = 0; d < p.dim; ++d) grad[d] += weight * (z[d] - e[d]);
    }
  }
}

template <class T, class Params>
bool run_tasks(const Params& p, int64_t count, int64_t begin, int64_t end) {
  const Scratch scratch(sizeof(T) == 8 ? 1 : Workspace::size(p.dim));
  if (!scratch.data) return false;
  Workspace w{};
  Carver carver{scratch.data, 0};
  if (sizeof(T) != 8) w.carve(carver, p.dim);
  for (int64_t task = begin; task < end; ++task)
    run_panel(p, w, task * kPanel, (task + 1) * kPanel < count ? (task + 1) * kPanel : count);
  return true;
}

}  // namespace

int64_t code_logsumexp_task_rows() { return kPanel; }

template <class T>
bool code_logsumexp_tasks(const CodeLogsumexpParams<T>& p, int64_t begin, int64_t end) {
  return run_tasks<T>(p, p.num_rows, begin, end);
}

template <class T>
bool code_logsumexp_backward_tasks(const CodeLogsumexpBackwardParams<T>& p, int64_t begin, int64_t end) {
  return run_tasks<T>(p, p.num_codes, begin, end);
}

#define PYRAMID_INSTANTIATE(T)                                                               \
  template bool code_logsumexp_tasks<T>(const CodeLogsumexpParams<T>&, int64_t, int64_t);    \
  template bool code_logsumexp_backward_tasks<T>(const CodeLogsumexpBackwardParams<T>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
