// A cell of a level as the CPU reads it: the sum over its window, divided. For level_resample and pyramid_sum.
#pragma once

#include "convert.h"
#include "level_resample.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {

constexpr int kVectors = 4;  // of channels, whose sums stay in registers

struct Cell {
  Window window[3];  // t, h, w of the source
  const double* weights[3];
  double divisor;
  bool weighted;
};

PYRAMID_INLINE Cell cell_at(const LevelAxis* axes, int64_t t, int64_t h, int64_t w) {
  const int64_t at[3] = {t, h, w};
  Cell cell;
  cell.divisor = 1;
  cell.weighted = false;
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    cell.window[i] = axes[i].windows[at[i]];
    cell.weights[i] = axes[i].weights;
    cell.weighted |= axes[i].weights != nullptr;
    cell.divisor *= (double)(axes[i].divisor ? axes[i].divisor : cell.window[i].end - cell.window[i].begin);
  }
  return cell;
}

PYRAMID_INLINE bool is_one_cell(const Cell& cell) {
  bool one = !cell.weighted && cell.divisor == 1;
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) one = one && cell.window[i].end - cell.window[i].begin == 1;
  return one;
}

PYRAMID_INLINE double weight_of(const double* weights, int64_t i) { return weights ? weights[i] : 1; }

// Both orders of memory add up in one order, so that they give the same bits: for each w over t and h, then over w.
// The sum of one column of the window; x: of the batch, the channel and w. add(pointer, weight).
template <class T, class Add>
PYRAMID_INLINE void for_each_in_column(const T* x, const int64_t* stride, const Cell& cell, Add add) {
  for (int64_t t = cell.window[0].begin; t < cell.window[0].end; ++t)
    for (int64_t h = cell.window[1].begin; h < cell.window[1].end; ++h)
      add(x + t * stride[2] + h * stride[3], weight_of(cell.weights[0], t) * weight_of(cell.weights[1], h));
}

// The value of a cell in N vectors of adjacent channels.
template <int N, class T>
PYRAMID_INLINE void cell_vectors(const T* x, const int64_t* stride, const Cell& cell, Vec* value) {
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) value[v] = splat(0.0f);
  for (int64_t w = cell.window[2].begin; w < cell.window[2].end; ++w) {
    Vec column[N];
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) column[v] = splat(0.0f);
    if (cell.weighted) {
      for_each_in_column(x + w * stride[4], stride, cell, [&](const T* source, double weight) {
        const Vec factor = splat((float)weight);
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) column[v] = fma(load_wide(source + v * kLanes), factor, column[v]);
      });
      const Vec factor = splat((float)weight_of(cell.weights[2], w));
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) value[v] = fma(column[v], factor, value[v]);
    } else {
      for_each_in_column(x + w * stride[4], stride, cell, [&](const T* source, double) {
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) column[v] += load_wide(source + v * kLanes);
      });
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) value[v] += column[v];
    }
  }
  if (cell.divisor == 1) return;
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) value[v] /= splat((float)cell.divisor);
}

// The same for one channel, any strides.
template <class T>
PYRAMID_INLINE compute_t<T> cell_number(const T* x, const int64_t* stride, const Cell& cell) {
  using C = compute_t<T>;
  C sum = 0;
  for (int64_t w = cell.window[2].begin; w < cell.window[2].end; ++w) {
    C column = 0;
    for_each_in_column(x + w * stride[4], stride, cell,
                       [&](const T* source, double weight) { column += load_one(source) * (C)weight; });
    sum += column * (C)weight_of(cell.weights[2], w);
  }
  return sum / (C)cell.divisor;
}

// Sums over t and h of N vectors of adjacent w.
template <int N, class T>
PYRAMID_INLINE void column_vectors(const T* x, const int64_t* stride, const Cell& cell, float* sums) {
  Vec sum[N];
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) sum[v] = splat(0.0f);
  for_each_in_column(x, stride, cell, [&](const T* source, double weight) {
    const Vec factor = splat((float)weight);
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) sum[v] = fma(load_wide(source + v * kLanes), factor, sum[v]);
  });
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) store(sums + v * kLanes, sum[v]);
}

// The values of a row of cells: row[w], w < target_width. x: of the batch and the channel. sums: (source_width) scratch.
template <class T>
PYRAMID_INLINE void cell_row(const T* x, const int64_t* stride, const LevelAxis* axes, int64_t t, int64_t h,
                             int64_t source_width, int64_t target_width, compute_t<T>* sums, compute_t<T>* row) {
  using C = compute_t<T>;
  const Cell cell = cell_at(axes, t, h, 0);
  int64_t i = 0;
  if constexpr (sizeof(C) == 4) {
    if (stride[4] == 1) {
      for (; i + kVectors * kLanes <= source_width; i += kVectors * kLanes)
        column_vectors<kVectors>(x + i, stride, cell, sums + i);
      for (; i + kLanes <= source_width; i += kLanes) column_vectors<1>(x + i, stride, cell, sums + i);
    }
  }
  for (int64_t j = i; j < source_width; ++j) sums[j] = 0;
  for_each_in_column(x, stride, cell, [&](const T* source, double weight) {
    for (int64_t j = i; j < source_width; ++j) sums[j] += load_one(source + j * stride[4]) * (C)weight;
  });

  const LevelAxis& wide = axes[2];
  if (wide.length == 1 && !wide.weights) {
    for (int64_t w = 0; w < target_width; ++w) row[w] = sums[wide.windows[w].begin];
  } else if (wide.length == 2 && !wide.weights) {
    for (int64_t w = 0; w < target_width; ++w) row[w] = sums[wide.windows[w].begin] + sums[wide.windows[w].begin + 1];
  } else {
    for (int64_t w = 0; w < target_width; ++w) {
      C sum = 0;
      for (int64_t j = wide.windows[w].begin; j < wide.windows[w].end; ++j)
        sum += sums[j] * (C)weight_of(wide.weights, j);
      row[w] = sum;
    }
  }

  if (wide.length || wide.divisor) {  // one divisor for all
    const C divisor = (C)cell.divisor;
    if (divisor == 1) return;
    int64_t w = 0;
    if constexpr (sizeof(C) == 4) {
      for (; w + kLanes <= target_width; w += kLanes) store(row + w, load<Vec>(row + w) / splat(divisor));
    }
    for (; w < target_width; ++w) row[w] /= divisor;
  } else {
    for (int64_t w = 0; w < target_width; ++w) row[w] /= (C)cell_at(axes, t, h, w).divisor;
  }
}

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
