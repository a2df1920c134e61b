// Resampling of a level (t, h, w) to another grid, and the adjoint: what both devices share.
//
//   down: cell i of n is the mean of the cells [floor(i m / n), ceil((i + 1) m / n)) of m
//   up:   cell i of n is the cell floor(i m / n) of m
//
// axis by axis, in integers. Both are sums over a window of the source, and so is the adjoint: the cells of the result
// that a source cell went into are a window too. One pass either way: the windows of a cell are read where they lie,
// summed in float32 at least, divided, written.
//
// Two orders of memory are known: channels last (the channels of a cell are adjacent: vectors run along them) and
// planar (a row of w is adjacent: vectors run along it). Any other stride is read number by number.
#pragma once

#include <cstdint>

#include "cuda_types.h"
#include "isa.h"
#include "types.h"

namespace pyramid::kernels {

template <class I>
struct WindowOf {
  I begin, end;
};
using Window = WindowOf<int64_t>;

// The source cells, of m, of cell i of n.
template <class I>
constexpr WindowOf<I> source_window(I i, I m, I n) {
  const I begin = i * m / n;
  return {begin, n < m ? ((i + 1) * m + n - 1) / n : begin + 1};
}

// The cells of the result, of n, that source cell i of m went into.
template <class I>
constexpr WindowOf<I> target_window(I i, I m, I n) {
  return {n < m ? i * n / m : (i * n + m - 1) / m, ((i + 1) * n + m - 1) / m};
}

// Over how many source cells, of m, cell i of n is a mean.
template <class I>
constexpr I source_count(I i, I m, I n) {
  const WindowOf<I> window = source_window(i, m, n);
  return window.end - window.begin;
}

// All have the same number of source cells.
template <class I>
constexpr bool is_even(I m, I n) {
  return n >= m || m % n == 0;
}

template <class T>
struct LevelSource {
  const T* data;      // (B, C, t, h, w), any strides
  int64_t grid[3];    // t, h, w
  int64_t stride[5];  // in elements
};

template <class T>
struct LevelTarget {
  T* data;            // (B, C, t, h, w), dense: channels last or planar
  int64_t grid[3];
  int64_t stride[5];
};

// How the CPU reads one axis: a window for each cell of the target.
struct LevelAxis {
  const Window* windows;
  const double* weights;  // of each source cell; null: 1
  int64_t divisor;        // of every sum; 0: the length of its window
  int64_t length;         // of every window; 0: not all have the same
};

template <class T>
struct LevelResampleParams {
  LevelSource<T> x;
  LevelTarget<T> out;
  int64_t batch, channels;
  bool channels_last;
  bool adjoint;           // x is a gradient on the result's grid, out the gradient of the source
  const LevelAxis* axes;  // t, h, w; of the CPU alone
};

// The items that are shared out. Channels last: kChannels channels of a cell; planar: a row of w.
constexpr int64_t kChannels = 64;

constexpr int64_t level_items(int64_t batch, int64_t channels, const int64_t (&grid)[3], bool channels_last) {
  return channels_last ? batch * grid[0] * grid[1] * grid[2] * ceil_div(channels, kChannels)
                       : batch * channels * grid[0] * grid[1];
}

// Items [begin, end). T is float, double, BFloat16 or Half.
PYRAMID_PER_ISA(template <class T> void level_resample_items(const LevelResampleParams<T>&, int64_t begin, int64_t end))

// The longest axis on CUDA, where windows are made in 32-bit integers.
constexpr int64_t kMostCells = 32768;

#if PYRAMID_WITH_CUDA
template <class T>
cudaError_t level_resample_cuda(const LevelResampleParams<T>&, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
