// Tiles of 16-bit numbers in shared memory, and the fragments of mma (cuda_device.cuh) that a warp reads from them.
#pragma once

#include "cuda_device.cuh"

namespace pyramid::kernels {

constexpr int kLanes = 32;

// From one row of a tile to the next. Eight rows begin in eight different groups of four banks, since this is an odd
// multiple of 16 bytes (kWidth is a multiple of 16): ldmatrix meets no conflict.
template <int kWidth>
constexpr int kTileStep = kWidth + 8;

// kLines lines of `columns` numbers (at most kWidth), `stride` apart, to a tile: asynchronous, 16 bytes at a time. Not
// unrolled: the addresses would take registers that the sums need.
template <int kWidth, int kLines, int kThreads, class T>
__device__ __forceinline__ void copy_lines(T* tile, const T* source, int stride, int columns) {
  constexpr int kEach = kWidth / 8, kTogether = kThreads / kEach;
  int line = threadIdx.x / kEach;
  const int at = threadIdx.x % kEach * 8;
  if (at >= columns) return;
  source += static_cast<int64_t>(line) * stride + at;
  tile += line * kTileStep<kWidth> + at;
#pragma unroll 1
  for (; line < kLines; line += kTogether) {
    copy_async_16(tile, source, true);
    source += static_cast<int64_t>(kTogether) * stride;
    tile += kTogether * kTileStep<kWidth>;
  }
}

// Fragments of three kinds, 16 x 16 at `tile`, whose rows lie kStep numbers apart:
//   left:         (rows, columns) as the left factor of mma
//   right:        the transpose of (rows, columns) as the right one: two blocks of 8 columns, r[0..1] and r[2..3]
//   right_plain:  (rows, columns) itself as the right one, likewise
template <int kStep, class T>
__device__ __forceinline__ void load_left(uint32_t (&r)[4], const T* tile) {
  const int lane = threadIdx.x % kLanes;
  load_matrices(r, tile + lane % 16 * kStep + lane / 16 * 8);
}
template <int kStep, class T>
__device__ __forceinline__ void load_right(uint32_t (&r)[4], const T* tile) {
  const int lane = threadIdx.x % kLanes;
  load_matrices(r, tile + (lane / 16 * 8 + lane % 8) * kStep + lane / 8 % 2 * 8);
}
template <int kStep, class T>
__device__ __forceinline__ void load_right_plain(uint32_t (&r)[4], const T* tile) {
  const int lane = threadIdx.x % kLanes;
  load_matrices_transposed(r, tile + lane % 16 * kStep + lane / 16 * 8);
}

// Where the result i of mma is: its row of 16 and its column of 8.
__device__ __forceinline__ int result_row(int i) { return threadIdx.x % kLanes / 4 + (i / 2) * 8; }
__device__ __forceinline__ int result_column(int i) { return threadIdx.x % 4 * 2 + i % 2; }

// The sum over the lanes of a warp, in all of them.
template <class C>
__device__ __forceinline__ C warp_sum(C value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

}  // namespace pyramid::kernels
