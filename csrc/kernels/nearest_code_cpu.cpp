// nearest_code on the CPU: a register tile of kRows rows x 2 vectors of codes, as in a matrix product, whose epilogue
// keeps lane-wise minima instead of storing the product. See nearest_code.h for the bound and for the two ranks.
//
// Layout: codes are packed in tiles [D][2 vectors], rows (negated, centred) in blocks [D][kRows]. For a panel of rows
// (fits L2) and for each tile of codes (fits L1) run over the panel: the codebook is read once per panel.
// Memory: N x K / kBucket minima per panel, never more than about 1 MiB.
#include "nearest_code.h"

#include <cstdlib>

#include "simd.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {

// Everything but the entry points stays in this file.
namespace {

constexpr int64_t kGroup = kBucket * kLanes;
constexpr int64_t kTile = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kRows = 12;  // 24 accumulators of 32 registers
#else
constexpr int kRows = 6;  // 12 accumulators of 16 registers
#endif

struct Buffer {
  float* data;
  explicit Buffer(int64_t count)
      : data((float*)std::aligned_alloc(64, (size_t)ceil_div(count * 4, 64) * 64)) {}
  ~Buffer() { std::free(data); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
};

template <class T>
struct Best {
  T distance;
  int64_t id;
  // Starts at {infinity, 0}. Ties go to the lowest id; NaN and infinity never win, so id 0 stays if no other comes.
  PYRAMID_INLINE void offer(T candidate, int64_t candidate_id) {
    if (candidate < distance || (candidate == distance && candidate_id < id)) {
      distance = candidate;
      id = candidate_id;
    }
  }
};

PYRAMID_INLINE DoubleVec widen_vector(const float* p) {
  return __builtin_convertvector(load<HalfVec>(p), DoubleVec);
}
PYRAMID_INLINE DoubleVec widen_vector(const double* p) { return load<DoubleVec>(p); }

// sum (a - b)^2 in double.
template <class T>
double squared_distance(const T* a, const T* b, int64_t dim) {
  constexpr int64_t kStep = kLanes / 2;
  DoubleVec sum0 = {}, sum1 = {};
  int64_t i = 0;
  for (; i + 2 * kStep <= dim; i += 2 * kStep) {
    const DoubleVec d0 = widen_vector(a + i) - widen_vector(b + i);
    const DoubleVec d1 = widen_vector(a + i + kStep) - widen_vector(b + i + kStep);
    sum0 += d0 * d0;
    sum1 += d1 * d1;
  }
  sum0 += sum1;
  double sum = 0;
  for (int64_t j = 0; j < kStep; ++j) sum += sum0[j];
  for (; i < dim; ++i) {
    const double d = (double)a[i] - (double)b[i];
    sum += d * d;
  }
  return sum;
}

float norm_above(double sum_of_squares) {
  const double norm = __builtin_sqrt(sum_of_squares) * (1 + 1e-6);
  return norm < kGreatestNorm ? (float)norm : __builtin_inff();  // NaN too
}

// kRows rows x kTile codes; minima[r * stride] gets or keeps the lane-wise least s of row r.
void score_tile(const float* rows, const float* codes, const float* half_norm, int64_t dim,
                float* minima, int64_t stride, bool first) {
  Vec acc0[kRows], acc1[kRows];
  const Vec h0 = load<Vec>(half_norm), h1 = load<Vec>(half_norm + kLanes);
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    acc0[r] = h0;
    acc1[r] = h1;
  }
  for (int64_t d = 0; d < dim; ++d, rows += kRows, codes += kTile) {
    const Vec e0 = load<Vec>(codes), e1 = load<Vec>(codes + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec z = splat(rows[r]);
      acc0[r] = fma(z, e0, acc0[r]);
      acc1[r] = fma(z, e1, acc1[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    Vec least = min(acc0[r], acc1[r]);
    if (!first) least = min(least, load<Vec>(minima + r * stride));
    store(minima + r * stride, least);
  }
}

// Packs rows [begin, end) negated and centred, zeros after the last, and their norms.
void pack_rows(const NearestCodeParams& p, int64_t begin, int64_t end, float* packed, float* norms) {
  const int64_t blocks = ceil_div(end - begin, (int64_t)kRows);
  for (int64_t block = 0; block < blocks; ++block, packed += p.dim * kRows) {
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = begin + block * kRows + r;
      double sum = 0;
      if (row < end) {
        const float* z = p.z + row * p.dim;
        for (int64_t d = 0; d < p.dim; ++d) {
          const float value = p.center[d] - z[d];
          packed[d * kRows + r] = value;
          sum += (double)value * value;
        }
      } else {
        for (int64_t d = 0; d < p.dim; ++d) packed[d * kRows + r] = 0;
      }
      norms[block * kRows + r] = norm_above(sum);
    }
  }
}

// Ranks in double the codes of every bucket that the bound admits.
void choose(const NearestCodeParams& p, int64_t row, float row_norm, const float* minima) {
  const int64_t groups = ceil_div(p.num_codes, kGroup);
  const float factor = PYRAMID_ERROR_FACTOR(p.dim), floor = PYRAMID_ERROR_FLOOR(p.dim);
  const auto bound = [&](int64_t g) {
    const float e = p.group_norm[g];
    return factor * (row_norm * e + 0.5f * e * e) + floor * (1 + row_norm + e);
  };
  Vec least = splat(__builtin_inff());
  for (int64_t g = 0; g < groups; ++g)
    least = min(load<Vec>(minima + g * kLanes) + splat(bound(g)), least);
  const Vec limit = splat(lane_min(least));

  const float* z = p.z + row * p.dim;
  Best<double> best{__builtin_inf(), 0};
  for (int64_t g = 0; g < groups; ++g) {
    const Vec lower = load<Vec>(minima + g * kLanes) - splat(bound(g));
    // Not "lower <= limit": in this form a NaN admits its bucket.
    uint32_t admitted = ~greater_mask(lower, limit) & (uint32_t)((1ull << kLanes) - 1);
    for (; admitted; admitted &= admitted - 1) {
      const int64_t lane = __builtin_ctz(admitted);
      for (int64_t v = 0; v < kBucket; ++v) {
        const int64_t position = g * kGroup + v * kLanes + lane;
        if (position >= p.num_codes) break;
        const int64_t id = p.order ? p.order[position] : position;
        best.offer(squared_distance(z, p.codebook + id * p.dim, p.dim), id);
      }
    }
  }
  p.ids[row] = best.id;
  p.distance[row] = (float)squared_distance(z, p.codebook + best.id * p.dim, p.dim);
}

}  // namespace

int64_t nearest_code_group_size() { return kGroup; }
int64_t nearest_code_row_block() { return kRows; }

void nearest_code_norms(const NearestCodeParams& p, int64_t begin, int64_t end) {
  for (int64_t k = begin; k < end; ++k) {
    const float* code = p.codebook + k * p.dim;
    double sum = 0;
    for (int64_t d = 0; d < p.dim; ++d) {
      const float value = code[d] - p.center[d];
      sum += (double)value * value;
    }
    p.code_norm[k] = norm_above(sum);
  }
}

void nearest_code_pack(const NearestCodeParams& p, int64_t begin, int64_t end) {
  for (int64_t position = begin * kGroup; position < end * kGroup; ++position) {
    const int64_t tile = position / kTile, lane = position % kTile;
    float* packed = p.packed + tile * p.dim * kTile + lane;
    if (position >= p.num_codes) {
      for (int64_t d = 0; d < p.dim; ++d) packed[d * kTile] = 0;
      p.half_norm[position] = __builtin_inff();
      continue;
    }
    const int64_t id = p.order ? p.order[position] : position;
    const float* code = p.codebook + id * p.dim;
    double sum = 0;
    for (int64_t d = 0; d < p.dim; ++d) {
      const float value = code[d] - p.center[d];
      packed[d * kTile] = value;
      sum += (double)value * value;
    }
    p.half_norm[position] = (float)(0.5 * sum);
  }
  for (int64_t g = begin; g < end; ++g) {
    float greatest = 0;
    for (int64_t i = g * kGroup; i < (g + 1) * kGroup && i < p.num_codes; ++i) {
      const float norm = p.code_norm[p.order ? p.order[i] : i];
      greatest = norm > greatest ? norm : greatest;
    }
    p.group_norm[g] = greatest;
  }
}

bool nearest_code_rows(const NearestCodeParams& p, int64_t begin, int64_t end) {
  const int64_t groups = ceil_div(p.num_codes, kGroup), stride = groups * kLanes;
  const int64_t tiles = ceil_div(p.num_codes, kTile);
  constexpr int64_t kTilesPerGroup = kGroup / kTile;

  // A panel: its rows within 256 KiB, its minima within 1 MiB, at least one block.
  int64_t panel = 384;
  panel = panel < 65536 / p.dim ? panel : 65536 / p.dim;
  panel = panel < 262144 / stride ? panel : 262144 / stride;
  panel = panel < end - begin ? panel : end - begin;
  panel = ceil_div(panel > 1 ? panel : 1, (int64_t)kRows) * kRows;

  const Buffer rows(panel * p.dim), minima(panel * stride), norms(panel);
  if (!rows.data || !minima.data || !norms.data) return false;
  for (int64_t start = begin; start < end; start += panel) {
    const int64_t stop = start + panel < end ? start + panel : end;
    const int64_t blocks = ceil_div(stop - start, (int64_t)kRows);
    pack_rows(p, start, stop, rows.data, norms.data);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const float* codes = p.packed + tile * p.dim * kTile;
      float* out = minima.data + tile / kTilesPerGroup * kLanes;
      for (int64_t block = 0; block < blocks; ++block)
        score_tile(rows.data + block * kRows * p.dim, codes, p.half_norm + tile * kTile, p.dim,
                   out + block * kRows * stride, stride, tile % kTilesPerGroup == 0);
    }
    for (int64_t row = start; row < stop; ++row)
      choose(p, row, norms.data[row - start], minima.data + (row - start) * stride);
  }
  return true;
}

void nearest_code_rows_double(const NearestCodeDoubleParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const double* z = p.z + row * p.dim;
    Best<double> best{__builtin_inf(), 0};
    for (int64_t k = 0; k < p.num_codes; ++k)
      best.offer(squared_distance(z, p.codebook + k * p.dim, p.dim), k);
    p.ids[row] = best.id;
    p.distance[row] = squared_distance(z, p.codebook + best.id * p.dim, p.dim);
  }
}

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
