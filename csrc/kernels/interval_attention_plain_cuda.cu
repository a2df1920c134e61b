// interval_attention on CUDA without tensor cores: float32 (exact products, unlike tf32), float64, and 16-bit types with
// heads beyond 128. The same tiles and the same skipping as interval_attention_cuda.cu; 16 x 16 threads form a tile of
// products, kEach x kEach a thread, from shared memory. What a block gives has kTile columns: with wider heads, further
// blocks (blockIdx.z) form the scores again.
#include "interval_attention_cuda.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kSide = 16, kThreads = kSide * kSide, kChunk = 16;
template <class C>
constexpr int kEach = sizeof(C) == 8 ? 2 : 4;
template <class C>
constexpr int kTile = kSide * kEach<C>;
template <class C>
constexpr int kRow = kTile<C> + 16 / static_cast<int>(sizeof(C));  // of shared memory

template <class C>
using Tile = C[kEach<C>][kEach<C>];

// A thread's first row and column of a tile.
template <class C>
__device__ int row_of_thread() { return threadIdx.x / kSide * kEach<C>; }
template <class C>
__device__ int column_of_thread() { return threadIdx.x % kSide * kEach<C>; }

template <class C>
struct Shared {
  C left[kTile<C>][kRow<C>], right[kTile<C>][kRow<C>];  // (summed over, rows), (summed over, columns)
  Span spans[kTile<C>];
};

// product += left^T right over `count` of the summed axis.
template <class C>
__device__ void multiply(Tile<C>& product, const Shared<C>& shared, int count) {
  for (int k = 0; k < count; ++k) {
    C a[kEach<C>], b[kEach<C>];
#pragma unroll
    for (int i = 0; i < kEach<C>; ++i) a[i] = shared.left[k][row_of_thread<C>() + i];
#pragma unroll
    for (int j = 0; j < kEach<C>; ++j) b[j] = shared.right[k][column_of_thread<C>() + j];
#pragma unroll
    for (int i = 0; i < kEach<C>; ++i)
#pragma unroll
      for (int j = 0; j < kEach<C>; ++j) product[i][j] += a[i] * b[j];
  }
}

// `matrix`(row) gives the address of a row, null for zeros.
// Its columns [first, first + kTile) as they are.
template <class C, class Matrix>
__device__ void load_columns(C (&tile)[kTile<C>][kRow<C>], const Matrix& matrix, int64_t first, int64_t dim) {
#pragma unroll 1
  for (int i = threadIdx.x; i < kTile<C> * kTile<C>; i += kThreads) {
    const int row = i / kTile<C>, column = i % kTile<C>;
    const auto* const source = matrix(row);
    tile[row][column] = source != nullptr && first + column < dim ? C(widen(source[first + column])) : C(0);
  }
}

// product = a b^T, summed over their columns.
template <class C, class Left, class Right>
__device__ void multiply_rows(Tile<C>& product, Shared<C>& shared, const Left& a, const Right& b, int64_t dim) {
  for (int i = 0; i < kEach<C>; ++i)
    for (int j = 0; j < kEach<C>; ++j) product[i][j] = 0;
  for (int64_t first = 0; first < dim; first += kChunk) {
    __syncthreads();
#pragma unroll 2
    for (int i = threadIdx.x; i < kTile<C> * kChunk; i += kThreads) {
      const int row = i / kChunk, column = i % kChunk;
      const bool inside = first + column < dim;
      const auto *const left = a(row), *const right = b(row);
      shared.left[column][row] = inside && left != nullptr ? C(widen(left[first + column])) : C(0);
      shared.right[column][row] = inside && right != nullptr ? C(widen(right[first + column])) : C(0);
    }
    __syncthreads();
    multiply<C>(product, shared, kChunk);
  }
}

template <class C>
__device__ C over_columns_max(C value) {
  for (int step = kSide / 2; step > 0; step /= 2) {
    const C other = __shfl_xor_sync(kAllLanes, value, step);
    value = other > value ? other : value;
  }
  return value;
}
template <class C>
__device__ C over_columns_sum(C value) {
  for (int step = kSide / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// Rows of (B, heads, rows, dim): of a strided input, of a contiguous one. Outside: null.
template <class T>
__device__ auto rows_of(const T* data, const HeadStrides& strides, int64_t batch, int64_t head, int64_t first, int64_t count) {
  const T* const start = data + batch * strides.batch + head * strides.head;
  return [=](int row) -> const T* { return first + row < count ? start + (first + row) * strides.row : nullptr; };
}
__device__ HeadStrides contiguous(int64_t heads, int64_t rows, int64_t dim) { return {heads * rows * dim, rows * dim, dim}; }

template <class C>
__device__ void read_spans(Shared<C>& shared, const int32_t* intervals, const IntervalAttentionShape& shape, int64_t batch,
                           int64_t first, int begin, int end) {
  for (int i = threadIdx.x; i < kTile<C>; i += kThreads) {
    const int32_t* const of_batch = intervals + batch * shape.interval_batch;
    shared.spans[i] = first + i < shape.num_queries ? clip(read_span(of_batch + (first + i) * 4), begin, end) : Span{0, 0, 0, 0};
  }
}

// kernels

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
attend_plain(IntervalAttentionSplitParams<T> p, int64_t num_tiles, int slice, bool sliced) {
  using C = compute_t<T>;
  const IntervalAttentionShape& shape = p.attention.shape;
  Shared<C>& shared = *dynamic_shared<Shared<C>>();
  const int64_t tile = blockIdx.x % num_tiles, head = blockIdx.x / num_tiles % shape.heads;
  const int64_t batch = blockIdx.x / num_tiles / shape.heads, kv_head = head / (shape.heads / shape.kv_heads);
  const int64_t first = (num_tiles - 1 - tile) * kTile<C>, first_column = static_cast<int64_t>(blockIdx.z) * kTile<C>;
  const int num_keys = static_cast<int>(shape.num_keys), row = row_of_thread<C>(), column = column_of_thread<C>();
  const int begin = static_cast<int>(blockIdx.y) * slice, end = begin + min(num_keys - begin, slice);
  const C scale = static_cast<C>(shape.scale);
  read_spans<C>(shared, p.attention.intervals, shape, batch, first, begin, end);
  __syncthreads();

  Tile<C> out = {};
  C top[kEach<C>], sum[kEach<C>] = {};
  for (int i = 0; i < kEach<C>; ++i) top[i] = -INFINITY;
  const auto q = rows_of(p.attention.q, shape.q, batch, head, first, shape.num_queries);
  for (int block = next_block<kTile<C>>(shared.spans, kTile<C>, 0); block != kNoBlock;
       block = next_block<kTile<C>>(shared.spans, kTile<C>, block + 1)) {
    const int first_key = block * kTile<C>;
    Tile<C> s;
    multiply_rows<C>(s, shared, q, rows_of(p.attention.k, shape.k, batch, kv_head, first_key, num_keys), shape.dim);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kEach<C>; ++i) {
      const Span span = shared.spans[row + i];
      C best = top[i];
#pragma unroll
      for (int j = 0; j < kEach<C>; ++j) {
        s[i][j] = sees(span, first_key + column + j) ? s[i][j] * scale : C(-INFINITY);
        best = s[i][j] > best ? s[i][j] : best;
      }
      best = over_columns_max(best);
      const C base = best == -INFINITY ? C(0) : best, shrink = exp(top[i] - base);
      top[i] = best;
      sum[i] *= shrink;
#pragma unroll
      for (int j = 0; j < kEach<C>; ++j) {
        const C share = exp(s[i][j] - base);
        sum[i] += share;
        out[i][j] *= shrink;
        shared.left[column + j][row + i] = share;
      }
    }
    load_columns<C>(shared.right, rows_of(p.attention.v, shape.v, batch, kv_head, first_key, num_keys), first_column,
                    shape.value_dim);
    __syncthreads();
    multiply<C>(out, shared, kTile<C>);
  }

  const int64_t rows = shape.batch * shape.heads * shape.num_queries;
#pragma unroll
  for (int i = 0; i < kEach<C>; ++i) {
    const C total = over_columns_sum(sum[i]), inverse = total == 0 ? C(0) : 1 / total;
    if (first + row + i >= shape.num_queries) continue;
    const int64_t index = (batch * shape.heads + head) * shape.num_queries + first + row + i;
    if (column == 0 && blockIdx.z == 0)
      (sliced ? p.partial_logsumexp + blockIdx.y * rows : p.attention.logsumexp)[index] =
          total == 0 ? C(-INFINITY) : top[i] + log(total);
    for (int j = 0; j < kEach<C>; ++j) {
      const int64_t to = first_column + column + j;
      if (to >= shape.value_dim) continue;
      if (sliced) {
        p.partial_out[(blockIdx.y * rows + index) * shape.value_dim + to] = out[i][j] * inverse;
      } else {
        p.attention.out[index * shape.value_dim + to] = narrow<T>(out[i][j] * inverse);
      }
    }
  }
}

// Of a tile of queries and a block of keys: the gradient of the scores; for `value` the probabilities; for `delta` these
// times their gradient.
enum class Wanted { delta, query, key, value };

template <Wanted kWanted, class T, class C>
__device__ void score_gradients(Tile<C>& s, Shared<C>& shared, const IntervalAttentionBackwardParams<T>& p, int64_t batch,
                                int64_t head, int64_t first, int first_key) {
  const IntervalAttentionShape& shape = p.shape;
  const int64_t kv_head = head / (shape.heads / shape.kv_heads), S = shape.num_queries;
  const int64_t first_row = (batch * shape.heads + head) * S + first;
  const int row = row_of_thread<C>(), column = column_of_thread<C>();
  const C scale = static_cast<C>(shape.scale);
  Tile<C> along;
  if constexpr (kWanted != Wanted::value)
    multiply_rows<C>(along, shared, rows_of(p.grad_out, contiguous(shape.heads, S, shape.value_dim), batch, head, first, S),
                     rows_of(p.v, shape.v, batch, kv_head, first_key, shape.num_keys), shape.value_dim);
  multiply_rows<C>(s, shared, rows_of(p.q, shape.q, batch, head, first, S),
                   rows_of(p.k, shape.k, batch, kv_head, first_key, shape.num_keys), shape.dim);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kEach<C>; ++i) {
    const bool inside = first + row + i < S;
    const C logsumexp = inside ? p.logsumexp[first_row + row + i] : C(0);
    const C delta = inside && kWanted != Wanted::delta ? p.delta[first_row + row + i] : C(0);
    const Span span = shared.spans[row + i];
#pragma unroll
    for (int j = 0; j < kEach<C>; ++j) {
      s[i][j] = sees(span, first_key + column + j) ? exp(s[i][j] * scale - logsumexp) : C(0);
      if constexpr (kWanted == Wanted::delta) s[i][j] *= along[i][j];
      if constexpr (kWanted == Wanted::query || kWanted == Wanted::key) s[i][j] *= (along[i][j] - delta) * scale;
    }
  }
}

template <class T, class C>
__device__ void store_tile(T* target, int64_t first, int64_t count, int64_t first_column, int64_t dim, const Tile<C>& tile) {
  for (int i = 0; i < kEach<C>; ++i)
    for (int j = 0; j < kEach<C>; ++j) {
      const int64_t row = first + row_of_thread<C>() + i, column = first_column + column_of_thread<C>() + j;
      if (row < count && column < dim) target[row * dim + column] = narrow<T>(tile[i][j]);
    }
}

// 16-bit types: delta_i = sum_j p_ij dp_ij, see interval_attention_backward_cuda.cu.
template <class T>
__global__ void __launch_bounds__(kThreads, 2) deltas_plain(IntervalAttentionBackwardParams<T> p, int64_t num_tiles) {
  using C = compute_t<T>;
  const IntervalAttentionShape& shape = p.shape;
  Shared<C>& shared = *dynamic_shared<Shared<C>>();
  const int64_t head = blockIdx.x / num_tiles % shape.heads, batch = blockIdx.x / num_tiles / shape.heads;
  const int64_t first = (num_tiles - 1 - blockIdx.x % num_tiles) * kTile<C>;
  read_spans<C>(shared, p.intervals, shape, batch, first, 0, static_cast<int>(shape.num_keys));
  __syncthreads();
  C sum[kEach<C>] = {};
  for (int block = next_block<kTile<C>>(shared.spans, kTile<C>, 0); block != kNoBlock;
       block = next_block<kTile<C>>(shared.spans, kTile<C>, block + 1)) {
    Tile<C> s;
    score_gradients<Wanted::delta>(s, shared, p, batch, head, first, block * kTile<C>);
    for (int i = 0; i < kEach<C>; ++i)
      for (int j = 0; j < kEach<C>; ++j) sum[i] += s[i][j];
  }
  for (int i = 0; i < kEach<C>; ++i) {
    const C total = over_columns_sum(sum[i]);
    const int64_t query = first + row_of_thread<C>() + i;
    if (query < shape.num_queries && column_of_thread<C>() == 0)
      p.delta[(batch * shape.heads + head) * shape.num_queries + query] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2)
query_gradients_plain(IntervalAttentionBackwardParams<T> p, int64_t num_tiles) {
  using C = compute_t<T>;
  const IntervalAttentionShape& shape = p.shape;
  Shared<C>& shared = *dynamic_shared<Shared<C>>();
  const int64_t head = blockIdx.x / num_tiles % shape.heads, batch = blockIdx.x / num_tiles / shape.heads;
  const int64_t first = (num_tiles - 1 - blockIdx.x % num_tiles) * kTile<C>, kv_head = head / (shape.heads / shape.kv_heads);
  const int64_t first_column = static_cast<int64_t>(blockIdx.z) * kTile<C>;
  read_spans<C>(shared, p.intervals, shape, batch, first, 0, static_cast<int>(shape.num_keys));
  __syncthreads();
  Tile<C> grad = {};
  for (int block = next_block<kTile<C>>(shared.spans, kTile<C>, 0); block != kNoBlock;
       block = next_block<kTile<C>>(shared.spans, kTile<C>, block + 1)) {
    Tile<C> s;
    score_gradients<Wanted::query>(s, shared, p, batch, head, first, block * kTile<C>);
    for (int i = 0; i < kEach<C>; ++i)
      for (int j = 0; j < kEach<C>; ++j) shared.left[column_of_thread<C>() + j][row_of_thread<C>() + i] = s[i][j];
    load_columns<C>(shared.right, rows_of(p.k, shape.k, batch, kv_head, block * kTile<C>, shape.num_keys), first_column, shape.dim);
    __syncthreads();
    multiply<C>(grad, shared, kTile<C>);
  }
  store_tile<T, C>(p.grad_q + (batch * shape.heads + head) * shape.num_queries * shape.dim, first, shape.num_queries,
                   first_column, shape.dim, grad);
}

// grad_k or grad_v of a block of keys: over all heads that share it and all tiles of queries that see it.
template <Wanted kWanted, class T>
__global__ void __launch_bounds__(kThreads, 2)
key_gradients_plain(IntervalAttentionBackwardParams<T> p, int64_t num_tiles) {
  using C = compute_t<T>;
  const IntervalAttentionShape& shape = p.shape;
  Shared<C>& shared = *dynamic_shared<Shared<C>>();
  const int64_t kv_head = blockIdx.x / num_tiles % shape.kv_heads, batch = blockIdx.x / num_tiles / shape.kv_heads;
  const int first_key = static_cast<int>(blockIdx.x % num_tiles) * kTile<C>;
  const int64_t first_column = static_cast<int64_t>(blockIdx.z) * kTile<C>, together = shape.heads / shape.kv_heads;
  const int64_t dim = kWanted == Wanted::key ? shape.dim : shape.value_dim, S = shape.num_queries;
  Tile<C> grad = {};
  for (int64_t first = 0; first < S; first += kTile<C>) {
    __syncthreads();
    read_spans<C>(shared, p.intervals, shape, batch, first, 0, static_cast<int>(shape.num_keys));
    __syncthreads();
    bool seen = false;
    for (int row = threadIdx.x % kLanes; row < kTile<C>; row += kLanes)
      seen |= sees_any(shared.spans[row], first_key, first_key + kTile<C>);
    if (!__any_sync(kAllLanes, seen)) continue;  // the same in every warp
    for (int64_t head = kv_head * together; head < (kv_head + 1) * together; ++head) {
      Tile<C> s;
      score_gradients<kWanted>(s, shared, p, batch, head, first, first_key);
      for (int i = 0; i < kEach<C>; ++i)
        for (int j = 0; j < kEach<C>; ++j) shared.left[row_of_thread<C>() + i][column_of_thread<C>() + j] = s[i][j];
      const T* const data = kWanted == Wanted::key ? p.q : p.grad_out;
      const HeadStrides strides = kWanted == Wanted::key ? shape.q : contiguous(shape.heads, S, dim);
      load_columns<C>(shared.right, rows_of(data, strides, batch, head, first, S), first_column, dim);
      __syncthreads();
      multiply<C>(grad, shared, kTile<C>);
    }
  }
  store_tile<T, C>((kWanted == Wanted::key ? p.grad_k : p.grad_v) + (batch * shape.kv_heads + kv_head) * shape.num_keys * dim,
                   first_key, shape.num_keys, first_column, dim, grad);
}

// Blocks of a launch: (tiles x heads x batch, y, columns).
cudaError_t grid_of(dim3& grid, int64_t tiles, int64_t heads, int64_t batch, int64_t slices, int64_t columns) {
  const int64_t blocks = tiles * heads * batch;
  if (blocks > 0x7fffffff || slices > 65535 || columns > 65535) return cudaErrorInvalidConfiguration;
  grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(slices), static_cast<unsigned>(columns));
  return cudaSuccess;
}

}  // namespace

// launchers: called by interval_attention_cuda and its backward, which have looked for empty sizes

template <class T>
cudaError_t interval_attention_plain(const IntervalAttentionSplitParams<T>& p, cudaStream_t stream) {
  using C = compute_t<T>;
  const IntervalAttentionShape& shape = p.attention.shape;
  const int64_t tiles = ceil_div(shape.num_queries, kTile<C>), slices = interval_attention_slices(shape);
  dim3 grid;
  const cudaError_t error = grid_of(grid, tiles, shape.heads, shape.batch, slices, ceil_div(shape.value_dim, kTile<C>));
  if (error != cudaSuccess) return error;
  return launch(attend_plain<T>, grid, kThreads, sizeof(Shared<C>), stream, p, tiles, interval_attention_slice(shape), slices > 1);
}

template <class T>
cudaError_t interval_attention_backward_plain(const IntervalAttentionBackwardParams<T>& p, cudaStream_t stream) {
  using C = compute_t<T>;
  const IntervalAttentionShape& shape = p.shape;
  const int64_t tiles = ceil_div(shape.num_queries, kTile<C>), key_tiles = ceil_div(shape.num_keys, kTile<C>);
  const int64_t columns = ceil_div(shape.dim, kTile<C>), value_columns = ceil_div(shape.value_dim, kTile<C>);
  dim3 grid;
  cudaError_t error = cudaSuccess;
  if constexpr (sizeof(T) == 2) {
    error = grid_of(grid, tiles, shape.heads, shape.batch, 1, 1);
    if (error == cudaSuccess && grid.x > 0)
      error = launch(deltas_plain<T>, grid, kThreads, sizeof(Shared<C>), stream, p, tiles);
    if (error != cudaSuccess) return error;
  }
  error = grid_of(grid, tiles, shape.heads, shape.batch, 1, columns);
  if (error == cudaSuccess && grid.x > 0)
    error = launch(query_gradients_plain<T>, grid, kThreads, sizeof(Shared<C>), stream, p, tiles);
  if (error != cudaSuccess || key_tiles == 0) return error;
  error = grid_of(grid, key_tiles, shape.kv_heads, shape.batch, 1, columns);
  if (error == cudaSuccess)
    error = launch(key_gradients_plain<Wanted::key, T>, grid, kThreads, sizeof(Shared<C>), stream, p, key_tiles);
  if (error != cudaSuccess) return error;
  error = grid_of(grid, key_tiles, shape.kv_heads, shape.batch, 1, value_columns);
  if (error != cudaSuccess) return error;
  return launch(key_gradients_plain<Wanted::value, T>, grid, kThreads, sizeof(Shared<C>), stream, p, key_tiles);
}

#define PYRAMID_INSTANTIATE(T)                                                                        \
  template cudaError_t interval_attention_plain(const IntervalAttentionSplitParams<T>&, cudaStream_t); \
  template cudaError_t interval_attention_backward_plain(const IntervalAttentionBackwardParams<T>&, cudaStream_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace pyramid::kernels
