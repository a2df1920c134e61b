// interval_attention on CUDA, bfloat16 and float16 on the tensor cores (mma m16n8k16, sm_80 and newer): online softmax in
// float32 as in FlashAttention-2 (2307.08691).
//
//   attend    a tile of queries against the key blocks it sees. A warp has 16 or 32 queries; scores and probabilities
//             stay in its registers. While the scores of a block are formed its values are on the way; while the values
//             are summed, the next keys.
//   combine   few queries: the results of the slices of keys, put together
//
// Two shapes of a tile: 128 queries on four warps; or 16 queries, where the four warps share out the keys of each block.
// In the sliced case the query heads of one key head form one tile, so keys are read once for all of them.
//
// What bounds it. Many queries: a fragment of keys or values (512 bytes, 4 cycles of shared memory at 128 bytes each) feeds
// four products of 2048 multiplications, 8 cycles of the tensor cores of sm_80 and 4 of the peak of sm_90. So two row tiles
// a warp are what sm_80 needs, and registers (250 of 255 from D 64 on, two blocks a multiprocessor) allow no more; on
// sm_90 shared memory and mma.sync stay below what wgmma, which reads both factors from shared memory itself, could have
// (FlashAttention-2 takes 35 % of the peak of an H100: 2407.08608). Few queries: the bytes of k and v, each read once.
#include "interval_attention.h"

#include "interval_attention_cuda.cuh"

namespace pyramid::kernels {
namespace {

template <class T_, int kDim_, int kRowTiles_, int kRowWarps_, int kKeyWarps_>
struct Plan {
  using T = T_;
  static constexpr int kDim = kDim_, kRowTiles = kRowTiles_, kRowWarps = kRowWarps_, kKeyWarps = kKeyWarps_;
  static constexpr int kKeys = 64, kWarpKeys = kKeys / kKeyWarps, kThreads = kLanes * kRowWarps * kKeyWarps;
  static constexpr int kWarpRows = 16 * kRowTiles, kRows = kWarpRows * kRowWarps;
  static constexpr bool kKeepQueries = kRowTiles * kDim <= 128;  // in registers; reread from shared memory if not
  static constexpr size_t kShared = sizeof(T) * (kRows + 2 * kKeys) * kPitch<kDim> + sizeof(Span) * kRows;
  static_assert(kKeyWarps == 1 || (kRowWarps == 1 && kRowTiles == 1), "warps share out rows or keys, not both");
  static_assert(kKeyWarps == 1 || sizeof(float) * kKeyWarps * 16 * (kDim + 2) <= sizeof(T) * 2 * kKeys * kPitch<kDim>,
                "the warps' results fit where keys and values were");
};

template <class T>
struct Arguments {
  IntervalAttentionSplitParams<T> p;
  int heads_together;  // query heads in a tile: 1, or all of a key head
  int num_tiles;
  int slice;  // keys
  bool sliced, q_vectors, k_vectors, v_vectors;
};

// The rows of a tile: queries of one head, or of several, one head after the other.
struct Rows {
  const IntervalAttentionShape& shape;
  int64_t batch, first_head;
  int first, count, num_queries;

  __device__ bool has(int row) const { return first + row < count; }
  __device__ int above(int row) const { return count == num_queries ? 0 : (first + row) / num_queries; }
  __device__ int64_t head(int row) const { return first_head + above(row); }
  __device__ int64_t query(int row) const { return first + row - above(row) * num_queries; }
  __device__ int64_t index(int row) const {  // in (B, H, S)
    return (batch * shape.heads + head(row)) * shape.num_queries + query(row);
  }
};

// Where results go: out and logsumexp, or the workspace of a slice.
template <class T>
__device__ __forceinline__ void store_results(const Arguments<T>& x, int64_t index, int column, float first,
                                              float second) {
  const IntervalAttentionShape& shape = x.p.attention.shape;
  const int dim = static_cast<int>(shape.value_dim);
  if (x.sliced) {
    const int64_t rows = shape.batch * shape.heads * shape.num_queries;
    float* const row = x.p.partial_out + (blockIdx.y * rows + index) * dim;
    if (column < dim) row[column] = first;
    if (column + 1 < dim) row[column + 1] = second;
  } else {
    store_pair(x.p.attention.out + index * dim, column, dim, first, second);
  }
}
template <class T>
__device__ __forceinline__ void store_logsumexp(const Arguments<T>& x, int64_t index, float value) {
  const IntervalAttentionShape& shape = x.p.attention.shape;
  const int64_t rows = shape.batch * shape.heads * shape.num_queries;
  (x.sliced ? x.p.partial_logsumexp + blockIdx.y * rows : x.p.attention.logsumexp)[index] = value;
}

// `top` is the greatest score times log2(e), `sum` that of 2^(score - top).
__device__ __forceinline__ float logsumexp_of(float top, float sum) { return sum == 0 ? -INFINITY : top * kLn2 + logf(sum); }
__device__ __forceinline__ float inverse_of(float sum) { return sum == 0 ? 0.0f : 1 / sum; }

// One block of keys in the softmax: scores to probabilities, what was summed before to the new maximum.
template <int kRowTiles, int kBlocks, int kOutBlocks>
__device__ __forceinline__ void soften(float (&s)[kRowTiles][kBlocks][4], float (&out)[kRowTiles][kOutBlocks][4],
                                       float (&top)[kRowTiles][2], float (&sum)[kRowTiles][2], float scale) {
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float best = top[i][half];
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) best = fmaxf(best, fmaxf(s[i][j][2 * half], s[i][j][2 * half + 1]));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
      const float base = best == -INFINITY ? 0.0f : best * scale;  // nothing seen so far: all are 2^-inf
      const float shrink = fast_exp2(top[i][half] * scale - base);
      top[i][half] = best;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kBlocks; ++j) {
#pragma unroll
        for (int k = 2 * half; k < 2 * half + 2; ++k) {
          s[i][j][k] = fast_exp2(fmaf(s[i][j][k], scale, -base));
          total += s[i][j][k];
        }
      }
      sum[i][half] = sum[i][half] * shrink + total;
#pragma unroll
      for (int j = 0; j < kOutBlocks; ++j) {
        out[i][j][2 * half] *= shrink;
        out[i][j][2 * half + 1] *= shrink;
      }
    }
  }
}

// The four warps of a small tile have seen different keys: their results through shared memory, then the whole.
template <class P>
__device__ __forceinline__ void store_merged(const Arguments<typename P::T>& x, const Rows& rows,
                                             float* shared, const float (&out)[1][P::kDim / 8][4],
                                             const float (&top)[1][2], const float (&sum)[1][2], float scale) {
  const int warp = threadIdx.x / kLanes;
  float* const tops = shared;  // (warps, 16)
  float* const sums = tops + P::kKeyWarps * 16;
  float* const outs = sums + P::kKeyWarps * 16;  // (warps, 16, kDim)
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const int row = warp * 16 + result_row(k);
    if (threadIdx.x % 4 == 0 && k % 2 == 0) {
      tops[row] = top[0][k / 2] == -INFINITY ? -INFINITY : top[0][k / 2] * scale;
      sums[row] = sum[0][k / 2];
    }
#pragma unroll
    for (int j = 0; j < P::kDim / 8; ++j) outs[row * P::kDim + j * 8 + result_column(k)] = out[0][j][k];
  }
  __syncthreads();
  const int dim = static_cast<int>(x.p.attention.shape.value_dim);
  for (int i = threadIdx.x; i < 16 * (P::kDim / 2); i += P::kThreads) {
    const int row = i / (P::kDim / 2), column = i % (P::kDim / 2) * 2;
    if (!rows.has(row)) continue;
    float best = -INFINITY, total = 0, first = 0, second = 0;
    for (int w = 0; w < P::kKeyWarps; ++w) best = fmaxf(best, tops[w * 16 + row]);
    const float base = best == -INFINITY ? 0.0f : best;
    for (int w = 0; w < P::kKeyWarps; ++w) {
      const float weight = fast_exp2(tops[w * 16 + row] - base);
      const float* const from = outs + (w * 16 + row) * P::kDim + column;
      total += weight * sums[w * 16 + row];
      first += weight * from[0];
      second += weight * from[1];
    }
    const float inverse = inverse_of(total);
    if (column < dim) store_results(x, rows.index(row), column, first * inverse, second * inverse);
    if (column == 0) store_logsumexp(x, rows.index(row), logsumexp_of(best, total));
  }
}

// kernels

template <class P>
__global__ void __launch_bounds__(P::kThreads) attend(Arguments<typename P::T> x) {
  using T = typename P::T;
  const IntervalAttentionShape& shape = x.p.attention.shape;
  T* const queries = dynamic_shared<T>();
  T* const keys = queries + P::kRows * kPitch<P::kDim>;
  T* const values = keys + P::kKeys * kPitch<P::kDim>;
  Span* const spans = reinterpret_cast<Span*>(values + P::kKeys * kPitch<P::kDim>);
  const int warp = threadIdx.x / kLanes;
  const int warp_row = warp / P::kKeyWarps * P::kWarpRows, warp_key = warp % P::kKeyWarps * P::kWarpKeys;

  // The last tiles, which see most where attention is causal, come first.
  const int64_t groups = shape.heads / x.heads_together, rest = blockIdx.x / x.num_tiles;
  const Rows rows{shape, rest / groups, rest % groups * x.heads_together,
                  (x.num_tiles - 1 - static_cast<int>(blockIdx.x % x.num_tiles)) * P::kRows,
                  x.heads_together * static_cast<int>(shape.num_queries), static_cast<int>(shape.num_queries)};
  const int64_t kv_head = rows.first_head / (shape.heads / shape.kv_heads);
  const T* const k = x.p.attention.k + rows.batch * shape.k.batch + kv_head * shape.k.head;
  const T* const v = x.p.attention.v + rows.batch * shape.v.batch + kv_head * shape.v.head;
  const int num_keys = static_cast<int>(shape.num_keys);

  load_rows<P::kRows, P::kDim, P::kThreads>(queries, static_cast<int>(shape.dim), x.q_vectors, [&](int row) -> const T* {
    if (!rows.has(row)) return nullptr;
    return x.p.attention.q + rows.batch * shape.q.batch + rows.head(row) * shape.q.head + rows.query(row) * shape.q.row;
  });
  commit_copies();
  const int begin = static_cast<int>(blockIdx.y) * x.slice, end = min(num_keys - begin, x.slice) + begin;
  for (int row = threadIdx.x; row < P::kRows; row += P::kThreads) {
    const int32_t* const of_batch = x.p.attention.intervals + rows.batch * shape.interval_batch;
    spans[row] = rows.has(row) ? clip(read_span(of_batch + rows.query(row) * 4), begin, end) : Span{0, 0, 0, 0};
  }
  __syncthreads();

  const auto load_block = [&](T* tile, const T* source, const HeadStrides& strides, int64_t dim, bool vectors, int block) {
    const int64_t first = static_cast<int64_t>(block) * P::kKeys;
    load_tile<P::kKeys, P::kDim, P::kThreads>(tile, source + first * strides.row, strides.row,
                                              num_keys - static_cast<int>(first), static_cast<int>(dim), vectors);
    commit_copies();
  };
  int block = next_block<P::kKeys>(spans, P::kRows, 0);
  if (block != kNoBlock) load_block(keys, k, shape.k, shape.dim, x.k_vectors, block);
  wait_copies<0>();
  __syncthreads();
  // The softmax takes a positive factor; 1e-30 makes of every score a zero.
  const float factor = static_cast<float>(shape.scale) * kLog2E;
  const float scale = factor == 0 ? 1e-30f : fabsf(factor);
  if (factor < 0) {
    for (int i = threadIdx.x; i < P::kRows * kPitch<P::kDim>; i += P::kThreads) queries[i].bits ^= 0x8000;
    __syncthreads();
  }

  float out[P::kRowTiles][P::kDim / 8][4] = {};
  float top[P::kRowTiles][2], sum[P::kRowTiles][2] = {};
  uint32_t q[P::kRowTiles][P::kKeepQueries ? P::kDim / 16 : 1][4];
#pragma unroll
  for (int i = 0; i < P::kRowTiles; ++i) {
    top[i][0] = top[i][1] = -INFINITY;
    if constexpr (P::kKeepQueries) {
#pragma unroll
      for (int d = 0; d < P::kDim / 16; ++d) load_left<P::kDim>(q[i][d], queries, warp_row + i * 16, d * 16);
    }
  }

  while (block != kNoBlock) {
    const int first_key = block * P::kKeys + warp_key, next = next_block<P::kKeys>(spans, P::kRows, block + 1);
    wait_copies<0>();
    __syncthreads();  // the keys are there, and nobody reads the last values any more
    load_block(values, v, shape.v, shape.value_dim, x.v_vectors, block);

    // What the warp's own rows see: nothing, all, or some.
    const int lane_row = warp_row + threadIdx.x % P::kWarpRows;
    const Span span = spans[lane_row];
    const bool active = __any_sync(kAllLanes, sees_any(span, first_key, first_key + P::kWarpKeys));
    const bool whole = __all_sync(kAllLanes, !rows.has(lane_row) || sees_all(span, first_key, first_key + P::kWarpKeys));

    // Probabilities, as the left factor: packed before the next copies begin, half the registers that scores take.
    uint32_t shares[P::kWarpKeys / 16][P::kRowTiles][4];
    if (active) {
      float s[P::kRowTiles][P::kWarpKeys / 8][4] = {};
#pragma unroll(P::kKeepQueries ? P::kDim / 16 : 2)
      for (int d = 0; d < P::kDim / 16; ++d) {
        if constexpr (!P::kKeepQueries) {
#pragma unroll
          for (int i = 0; i < P::kRowTiles; ++i) load_left<P::kDim>(q[i][0], queries, warp_row + i * 16, d * 16);
        }
#pragma unroll
        for (int j = 0; j < P::kWarpKeys / 16; ++j) {
          uint32_t b[4];
          load_right<P::kDim>(b, keys, warp_key + j * 16, d * 16);
#pragma unroll
          for (int i = 0; i < P::kRowTiles; ++i) {
            mma<T>(s[i][2 * j], q[i][P::kKeepQueries ? d : 0], b[0], b[1]);
            mma<T>(s[i][2 * j + 1], q[i][P::kKeepQueries ? d : 0], b[2], b[3]);
          }
        }
      }
      if (!whole) {
#pragma unroll
        for (int i = 0; i < P::kRowTiles; ++i) {
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const Span mine = spans[warp_row + i * 16 + result_row(2 * half)];
#pragma unroll
            for (int j = 0; j < P::kWarpKeys / 8; ++j) {
#pragma unroll
              for (int c = 2 * half; c < 2 * half + 2; ++c)
                if (!sees(mine, first_key + j * 8 + result_column(c))) s[i][j][c] = -INFINITY;
            }
          }
        }
      }
      soften(s, out, top, sum, scale);
#pragma unroll
      for (int j = 0; j < P::kWarpKeys / 16; ++j) {
#pragma unroll
        for (int i = 0; i < P::kRowTiles; ++i) as_left<T>(shares[j][i], s[i][2 * j], s[i][2 * j + 1]);
      }
    }
    wait_copies<0>();
    __syncthreads();  // the values are there, and nobody reads the keys any more
    if (next != kNoBlock) load_block(keys, k, shape.k, shape.dim, x.k_vectors, next);
    if (active) {
#pragma unroll
      for (int j = 0; j < P::kWarpKeys / 16; ++j) {
#pragma unroll
        for (int e = 0; e < P::kDim / 16; ++e) {
          uint32_t b[4];
          load_right_plain<P::kDim>(b, values, warp_key + j * 16, e * 16);
#pragma unroll
          for (int i = 0; i < P::kRowTiles; ++i) {
            mma<T>(out[i][2 * e], shares[j][i], b[0], b[1]);
            mma<T>(out[i][2 * e + 1], shares[j][i], b[2], b[3]);
          }
        }
      }
    }
    block = next;
  }

#pragma unroll
  for (int i = 0; i < P::kRowTiles; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[i][half] += __shfl_xor_sync(kAllLanes, sum[i][half], 1);
      sum[i][half] += __shfl_xor_sync(kAllLanes, sum[i][half], 2);
    }
  }
  if constexpr (P::kKeyWarps > 1) {
    __syncthreads();  // keys and values are not read any more
    store_merged<P>(x, rows, reinterpret_cast<float*>(keys), out, top, sum, scale);
  } else {
#pragma unroll
    for (int i = 0; i < P::kRowTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + i * 16 + result_row(2 * half);
        if (!rows.has(row)) continue;
        const int64_t index = rows.index(row);
        const float inverse = inverse_of(sum[i][half]);
        if (threadIdx.x % 4 == 0) store_logsumexp(x, index, logsumexp_of(top[i][half] * scale, sum[i][half]));
#pragma unroll
        for (int e = 0; e < P::kDim / 8; ++e)
          store_results(x, index, e * 8 + result_column(0), out[i][e][2 * half] * inverse,
                        out[i][e][2 * half + 1] * inverse);
      }
    }
  }
}

constexpr int kCombineThreads = 128;

// A warp a row: the slices weighted by exp(their logsumexp - the whole's).
template <class T>
__global__ void __launch_bounds__(kCombineThreads) combine(IntervalAttentionSplitParams<T> p, int64_t slices) {
  using C = compute_t<T>;
  const IntervalAttentionShape& shape = p.attention.shape;
  const int64_t rows = shape.batch * shape.heads * shape.num_queries;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kCombineThreads / kLanes) + threadIdx.x / kLanes;
  if (row >= rows) return;
  C top = -INFINITY, total = 0;
  for (int64_t i = threadIdx.x % kLanes; i < slices; i += kLanes) {
    const C other = p.partial_logsumexp[i * rows + row];
    top = !(other <= top) ? other : top;  // NaN stays
  }
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const C other = __shfl_xor_sync(kAllLanes, top, step);
    top = !(other <= top) ? other : top;
  }
  const C base = top == -INFINITY ? C(0) : top;
  for (int64_t i = threadIdx.x % kLanes; i < slices; i += kLanes) total += exp(p.partial_logsumexp[i * rows + row] - base);
  for (int step = kLanes / 2; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  const C inverse = total == 0 ? C(0) : 1 / total;
  for (int64_t e = threadIdx.x % kLanes; e < shape.value_dim; e += kLanes) {
    C sum = 0;
    for (int64_t i = 0; i < slices; ++i) {
      const C weight = exp(p.partial_logsumexp[i * rows + row] - base);
      if (weight != 0) sum += weight * p.partial_out[(i * rows + row) * shape.value_dim + e];
    }
    p.attention.out[row * shape.value_dim + e] = narrow<T>(sum * inverse);
  }
  if (threadIdx.x % kLanes == 0) p.attention.logsumexp[row] = total == 0 ? -INFINITY : top + log(total);
}

// launchers

constexpr int64_t kFew = 16, kMiddling = 256;  // queries of all heads that share keys
constexpr int64_t kFewSlice = 256, kMiddlingSlice = 512, kMostSlices = 65535;

int64_t rows_together(const IntervalAttentionShape& shape) {
  return shape.heads / shape.kv_heads * shape.num_queries;
}

template <class P>
cudaError_t start(const IntervalAttentionSplitParams<typename P::T>& p, int64_t slices, cudaStream_t stream) {
  const IntervalAttentionParams<typename P::T>& a = p.attention;
  const IntervalAttentionShape& shape = a.shape;
  const int64_t together = slices > 1 ? shape.heads / shape.kv_heads : 1;
  const int64_t tiles = ceil_div(together * shape.num_queries, P::kRows);
  const int64_t blocks = tiles * (shape.heads / together) * shape.batch;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const Arguments<typename P::T> x{p,
                                   static_cast<int>(together),
                                   static_cast<int>(tiles),
                                   slices > 1 ? interval_attention_slice(shape) : kWhole,
                                   slices > 1,
                                   in_vectors(a.q, shape.q, shape.dim),
                                   in_vectors(a.k, shape.k, shape.dim),
                                   in_vectors(a.v, shape.v, shape.value_dim)};
  return launch(attend<P>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(slices)), P::kThreads, P::kShared,
                stream, x);
}

template <class T>
cudaError_t start_tiles(const IntervalAttentionSplitParams<T>& p, int64_t slices, cudaStream_t stream) {
  const IntervalAttentionShape& shape = p.attention.shape;
  const int64_t dim = max(shape.dim, shape.value_dim);
  const bool few = (slices > 1 ? rows_together(shape) : shape.num_queries) <= kFew;
  if (few) {
    if (dim <= 32) return start<Plan<T, 32, 1, 1, 4>>(p, slices, stream);
    if (dim <= 64) return start<Plan<T, 64, 1, 1, 4>>(p, slices, stream);
    if (dim <= 96) return start<Plan<T, 96, 1, 1, 4>>(p, slices, stream);
    return start<Plan<T, 128, 1, 1, 4>>(p, slices, stream);
  }
  if (dim <= 32) return start<Plan<T, 32, 2, 4, 1>>(p, slices, stream);
  if (dim <= 64) return start<Plan<T, 64, 2, 4, 1>>(p, slices, stream);
  if (dim <= 96) return start<Plan<T, 96, 2, 4, 1>>(p, slices, stream);
  return start<Plan<T, 128, 2, 4, 1>>(p, slices, stream);
}

}  // namespace

int interval_attention_slice(const IntervalAttentionShape& shape) {
  if (rows_together(shape) > kMiddling) return kWhole;
  int64_t slice = rows_together(shape) <= kFew ? kFewSlice : kMiddlingSlice;
  while (slice * kMostSlices < shape.num_keys) slice *= 2;
  return static_cast<int>(slice);
}

int64_t interval_attention_slices(const IntervalAttentionShape& shape) {
  return max(ceil_div(shape.num_keys, interval_attention_slice(shape)), int64_t{1});
}

template <class T>
cudaError_t interval_attention_cuda(const IntervalAttentionSplitParams<T>& p, cudaStream_t stream) {
  const IntervalAttentionShape& shape = p.attention.shape;
  const int64_t rows = shape.batch * shape.heads * shape.num_queries, slices = interval_attention_slices(shape);
  if (rows == 0) return cudaSuccess;
  if (shape.num_queries > kMostRows || shape.num_keys > kMostRows) return cudaErrorInvalidValue;
  cudaError_t error;
  if constexpr (sizeof(T) == 2) {
    error = max(shape.dim, shape.value_dim) <= kMostTensorDim ? start_tiles(p, slices, stream)
                                                              : interval_attention_plain(p, stream);
  } else {
    error = interval_attention_plain(p, stream);
  }
  if (error != cudaSuccess || slices == 1) return error;
  const int64_t blocks = ceil_div(rows, kCombineThreads / kLanes);
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  return launch(combine<T>, static_cast<unsigned>(blocks), kCombineThreads, 0, stream, p, slices);
}

template cudaError_t interval_attention_cuda(const IntervalAttentionSplitParams<float>&, cudaStream_t);
template cudaError_t interval_attention_cuda(const IntervalAttentionSplitParams<double>&, cudaStream_t);
template cudaError_t interval_attention_cuda(const IntervalAttentionSplitParams<BFloat16>&, cudaStream_t);
template cudaError_t interval_attention_cuda(const IntervalAttentionSplitParams<Half>&, cudaStream_t);

}  // namespace pyramid::kernels
