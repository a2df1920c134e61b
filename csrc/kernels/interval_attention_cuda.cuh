// What the attention kernels on CUDA share: what a tile of queries sees, tiles in shared memory, products of a warp.
//
// A key block is found, not looked for: from the intervals of a tile follows in closed form the next block that any of
// its rows sees, so the cost of what is not seen is nothing at all.
#pragma once

#include "cuda_device.cuh"
#include "interval_attention.h"

namespace pyramid::kernels {

constexpr int kLanes = 32;
constexpr int kNoBlock = 0x7fffffff;
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// intervals

struct alignas(16) Span {
  int a, b, c, d;
};

// From what read_intervals_cuda wrote.
__device__ __forceinline__ Span read_span(const int32_t* interval) { return *reinterpret_cast<const Span*>(interval); }

// What is left of a span in the keys [begin, end).
__device__ __forceinline__ Span clip(Span s, int begin, int end) {
  s.a = max(s.a, begin);
  s.b = max(min(s.b, end), s.a);
  s.c = max(s.c, begin);
  s.d = max(min(s.d, end), s.c);
  return s;
}

__device__ __forceinline__ bool sees(const Span& s, int key) {
  return static_cast<unsigned>(key - s.a) < static_cast<unsigned>(s.b - s.a) ||
         static_cast<unsigned>(key - s.c) < static_cast<unsigned>(s.d - s.c);
}

// Any, all of the keys [begin, end).
__device__ __forceinline__ bool sees_any(const Span& s, int begin, int end) {
  return max(s.a, begin) < min(s.b, end) || max(s.c, begin) < min(s.d, end);
}
__device__ __forceinline__ bool sees_all(const Span& s, int begin, int end) {
  int reach = begin;
  if (s.a <= reach) reach = max(reach, s.b);
  if (s.c <= reach) reach = max(reach, s.d);
  if (s.a <= reach) reach = max(reach, s.b);
  return reach >= end;
}

// The first block of kKeys keys from block `from` on that meets [begin, end).
template <int kKeys>
__device__ __forceinline__ int first_block(int begin, int end, int from) {
  return begin < end && (end - 1) / kKeys >= from ? max(begin / kKeys, from) : kNoBlock;
}

// The same for any row of a tile; every warp finds it for itself.
template <int kKeys>
__device__ __forceinline__ int next_block(const Span* spans, int num_rows, int from) {
  int found = kNoBlock;
  for (int row = threadIdx.x % kLanes; row < num_rows; row += kLanes) {
    const Span s = spans[row];
    found = min(found, min(first_block<kKeys>(s.a, s.b, from), first_block<kKeys>(s.c, s.d, from)));
  }
  return __reduce_min_sync(kAllLanes, found);
}

// tiles of 16-bit elements in shared memory

// A row of a tile. 16 bytes of padding: eight rows begin in eight different groups of four banks (all sizes are odd
// multiples of 16 bytes), so ldmatrix meets no conflict.
template <int kDim>
constexpr int kPitch = kDim + 8;

// `row_of`(i) gives the address of row i, null for a row of zeros. `vectors`: every row is aligned to 16 bytes and dim is a
// multiple of 8, so the copies are asynchronous; if not, they are done element by element.
template <int kRows, int kDim, int kThreads, class T, class Row>
__device__ __forceinline__ void load_rows(T* tile, int dim, bool vectors, const Row& row_of) {
  constexpr int kChunks = kDim / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < kRows * kChunks; i += kThreads) {
    const int row = i / kChunks, column = i % kChunks * 8;
    const T* const source = row_of(row);
    T* const target = tile + row * kPitch<kDim> + column;
    if (vectors) {
      copy_async_16(target, source + column, source != nullptr && column < dim);
    } else {
#pragma unroll 1
      for (int k = 0; k < 8; ++k) target[k] = source != nullptr && column + k < dim ? source[column + k] : T{0};
    }
  }
}

// Rows `stride` apart, of which there are num_rows: a thread keeps to its column, and to two registers of address while
// the sums of the kernel take almost all there are.
template <int kRows, int kDim, int kThreads, class T>
__device__ __forceinline__ void load_tile(T* tile, const T* first, int64_t stride, int num_rows, int dim, bool vectors) {
  constexpr int kChunks = kDim / 8, kStep = kThreads / kChunks;
  if (!vectors) {
    const auto row_of = [&](int row) { return row < num_rows ? first + row * stride : nullptr; };
    load_rows<kRows, kDim, kThreads>(tile, dim, false, row_of);
    return;
  }
  const int thread = fresh_thread(), column = thread % kChunks * 8, begin = thread / kChunks;
  if (begin >= kStep) return;  // 96: eight threads have none
  const T* source = first + begin * stride + column;
  T* target = tile + begin * kPitch<kDim> + column;
  if (column >= dim) num_rows = 0;
#pragma unroll
  for (int row = 0; row < kRows; row += kStep, source += kStep * stride, target += kStep * kPitch<kDim>) {
    if (kRows % kStep == 0 || begin + row < kRows) copy_async_16(target, source, begin + row < num_rows);
  }
}

// Fragments of the three kinds, 16 x 16 of a tile, lane by lane. `rows`, `columns`: where they begin.
//   left:         (rows, columns) as the left factor of mma
//   right:        the transpose of (rows, columns) as the right one: two blocks of 8 columns, r[0..1] and r[2..3]
//   right_plain:  (rows, columns) itself as the right one, likewise
template <int kDim, class T>
__device__ __forceinline__ void load_left(uint32_t (&r)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % kLanes;
  load_matrices(r, tile + (row + lane % 16) * kPitch<kDim> + column + lane / 16 * 8);
}
template <int kDim, class T>
__device__ __forceinline__ void load_right(uint32_t (&r)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % kLanes;
  load_matrices(r, tile + (row + lane / 16 * 8 + lane % 8) * kPitch<kDim> + column + lane / 8 % 2 * 8);
}
template <int kDim, class T>
__device__ __forceinline__ void load_right_plain(uint32_t (&r)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % kLanes;
  load_matrices_transposed(r, tile + (row + lane % 16) * kPitch<kDim> + column + lane / 16 * 8);
}

// Two neighbouring 16 x 8 results of mma as the left factor (16, 16) of the next.
template <class T>
__device__ __forceinline__ void as_left(uint32_t (&r)[4], const float (&low)[4], const float (&high)[4]) {
  r[0] = pack<T>(low[0], low[1]);
  r[1] = pack<T>(low[2], low[3]);
  r[2] = pack<T>(high[0], high[1]);
  r[3] = pack<T>(high[2], high[3]);
}

// Where the result i of mma is: its row of 16 and its column of 8.
__device__ __forceinline__ int result_row(int i) { return threadIdx.x % kLanes / 4 + (i / 2) * 8; }
__device__ __forceinline__ int result_column(int i) { return threadIdx.x % 4 * 2 + i % 2; }

// Two neighbouring results of a row to a matrix with `dim` columns.
template <class T>
__device__ __forceinline__ void store_pair(T* row, int column, int dim, float first, float second) {
  if (column + 1 < dim && dim % 2 == 0) {
    *reinterpret_cast<uint32_t*>(row + column) = pack<T>(first, second);
  } else {
    if (column < dim) row[column] = narrow<T>(first);
    if (column + 1 < dim) row[column + 1] = narrow<T>(second);
  }
}

// host: sizes and alignment

// Positions are int32, the end of a tile beyond the last row included.
constexpr int64_t kMostRows = 0x7fffffff - 256;

template <class T>
bool in_vectors(const T* data, const HeadStrides& strides, int64_t dim) {
  constexpr int64_t kEach = 16 / sizeof(T);
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && dim % kEach == 0 && strides.batch % kEach == 0 &&
         strides.head % kEach == 0 && strides.row % kEach == 0;
}

// The tensor cores have kernels for heads of up to 128 numbers.
constexpr int64_t kMostTensorDim = 128;

// Keys in a slice; kWhole: all of them.
constexpr int kWhole = 0x7fffffff;
int interval_attention_slice(const IntervalAttentionShape&);

// Any type, any size: interval_attention_plain_cuda.cu.
template <class T>
cudaError_t interval_attention_plain(const IntervalAttentionSplitParams<T>&, cudaStream_t);
template <class T>
cudaError_t interval_attention_backward_plain(const IntervalAttentionBackwardParams<T>&, cudaStream_t);

}  // namespace pyramid::kernels
