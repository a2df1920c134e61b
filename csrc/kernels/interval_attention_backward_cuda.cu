// The gradients of interval_attention on CUDA, bfloat16 and float16 on the tensor cores. Deterministic: no atomic adds, a
// block owns what it writes.
//
//   row_deltas   float32, float64: delta_i = grad_out_i . out_i            a warp a row
//   gradients    16-bit types, three times: deltas and grad_q with blocks that own queries, grad_k and grad_v with blocks
//                that own keys
//
// Where softmax is nearly one key, dp - delta is a small difference, and a delta from the rounded 16-bit out is off by more
// than that: so it is summed, delta_i = sum_j p_ij dp_ij, from the p and dp of which it is taken. That pass costs 2 matrix
// products beside the 3 + 4 of the others.
//
// All blocks are one kernel. It owns rows of two inputs (q and grad_out; k and v) and streams tiles of the other two (k and
// v; q and grad_out) through shared memory, the next pair on the way while one is used. 16 streamed rows at a time, in
// registers:
//   s = own_1 other_1^T    dp = own_2 other_2^T    p = exp(s - logsumexp)    ds = p (dp - delta)
//   deltas: delta += sum p dp    queries: grad_1 += ds other_1    keys: grad_1 += ds other_1, grad_2 += p other_2
// where with keys s, dp, p, ds are the transposed of what they are with queries.
//
// What bounds it: shared memory. Where a warp owns 16 rows, a fragment (4 cycles) feeds two products, 4 cycles of the tensor
// cores of sm_80 and 2 of the peak of sm_90; 32 rows, where the sums leave registers for them, halve that. All row numbers
// that a tile needs come with it, and no global address is kept across the loop.
#include "interval_attention_cuda.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes, kOthers = 64, kStages = 2;
static_assert(kOthers == kHullRows, "a streamed tile of queries is what has a hull");

enum class Of { deltas, queries, keys };

template <class T_, Of kOf_, int kDim_, int kOwnTiles_>
struct Plan {
  using T = T_;
  static constexpr Of kOf = kOf_;
  static constexpr bool kOwnKeys = kOf == Of::keys;
  static constexpr int kDim = kDim_, kOwnTiles = kOwnTiles_;
  static constexpr int kBlocks = kDim == 128 ? 1 : kDim * kOwnTiles > 64 ? 2 : 3;  // on a multiprocessor, by registers
  static constexpr int kWarpRows = 16 * kOwnTiles, kOwnRows = kWarpRows * kWarps;
  static constexpr int kStreamed = kStages * 2 * kOthers;
  // The own rows lie where the streamed ones will, until they are in registers.
  static constexpr size_t kTiles = sizeof(T) * kPitch<kDim> * (kStreamed > 2 * kOwnRows ? kStreamed : 2 * kOwnRows);
  static constexpr int kStagesOfRows = kOwnKeys ? kStages * kOthers : kOwnRows;  // queries with span, logsumexp, delta
  static constexpr size_t kShared = kTiles + kStagesOfRows * (sizeof(Span) + 2 * sizeof(float));
};

template <class T>
struct Arguments {
  IntervalAttentionCudaBackwardParams<T> p;
  int num_tiles;  // of own rows
  bool q_vectors, k_vectors, v_vectors, grad_vectors;
};

// The next tile of queries, from `from` on, whose hull meets the keys [begin, end); every warp finds it for itself.
__device__ __forceinline__ int next_tile(const int32_t* hulls, int num_tiles, int from, int begin, int end) {
  for (int base = from; base < num_tiles; base += kLanes) {
    const int tile = base + threadIdx.x % kLanes;
    const bool seen = tile < num_tiles && sees_any(read_span(hulls + static_cast<int64_t>(tile) * 4), begin, end);
    if (const unsigned votes = __ballot_sync(kAllLanes, seen)) return base + __ffs(votes) - 1;
  }
  return kNoBlock;
}

// kernels

template <class C>
__global__ void __launch_bounds__(kThreads) row_deltas(IntervalAttentionBackwardParams<C> p) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes, dim = p.shape.value_dim;
  if (row >= p.shape.batch * p.shape.heads * p.shape.num_queries) return;
  C sum = 0;
  for (int64_t e = threadIdx.x % kLanes; e < dim; e += kLanes) sum += p.out[row * dim + e] * p.grad_out[row * dim + e];
  for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (threadIdx.x % kLanes == 0) p.delta[row] = sum;
}

template <class P>
__global__ void __launch_bounds__(kThreads, P::kBlocks) gradients(Arguments<typename P::T> x) {
  using T = typename P::T;
  constexpr int kSteps = P::kDim / 16;
  const IntervalAttentionBackwardParams<T>& p = x.p.attention;
  const IntervalAttentionShape& shape = p.shape;
  T* const tiles = dynamic_shared<T>();
  unsigned char* const after = reinterpret_cast<unsigned char*>(tiles) + P::kTiles;
  Span* const spans = reinterpret_cast<Span*>(after);
  float* const logsumexps = reinterpret_cast<float*>(spans + P::kStagesOfRows);
  float* const deltas = logsumexps + P::kStagesOfRows;
  const int warp_row = threadIdx.x / kLanes * P::kWarpRows, lane = threadIdx.x % kLanes;

  const int num_queries = static_cast<int>(shape.num_queries), num_keys = static_cast<int>(shape.num_keys);
  const int dim = static_cast<int>(shape.dim), value_dim = static_cast<int>(shape.value_dim);
  const int own_heads = static_cast<int>(P::kOwnKeys ? shape.kv_heads : shape.heads);
  const int together = static_cast<int>(shape.heads / shape.kv_heads), index = static_cast<int>(blockIdx.x);
  const int own_head = index / x.num_tiles % own_heads, kv_head = P::kOwnKeys ? own_head : own_head / together;
  const int64_t batch = index / x.num_tiles / own_heads;
  // The tiles with most to do come first, where attention is causal.
  const int own_tile = index % x.num_tiles;
  const int first_own = (P::kOwnKeys ? own_tile : x.num_tiles - 1 - own_tile) * P::kOwnRows;
  const T* const k = p.k + batch * shape.k.batch + kv_head * shape.k.head;
  const T* const v = p.v + batch * shape.v.batch + kv_head * shape.v.head;
  const int32_t* const intervals = p.intervals + batch * shape.interval_batch;
  const int num_hulls = static_cast<int>(ceil_div(shape.num_queries, kHullRows));
  const int32_t* const hulls = x.p.hulls + (shape.interval_batch == 0 ? 0 : batch) * num_hulls * 4;

  // Rows [first, first + kRows) of the two inputs of the queries of `head`, or of those of the keys, on their way.
  const auto load_queries = [&]<int kRows>(T* tile, int head, int first) {
    const T* const q = p.q + batch * shape.q.batch + head * shape.q.head + first * shape.q.row;
    const T* const grad = p.grad_out + ((batch * shape.heads + head) * shape.num_queries + first) * shape.value_dim;
    load_tile<kRows, P::kDim, kThreads>(tile, q, shape.q.row, num_queries - first, dim, x.q_vectors);
    load_tile<kRows, P::kDim, kThreads>(tile + kRows * kPitch<P::kDim>, grad, shape.value_dim, num_queries - first,
                                        value_dim, x.grad_vectors);
  };
  const auto load_keys = [&]<int kRows>(T* tile, int first) {
    load_tile<kRows, P::kDim, kThreads>(tile, k + first * shape.k.row, shape.k.row, num_keys - first, dim, x.k_vectors);
    load_tile<kRows, P::kDim, kThreads>(tile + kRows * kPitch<P::kDim>, v + first * shape.v.row, shape.v.row,
                                        num_keys - first, value_dim, x.v_vectors);
  };
  // Span, logsumexp and delta of queries; where there is none: sees nothing, zeros.
  const auto load_rows = [&](int at, int head, int first, int count) {
    const int64_t row = (batch * shape.heads + head) * shape.num_queries + first;
    for (int i = threadIdx.x; i < count; i += kThreads) {
      const bool valid = first + i < num_queries;
      copy_async_4(logsumexps + at + i, p.logsumexp + row + i, valid);
      if (P::kOf != Of::deltas) copy_async_4(deltas + at + i, p.delta + row + i, valid);
      copy_async_16(spans + at + i, intervals + (static_cast<int64_t>(first) + i) * 4, valid);
    }
  };

  if constexpr (P::kOwnKeys) {
    load_keys.template operator()<P::kOwnRows>(tiles, first_own);
  } else {
    load_queries.template operator()<P::kOwnRows>(tiles, own_head, first_own);
    load_rows(0, own_head, first_own, P::kOwnRows);
  }
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  uint32_t own_1[P::kOwnTiles][kSteps][4], own_2[P::kOwnTiles][kSteps][4];
#pragma unroll
  for (int i = 0; i < P::kOwnTiles; ++i) {
#pragma unroll
    for (int d = 0; d < kSteps; ++d) {
      load_left<P::kDim>(own_1[i][d], tiles, warp_row + i * 16, d * 16);
      load_left<P::kDim>(own_2[i][d], tiles + P::kOwnRows * kPitch<P::kDim>, warp_row + i * 16, d * 16);
    }
  }
  __syncthreads();

  // Where we are in what is streamed: a block, and with keys a head of those that share them.
  const int end_own = min(num_keys - first_own, P::kOwnRows) + first_own;
  const auto next_block_of = [&](int from) {
    if constexpr (P::kOwnKeys) return next_tile(hulls, num_hulls, from, first_own, end_own);
    return next_block<kOthers>(spans, P::kOwnRows, from);
  };
  const auto load_stage = [&](int stage, int head, int block) {
    T* const tile = tiles + stage * 2 * kOthers * kPitch<P::kDim>;
    if constexpr (P::kOwnKeys) {
      load_queries.template operator()<kOthers>(tile, head, block * kOthers);
      load_rows(stage * kOthers, head, block * kOthers, kOthers);
    } else {
      load_keys.template operator()<kOthers>(tile, block * kOthers);
    }
    commit_copies();
  };
  const int first_block_seen = together > 0 ? next_block_of(0) : kNoBlock;  // no query heads: zeros
  int block = first_block_seen, stage = 0;
  int head = kv_head * together;
  if (block != kNoBlock) load_stage(0, head, block);

  constexpr int kColumns = P::kDim / 8;
  float grad_1[P::kOwnTiles][P::kOf == Of::deltas ? 1 : kColumns][4] = {};
  float grad_2[P::kOwnTiles][P::kOwnKeys ? kColumns : 1][4] = {}, delta[P::kOwnTiles][2] = {};
  const float scale = static_cast<float>(shape.scale) * kLog2E;
  while (block != kNoBlock) {
    int next = next_block_of(block + 1);
    int next_head = head;
    if (P::kOwnKeys && next == kNoBlock && ++next_head < (kv_head + 1) * together) next = first_block_seen;
    wait_copies<0>();
    __syncthreads();  // this stage is there, and nobody reads the other any more
    if (next != kNoBlock) load_stage(stage ^ 1, next_head, next);

    const T* const other_1 = tiles + stage * 2 * kOthers * kPitch<P::kDim>;
    const T* const other_2 = other_1 + kOthers * kPitch<P::kDim>;
    const int first_other = block * kOthers, rows_at = P::kOwnKeys ? stage * kOthers : warp_row;
    // Bit c: are any, all pairs of the warp's own rows and of the streamed rows 16 c, 16 c + 1, ... seen?
    unsigned any = 0, all = 0;
    if constexpr (P::kOwnKeys) {
      const int begin = first_own + warp_row;
#pragma unroll
      for (int half = 0; half < kOthers / kLanes; ++half) {
        const Span span = spans[rows_at + half * kLanes + lane];
        const unsigned some = __ballot_sync(kAllLanes, sees_any(span, begin, begin + P::kWarpRows));
        const unsigned every = __ballot_sync(kAllLanes, sees_all(span, begin, begin + P::kWarpRows));
        any |= ((some & 0xffffu) != 0 ? 1u : 0u) << 2 * half | ((some >> 16) != 0 ? 2u : 0u) << 2 * half;
        all |= ((every & 0xffffu) == 0xffffu ? 1u : 0u) << 2 * half | ((every >> 16) == 0xffffu ? 2u : 0u) << 2 * half;
      }
    } else {
      const Span span = spans[warp_row + lane % P::kWarpRows];
#pragma unroll
      for (int c = 0; c < kOthers / 16; ++c) {
        const int begin = first_other + c * 16;
        any |= (__any_sync(kAllLanes, sees_any(span, begin, begin + 16)) ? 1u : 0u) << c;
        all |= (__all_sync(kAllLanes, sees_all(span, begin, begin + 16)) ? 1u : 0u) << c;
      }
    }

#pragma unroll 1
    for (int c = 0; c < kOthers / 16; ++c) {
      if (!(any >> c & 1)) continue;
      float s[P::kOwnTiles][2][4] = {}, dp[P::kOwnTiles][2][4] = {};
#pragma unroll
      for (int d = 0; d < kSteps; ++d) {
        uint32_t b[4];
        load_right<P::kDim>(b, other_1, c * 16, d * 16);
#pragma unroll
        for (int i = 0; i < P::kOwnTiles; ++i) {
          mma<T>(s[i][0], own_1[i][d], b[0], b[1]);
          mma<T>(s[i][1], own_1[i][d], b[2], b[3]);
        }
        load_right<P::kDim>(b, other_2, c * 16, d * 16);
#pragma unroll
        for (int i = 0; i < P::kOwnTiles; ++i) {
          mma<T>(dp[i][0], own_2[i][d], b[0], b[1]);
          mma<T>(dp[i][1], own_2[i][d], b[2], b[3]);
        }
      }
      // One after the other: what a pair's query has (span, logsumexp, delta) is not kept for all three.
      const auto query_of = [&](int i, int n, int r) {  // in shared memory
        return rows_at + (P::kOwnKeys ? c * 16 + n * 8 + result_column(r) : i * 16 + result_row(r));
      };
      const auto each_pair = [&](const auto& function) {
#pragma unroll
        for (int i = 0; i < P::kOwnTiles; ++i) {
#pragma unroll
          for (int n = 0; n < 2; ++n) {
#pragma unroll
            for (int r = 0; r < 4; ++r) function(i, n, r);
          }
        }
      };
      each_pair([&](int i, int n, int r) {
        s[i][n][r] = fast_exp2(fmaf(s[i][n][r], scale, logsumexps[query_of(i, n, r)] * -kLog2E));
      });
      if (!(all >> c & 1)) {
        each_pair([&](int i, int n, int r) {
          const int key = P::kOwnKeys ? first_own + warp_row + i * 16 + result_row(r)
                                      : first_other + c * 16 + n * 8 + result_column(r);
          if (!sees(spans[query_of(i, n, r)], key)) s[i][n][r] = 0;
        });
      }
      each_pair([&](int i, int n, int r) {
        if constexpr (P::kOf == Of::deltas) {
          delta[i][r / 2] += s[i][n][r] * dp[i][n][r];
        } else {
          dp[i][n][r] = s[i][n][r] * (dp[i][n][r] - deltas[query_of(i, n, r)]);
        }
      });
      if constexpr (P::kOf != Of::deltas) {
        uint32_t p_left[P::kOwnTiles][4], ds_left[P::kOwnTiles][4];
#pragma unroll
        for (int i = 0; i < P::kOwnTiles; ++i) {
          if constexpr (P::kOwnKeys) as_left<T>(p_left[i], s[i][0], s[i][1]);
          as_left<T>(ds_left[i], dp[i][0], dp[i][1]);
        }
#pragma unroll
        for (int e = 0; e < kSteps; ++e) {
          uint32_t b[4];
          load_right_plain<P::kDim>(b, other_1, c * 16, e * 16);
#pragma unroll
          for (int i = 0; i < P::kOwnTiles; ++i) {
            mma<T>(grad_1[i][2 * e], ds_left[i], b[0], b[1]);
            mma<T>(grad_1[i][2 * e + 1], ds_left[i], b[2], b[3]);
          }
          if constexpr (P::kOwnKeys) {
            load_right_plain<P::kDim>(b, other_2, c * 16, e * 16);
#pragma unroll
            for (int i = 0; i < P::kOwnTiles; ++i) {
              mma<T>(grad_2[i][2 * e], p_left[i], b[0], b[1]);
              mma<T>(grad_2[i][2 * e + 1], p_left[i], b[2], b[3]);
            }
          }
        }
      }
    }
    block = next;
    head = next_head;
    stage ^= 1;
  }

  if constexpr (P::kOf == Of::deltas) {
#pragma unroll
    for (int i = 0; i < P::kOwnTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float sum = delta[i][half] + __shfl_xor_sync(kAllLanes, delta[i][half], 1);
        sum += __shfl_xor_sync(kAllLanes, sum, 2);
        const int own = first_own + warp_row + i * 16 + result_row(2 * half);
        if (own < num_queries && threadIdx.x % 4 == 0) p.delta[(batch * own_heads + own_head) * num_queries + own] = sum;
      }
    }
  } else {
    const float factor = static_cast<float>(shape.scale);
    const int num_own = P::kOwnKeys ? num_keys : num_queries;
    T* const to_1 = P::kOwnKeys ? p.grad_k : p.grad_q;
#pragma unroll
    for (int i = 0; i < P::kOwnTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int own = first_own + warp_row + i * 16 + result_row(2 * half);
        if (own >= num_own) continue;
        const int64_t row = (batch * own_heads + own_head) * num_own + own;
#pragma unroll
        for (int e = 0; e < kColumns; ++e) {
          const int column = e * 8 + result_column(0);
          store_pair(to_1 + row * dim, column, dim, grad_1[i][e][2 * half] * factor, grad_1[i][e][2 * half + 1] * factor);
          if constexpr (P::kOwnKeys)
            store_pair(p.grad_v + row * value_dim, column, value_dim, grad_2[i][e][2 * half], grad_2[i][e][2 * half + 1]);
        }
      }
    }
  }
}

// launchers

template <class P>
cudaError_t start(const IntervalAttentionCudaBackwardParams<typename P::T>& p, cudaStream_t stream) {
  const IntervalAttentionBackwardParams<typename P::T>& a = p.attention;
  const IntervalAttentionShape& shape = a.shape;
  const int64_t tiles = ceil_div(P::kOwnKeys ? shape.num_keys : shape.num_queries, P::kOwnRows);
  const int64_t blocks = tiles * (P::kOwnKeys ? shape.kv_heads : shape.heads) * shape.batch;
  if (blocks == 0) return cudaSuccess;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  const Arguments<typename P::T> x{p, static_cast<int>(tiles), in_vectors(a.q, shape.q, shape.dim),
                                   in_vectors(a.k, shape.k, shape.dim), in_vectors(a.v, shape.v, shape.value_dim),
                                   in_vectors(a.grad_out, {0, 0, shape.value_dim}, shape.value_dim)};
  return launch(gradients<P>, static_cast<unsigned>(blocks), kThreads, P::kShared, stream, x);
}

template <class T, int kDim, int kDeltaTiles, int kQueryTiles, int kKeyTiles>
cudaError_t start_all(const IntervalAttentionCudaBackwardParams<T>& p, cudaStream_t stream) {
  cudaError_t error = start<Plan<T, Of::deltas, kDim, kDeltaTiles>>(p, stream);
  if (error == cudaSuccess) error = start<Plan<T, Of::queries, kDim, kQueryTiles>>(p, stream);
  return error == cudaSuccess ? start<Plan<T, Of::keys, kDim, kKeyTiles>>(p, stream) : error;
}

template <class T>
cudaError_t start_tiles(const IntervalAttentionCudaBackwardParams<T>& p, cudaStream_t stream) {
  const int64_t dim = max(p.attention.shape.dim, p.attention.shape.value_dim);
  if (dim <= 32) return start_all<T, 32, 2, 2, 2>(p, stream);
  if (dim <= 64) return start_all<T, 64, 2, 2, 1>(p, stream);
  if (dim <= 96) return start_all<T, 96, 2, 1, 1>(p, stream);
  return start_all<T, 128, 2, 1, 1>(p, stream);
}

}  // namespace

template <class T>
cudaError_t interval_attention_backward_cuda(const IntervalAttentionCudaBackwardParams<T>& p, cudaStream_t stream) {
  const IntervalAttentionShape& shape = p.attention.shape;
  if (shape.batch == 0) return cudaSuccess;
  if (shape.num_queries > kMostRows || shape.num_keys > kMostRows) return cudaErrorInvalidValue;
  if constexpr (sizeof(T) == 2) {
    if (max(shape.dim, shape.value_dim) <= kMostTensorDim) return start_tiles(p, stream);
  } else {
    const int64_t blocks = ceil_div(shape.batch * shape.heads * shape.num_queries, kWarps);
    if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
    if (blocks > 0) {
      const cudaError_t error = launch(row_deltas<T>, static_cast<unsigned>(blocks), kThreads, 0, stream, p.attention);
      if (error != cudaSuccess) return error;
    }
  }
  return interval_attention_backward_plain(p.attention, stream);
}

template cudaError_t interval_attention_backward_cuda(const IntervalAttentionCudaBackwardParams<float>&, cudaStream_t);
template cudaError_t interval_attention_backward_cuda(const IntervalAttentionCudaBackwardParams<double>&, cudaStream_t);
template cudaError_t interval_attention_backward_cuda(const IntervalAttentionCudaBackwardParams<BFloat16>&, cudaStream_t);
template cudaError_t interval_attention_backward_cuda(const IntervalAttentionCudaBackwardParams<Half>&, cudaStream_t);

}  // namespace pyramid::kernels
