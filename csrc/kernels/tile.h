// Small matrix products in registers, the core of attention and of code_logsumexp:
//
//   c (rows, columns) += or = a (rows, count) b (count, columns)
//
// b and c are row-major with their columns in the lanes of vectors. a is read a number at a time and spread over the
// lanes, so it may lie either way: along its columns (a[r * a_step + k]) or along its rows (a[r + k * a_step]).
// A tile of kTileRows x 3 vectors fills the registers: 11 loads for 24 multiply-adds with AVX-512.
#pragma once

#include "simd.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVecs = 3;

enum class Along { columns, rows };

template <int kVecs, Along kAlong>
PYRAMID_INLINE void multiply_tile(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t count,
                                  float* c, int64_t c_step, bool add) {
  Vec sum[kTileRows][kVecs];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) sum[r][v] = add ? load<Vec>(c + r * c_step + v * kLanes) : splat(0.0f);
  for (int64_t k = 0; k < count; ++k, b += b_step) {
    Vec column[kVecs];
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) column[v] = load<Vec>(b + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const Vec row = splat(kAlong == Along::columns ? a[r * a_step + k] : a[r + k * a_step]);
#pragma GCC unroll 3
      for (int v = 0; v < kVecs; ++v) sum[r][v] = fma(row, column[v], sum[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
#pragma GCC unroll 3
    for (int v = 0; v < kVecs; ++v) store(c + r * c_step + v * kLanes, sum[r][v]);
}

// rows a multiple of kTileRows; columns = vecs * kLanes.
template <Along kAlong>
inline void multiply(const float* a, int64_t a_step, const float* b, int64_t b_step, int64_t rows, int64_t count,
                     int64_t vecs, float* c, int64_t c_step, bool add) {
  const int64_t a_tile = kAlong == Along::columns ? kTileRows * a_step : kTileRows;
  for (int64_t v = 0; v < vecs;) {
    const int64_t left = vecs - v, width = left == 4 || left == 2 ? 2 : left < 3 ? left : 3;
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const float* tile = a + r / kTileRows * a_tile;
      float* out = c + r * c_step + v * kLanes;
      if (width == 3)
        multiply_tile<3, kAlong>(tile, a_step, b + v * kLanes, b_step, count, out, c_step, add);
      else if (width == 2)
        multiply_tile<2, kAlong>(tile, a_step, b + v * kLanes, b_step, count, out, c_step, add);
      else
        multiply_tile<1, kAlong>(tile, a_step, b + v * kLanes, b_step, count, out, c_step, add);
    }
    v += width;
  }
}

PYRAMID_INLINE int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// Numbers [0, count) of one row as float.
template <class T>
PYRAMID_INLINE void widen_row(const T* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load_wide(from + i));
  for (; i < count; ++i) to[i] = widen(from[i]);
}

PYRAMID_INLINE void fill(float* to, int64_t count, float value) {
  for (int64_t i = 0; i < count; ++i) to[i] = value;
}

}  // namespace
}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
