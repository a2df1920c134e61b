// nearest_code on the CPU: a register tile of kRows rows x 2 vectors of codes in integers (quantize.h), whose epilogue
// compares scores with the row's bound U and hands over the rows where a code may pass; then those codes in double.
//
// Layout: a tile is kTile codes [word][code] and what the bound needs of them, a block kRows rows [word][row]. A tile stays
// in L1 while all blocks of a thread go past it.
#include "nearest_code.h"

#include "quantize.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {

// Everything but the entry points stays in this file.
namespace {

constexpr int kTile = 2 * kLanes;
#if defined(__AVX512F__)
constexpr int kRows = 12;  // 24 accumulators of 32 registers
#else
constexpr int kRows = 6;  // 12 accumulators of 16 registers
#endif
constexpr int kPaddedRows = (kRows + kLanes - 1) / kLanes * kLanes;
constexpr int kCapacity = 48;

// margin of row r and code k, by which the score may be off: (residual_r * norm_k + norm_r * residual_k) + slack_r.
struct RowBlock {
  int32_t start[kPaddedRows];  // of the accumulators: takes kCodeOffset back
  float scale[kPaddedRows];    // negative: score = half_square + scale_r * scale_k * dot
  float norm[kPaddedRows], residual[kPaddedRows], slack[kPaddedRows];
  alignas(64) int32_t words[];  // [word][kRows]
};

struct Tile {
  float scale[kTile], half_square[kTile], norm[kTile], residual[kTile];
  float greatest_norm, greatest_residual;
  alignas(64) int32_t words[];  // [word][kTile]
};

template <class T>
struct Best {
  T distance = __builtin_inf();
  int64_t id = 0;
  // Ties go to the lowest id; NaN and infinity never win, so id 0 stays if no other comes.
  PYRAMID_INLINE void offer(T candidate, int64_t candidate_id) {
    if (candidate < distance || (candidate == distance && candidate_id < id)) {
      distance = candidate;
      id = candidate_id;
    }
  }
};

// Of a block of rows, in one part of the codes. Codes that were dropped from a list are above `upper` or went into `best`.
struct Candidates {
  float upper[kPaddedRows];  // U so far
  int32_t count[kRows];
  int32_t ids[kRows][kCapacity];
  float lower[kRows][kCapacity];
  Best<double> best[kRows];
};

int64_t words_of(int64_t dim) { return ceil_div(dim, (int64_t)kDigits); }
int64_t rounded_up(int64_t bytes) { return ceil_div(bytes, (int64_t)64) * 64; }
int64_t row_block_bytes(int64_t dim) { return rounded_up((int64_t)sizeof(RowBlock) + words_of(dim) * kRows * 4); }
int64_t tile_bytes(int64_t dim) { return rounded_up((int64_t)sizeof(Tile) + words_of(dim) * kTile * 4); }
constexpr int64_t kCandidatesBytes = (sizeof(Candidates) + 63) / 64 * 64;

template <class T>
RowBlock& row_block(const NearestCodeCpuParams<T>& p, int64_t block) {
  return *(RowBlock*)(p.row_blocks + block * row_block_bytes(p.dim));
}
template <class T>
Tile& tile_at(const NearestCodeCpuParams<T>& p, int64_t tile) {
  return *(Tile*)(p.tiles + tile * tile_bytes(p.dim));
}
template <class T>
Candidates& candidates_of(const NearestCodeCpuParams<T>& p, int64_t part, int64_t block) {
  return *(Candidates*)(p.candidates + (part * ceil_div(p.num_rows, (int64_t)kRows) + block) * kCandidatesBytes);
}

// sum (a - b)^2 in double, the same to the bit in every instruction set: sixteen sums in a fixed order, and no product is
// fused with its addition.
template <class T>
__attribute__((optimize("fp-contract=off"))) double squared_distance(const T* a, const T* b, int64_t dim) {
  constexpr int kHalf = kLanes / 2, kSums = 16;
  DoubleVec sums[kSums / kHalf] = {};
  int64_t i = 0;
  for (; i + kSums <= dim; i += kSums) {
#pragma GCC unroll 8
    for (int v = 0; v < kSums / kHalf; ++v) {
      const DoubleVec d = load_double(a + i + v * kHalf) - load_double(b + i + v * kHalf);
      sums[v] += d * d;
    }
  }
  alignas(64) double lanes[kSums];
  for (int v = 0; v < kSums / kHalf; ++v) store(lanes + v * kHalf, sums[v]);
  for (; i < dim; ++i) {
    const double d = (double)widen(a[i]) - (double)widen(b[i]);
    lanes[i % kSums] += d * d;
  }
  for (int step = kSums / 2; step > 0; step /= 2)
    for (int j = 0; j < step; ++j) lanes[j] += lanes[j + step];
  return lanes[0];
}

// kRows rows x kTile codes. Returns a bit for each row where a score isn't above the limit; its products are in `dots`.
uint32_t score(const RowBlock& rows, const Tile& tile, int64_t num_words, const float* upper, int32_t (*dots)[kTile]) {
  IVec acc0[kRows], acc1[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) acc0[r] = acc1[r] = splat_int(rows.start[r]);
  const int32_t *row = rows.words, *code = tile.words;
  for (int64_t w = 0; w < num_words; ++w, row += kRows, code += kTile) {
    const IVec c0 = load<IVec>(code), c1 = load<IVec>(code + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const IVec z = splat_int(row[r]);
      acc0[r] = dot(acc0[r], z, c0);
      acc1[r] = dot(acc1[r], z, c1);
    }
  }
  alignas(64) float limit[kPaddedRows];
#pragma GCC unroll 2
  for (int r = 0; r < kPaddedRows; r += kLanes) {
    const Vec margin = fma(load<Vec>(rows.residual + r), splat(tile.greatest_norm), load<Vec>(rows.slack + r));
    store(limit + r, fma(load<Vec>(rows.norm + r), splat(tile.greatest_residual), margin) + load<Vec>(upper + r));
  }
  const Vec scale0 = load<Vec>(tile.scale), scale1 = load<Vec>(tile.scale + kLanes);
  const Vec half0 = load<Vec>(tile.half_square), half1 = load<Vec>(tile.half_square + kLanes);
  uint32_t passing = 0;
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    const Vec scale = splat(rows.scale[r]), most = splat(limit[r]);
    const Vec score0 = fma(__builtin_convertvector(acc0[r], Vec) * scale0, scale, half0);
    const Vec score1 = fma(__builtin_convertvector(acc1[r], Vec) * scale1, scale, half1);
    if (__builtin_expect((greater_mask(score0, most) & greater_mask(score1, most)) != (1u << kLanes) - 1, 0)) {
      store(dots[r], acc0[r]);
      store(dots[r] + kLanes, acc1[r]);
      passing |= 1u << r;
    }
  }
  return passing;
}

// Ranks the listed codes that U still admits into the row's best, and empties the list.
template <class T>
void rank(const NearestCodeCpuParams<T>& p, Candidates& list, int r, int64_t row, float upper) {
  for (int i = 0; i < list.count[r]; ++i) {
    if (list.lower[r][i] > upper) continue;  // NaN stays
    const int64_t id = list.ids[r][i];
    list.best[r].offer(squared_distance(p.z + row * p.dim, p.codebook + id * p.dim, p.dim), id);
  }
  list.count[r] = 0;
}

// A full list: drops what U no longer admits; if that is less than half, ranks what is left.
template <class T>
void make_room(const NearestCodeCpuParams<T>& p, Candidates& list, int r, int64_t row) {
  int kept = 0;
  for (int i = 0; i < list.count[r]; ++i) {
    if (list.lower[r][i] > list.upper[r]) continue;
    list.ids[r][kept] = list.ids[r][i];
    list.lower[r][kept++] = list.lower[r][i];
  }
  list.count[r] = kept;
  if (kept > kCapacity / 2) rank(p, list, r, row, list.upper[r]);
}

// Lowers U by the codes of the tile and lists those that it admits, each by its own margin.
template <class T>
void admit(const NearestCodeCpuParams<T>& p, const RowBlock& rows, const Tile& tile, const int32_t* dots, Candidates& list,
           int r, int64_t row, int64_t first) {
  const Vec norm = splat(rows.norm[r]), residual = splat(rows.residual[r]), slack = splat(rows.slack[r]);
  alignas(64) float lower[kTile];
  Vec least = splat(list.upper[r]);
  for (int j = 0; j < kTile; j += kLanes) {
    const Vec half = load<Vec>(tile.half_square + j);
    const Vec product = __builtin_convertvector(load<IVec>(dots + j), Vec) * load<Vec>(tile.scale + j);
    const Vec score = fma(product, splat(rows.scale[r]), half);
    const Vec margin = fma(residual, load<Vec>(tile.norm + j), fma(norm, load<Vec>(tile.residual + j), slack));
    store(lower + j, score - margin);
    least = min(fma(half, splat(0x1p-15f), score + margin), least);  // NaN doesn't count
  }
  list.upper[r] = lane_min(least);
  uint64_t admitted = 0;
  for (int j = 0; j < kTile; j += kLanes)
    admitted |= (uint64_t)(~greater_mask(load<Vec>(lower + j), splat(list.upper[r])) & ((1u << kLanes) - 1)) << j;
  if (p.num_codes - first < kTile) admitted &= (1ull << (p.num_codes - first)) - 1;
  for (; admitted; admitted &= admitted - 1) {
    if (list.count[r] == kCapacity) make_room(p, list, r, row);
    const int lane = __builtin_ctzll(admitted);
    list.ids[r][list.count[r]] = (int32_t)(first + lane);
    list.lower[r][list.count[r]++] = lower[lane];
  }
}

}  // namespace

NearestCodeSizes nearest_code_sizes(int64_t dim) {
  return {kRows, kTile, row_block_bytes(dim), kCandidatesBytes, tile_bytes(dim)};
}

// The mean of at most 1024 codes. Any centre is right; near the mean the bound is tight.
template <class T>
void nearest_code_center(const NearestCodeCpuParams<T>& p) {
  const int64_t step = ceil_div(p.num_codes, (int64_t)1024);
  const float weight = 1 / (float)ceil_div(p.num_codes, step);
  for (int64_t d = 0; d < p.dim; ++d) p.center[d] = 0;
  for (int64_t k = 0; k < p.num_codes; k += step) {
    for (int64_t d = 0; d < p.dim; ++d) {
      const float value = widen(p.codebook[k * p.dim + d]);
      p.center[d] += __builtin_fabsf(value) < kGreatestNorm ? value * weight : 0;
    }
  }
}

template <class T>
void nearest_code_quantize_rows(const NearestCodeCpuParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t block = begin; block < end; ++block) {
    RowBlock& rows = row_block(p, block);
    for (int r = 0; r < kPaddedRows; ++r) {
      rows.start[r] = 0;
      rows.scale[r] = rows.norm[r] = rows.residual[r] = rows.slack[r] = 0;
    }
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = block * kRows + r;
      if (row >= p.num_rows) {
        for (int64_t w = 0; w < words_of(p.dim); ++w) rows.words[w * kRows + r] = 0;
        continue;
      }
      const Quantized q = quantize(p.z + (p.first_row + row) * p.dim, p.center, p.dim, rows.words + r, kRows, 0);
      rows.start[r] = (int32_t)(q.sum * (uint32_t)-kCodeOffset);
      rows.scale[r] = -q.scale;
      // 1e-5 for the rounding of the margin itself. The slack is for the rounding of the ranks in double, in which codes
      // may tie that are not quite equally far, and for underflow.
      rows.norm[r] = (q.norm + q.residual) * 1.00001f;
      rows.residual[r] = q.residual * 1.00001f;
      rows.slack[r] = (float)((double)(p.dim + 16) * (0x1p-50 * (double)q.norm * q.norm + 4e-38));
    }
    for (int64_t part = 0; part < p.num_parts; ++part) {
      Candidates& list = candidates_of(p, part, block);
      for (int r = 0; r < kPaddedRows; ++r) list.upper[r] = block * kRows + r < p.num_rows ? __builtin_inff() : -__builtin_inff();
      for (int r = 0; r < kRows; ++r) {
        list.count[r] = 0;
        list.best[r] = {};
      }
    }
  }
}

template <class T>
void nearest_code_quantize_codes(const NearestCodeCpuParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    Tile& tile = tile_at(p, t);
    tile.greatest_norm = tile.greatest_residual = 0;
    for (int j = 0; j < kTile; ++j) {
      const int64_t id = p.first_code + t * kTile + j;
      if (id >= p.num_codes) {
        tile.scale[j] = tile.norm[j] = tile.residual[j] = 0;
        tile.half_square[j] = __builtin_inff();
        for (int64_t w = 0; w < words_of(p.dim); ++w) tile.words[w * kTile + j] = 0;
        continue;
      }
      const Quantized q = quantize(p.codebook + id * p.dim, p.center, p.dim, tile.words + j, kTile, kOffsetWord);
      const bool finite = q.norm < kGreatestNorm;
      tile.scale[j] = q.scale;
      // Rounded down (an upper bound is this much and 2^-15 of it), and so low that it always passes if not finite.
      tile.half_square[j] = finite ? 0.5f * q.square * (1 - 0x1p-17f) : -__builtin_inff();
      // The last term is for the rounding of a score and its bounds, at most 16 * 2^-24 of |z'| |e'|.
      tile.norm[j] = q.norm;
      tile.residual[j] = q.residual + 0x1p-19f * q.norm;
      tile.greatest_norm = tile.greatest_norm > tile.norm[j] ? tile.greatest_norm : tile.norm[j];
      tile.greatest_residual =
          tile.greatest_residual > tile.residual[j] ? tile.greatest_residual : tile.residual[j];
    }
  }
}

template <class T>
void nearest_code_scan(const NearestCodeCpuParams<T>& p, int64_t part, int64_t begin, int64_t end, int64_t tile_begin,
                       int64_t tile_end) {
  alignas(64) int32_t dots[kRows][kTile];
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    const Tile& tile = tile_at(p, t);
    for (int64_t block = begin; block < end; ++block) {
      const RowBlock& rows = row_block(p, block);
      Candidates& list = candidates_of(p, part, block);
      for (uint32_t passing = score(rows, tile, words_of(p.dim), list.upper, dots); passing; passing &= passing - 1) {
        const int r = __builtin_ctz(passing);
        if (block * kRows + r < p.num_rows)
          admit(p, rows, tile, dots[r], list, r, p.first_row + block * kRows + r, p.first_code + t * kTile);
      }
    }
  }
}

template <class T>
void nearest_code_choose(const NearestCodeCpuParams<T>& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t block = i / kRows, row = p.first_row + i;
    const int r = (int)(i % kRows);
    float upper = __builtin_inff();
    for (int64_t part = 0; part < p.num_parts; ++part) {
      const float of_part = candidates_of(p, part, block).upper[r];
      upper = of_part < upper ? of_part : upper;
    }
    Best<double> best;
    for (int64_t part = 0; part < p.num_parts; ++part) {
      Candidates& list = candidates_of(p, part, block);
      rank(p, list, r, row, upper);
      best.offer(list.best[r].distance, list.best[r].id);
    }
    p.ids[row] = best.id;
    p.distance[row] = (float)squared_distance(p.z + row * p.dim, p.codebook + best.id * p.dim, p.dim);
  }
}

template <class T>
void nearest_code_exact(const NearestCodeExactParams<T>& p, int64_t part, int64_t begin, int64_t end) {
  constexpr int64_t kStep = 32;  // codes that stay in the cache while the rows go past
  const int64_t first = p.num_codes * part / p.num_parts, last = p.num_codes * (part + 1) / p.num_parts;
  double* distance = p.part_distance + part * p.num_rows;
  int64_t* ids = p.part_id + part * p.num_rows;
  for (int64_t row = begin; row < end; ++row) {
    distance[row] = __builtin_inf();
    ids[row] = 0;
  }
  for (int64_t start = first; start < last; start += kStep) {
    const int64_t stop = start + kStep < last ? start + kStep : last;
    for (int64_t row = begin; row < end; ++row) {
      Best<double> best{distance[row], ids[row]};
      for (int64_t k = start; k < stop; ++k)
        best.offer(squared_distance(p.z + row * p.dim, p.codebook + k * p.dim, p.dim), k);
      distance[row] = best.distance;
      ids[row] = best.id;
    }
  }
}

template <class T>
void nearest_code_exact_choose(const NearestCodeExactParams<T>& p) {
  for (int64_t row = 0; row < p.num_rows; ++row) {
    Best<double> best;
    for (int64_t part = 0; part < p.num_parts; ++part)
      best.offer(p.part_distance[part * p.num_rows + row], p.part_id[part * p.num_rows + row]);
    p.ids[row] = best.id;
    p.distance[row] =
        (compute_t<T>)squared_distance(p.z + row * p.dim, p.codebook + best.id * p.dim, p.dim);
  }
}

#define PYRAMID_INSTANTIATE_EXACT(T)                                                                         \
  template void nearest_code_exact<T>(const NearestCodeExactParams<T>&, int64_t, int64_t, int64_t);          \
  template void nearest_code_exact_choose<T>(const NearestCodeExactParams<T>&);
#define PYRAMID_INSTANTIATE(T)                                                                               \
  PYRAMID_INSTANTIATE_EXACT(T)                                                                               \
  template void nearest_code_center<T>(const NearestCodeCpuParams<T>&);                                      \
  template void nearest_code_quantize_rows<T>(const NearestCodeCpuParams<T>&, int64_t, int64_t);             \
  template void nearest_code_quantize_codes<T>(const NearestCodeCpuParams<T>&, int64_t, int64_t);            \
  template void nearest_code_scan<T>(const NearestCodeCpuParams<T>&, int64_t, int64_t, int64_t, int64_t, int64_t); \
  template void nearest_code_choose<T>(const NearestCodeCpuParams<T>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
PYRAMID_INSTANTIATE_EXACT(double)
#undef PYRAMID_INSTANTIATE
#undef PYRAMID_INSTANTIATE_EXACT

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
