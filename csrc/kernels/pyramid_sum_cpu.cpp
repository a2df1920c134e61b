// pyramid_sum on the CPU. Channels last: the sum of a few vectors of channels stays in registers while the levels go by;
// a level whose cell is one source cell, as it is in most pyramids, costs one load. Memory: one read of every level
// (coarse ones again from the cache), one write of the result.
#include "pyramid_sum.h"

#include <cstdlib>

#include "level_cells.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

// A level along one row of w of the result.
template <class T>
struct RowSource {
  const T* x;          // of the batch
  const T* row;        // of the first source cell in t and h, where `one`
  const LevelAxis* axes;
  const int64_t* stride;
  bool one;            // every cell of the row is one source cell
};

template <class T>
PYRAMID_INLINE RowSource<T> row_source(const PyramidSumParams<T>& p, int64_t level, int64_t b, int64_t t, int64_t h) {
  RowSource<T> source;
  const LevelSource<T>& from = p.levels[level];
  source.axes = p.axes + 3 * level;
  source.stride = from.stride;
  source.x = from.data + b * from.stride[0];
  const Window tall = source.axes[0].windows[t], high = source.axes[1].windows[h];
  source.one = tall.end - tall.begin == 1 && high.end - high.begin == 1 && source.axes[2].length == 1;
  source.row = source.x + tall.begin * from.stride[2] + high.begin * from.stride[3];
  return source;
}

// N vectors of channels from c on, of cell (t, h, w), summed over the levels.
template <int N, class T>
PYRAMID_INLINE void sum_vectors(const RowSource<T>* sources, int64_t num_levels, int64_t t, int64_t h, int64_t w,
                                int64_t c, T* out) {
  Vec total[N], value[N];
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) total[v] = splat(0.0f);
  for (int64_t level = 0; level < num_levels; ++level) {
    const RowSource<T>& source = sources[level];
    if (source.one) {
      const T* x = source.row + source.axes[2].windows[w].begin * source.stride[4] + c;
#pragma GCC unroll 4
      for (int v = 0; v < N; ++v) value[v] = load_wide(x + v * kLanes);
    } else {
      cell_vectors<N>(source.x + c, source.stride, cell_at(source.axes, t, h, w), value);
    }
#pragma GCC unroll 4
    for (int v = 0; v < N; ++v) total[v] += value[v];
  }
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) store_narrow(out + v * kLanes, total[v]);
}

template <class T>
void channels_last_row(const PyramidSumParams<T>& p, int64_t b, int64_t t, int64_t h) {
  using C = compute_t<T>;
  RowSource<T> sources[kMostLevels];
  bool adjacent = true;
  for (int64_t level = 0; level < p.num_levels; ++level) {
    sources[level] = row_source(p, level, b, t, h);
    adjacent = adjacent && p.levels[level].stride[1] == 1;
  }
  T* out = p.out.data + b * p.out.stride[0] + t * p.out.stride[2] + h * p.out.stride[3];
  for (int64_t w = 0; w < p.out.grid[2]; ++w, out += p.out.stride[4]) {
    int64_t c = 0;
    if constexpr (sizeof(C) == 4) {
      if (adjacent) {
        for (; c + kVectors * kLanes <= p.channels; c += kVectors * kLanes)
          sum_vectors<kVectors>(sources, p.num_levels, t, h, w, c, out + c);
        for (; c + kLanes <= p.channels; c += kLanes) sum_vectors<1>(sources, p.num_levels, t, h, w, c, out + c);
      }
    }
    for (; c < p.channels; ++c) {
      C total = 0;
      for (int64_t level = 0; level < p.num_levels; ++level) {
        const RowSource<T>& source = sources[level];
        total += cell_number(source.x + c * source.stride[1], source.stride, cell_at(source.axes, t, h, w));
      }
      store_one(out + c, total);
    }
  }
}

template <class T>
void planar_row(const PyramidSumParams<T>& p, int64_t b, int64_t c, int64_t t, int64_t h, compute_t<T>* total,
                compute_t<T>* value, compute_t<T>* sums) {
  const int64_t width = p.out.grid[2];
  for (int64_t level = 0; level < p.num_levels; ++level) {
    const LevelSource<T>& from = p.levels[level];
    const T* x = from.data + b * from.stride[0] + c * from.stride[1];
    cell_row(x, from.stride, p.axes + 3 * level, t, h, from.grid[2], width, sums, level ? value : total);
    if (level)
      for (int64_t w = 0; w < width; ++w) total[w] += value[w];
  }
  T* out = p.out.data + b * p.out.stride[0] + c * p.out.stride[1] + t * p.out.stride[2] + h * p.out.stride[3];
  for (int64_t w = 0; w < width; ++w) store_one(out + w, total[w]);
}

}  // namespace

template <class T>
void pyramid_sum_rows(const PyramidSumParams<T>& p, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  int64_t widest = 0;
  for (int64_t level = 0; level < p.num_levels; ++level)
    if (p.levels[level].grid[2] > widest) widest = p.levels[level].grid[2];
  const int64_t width = p.out.grid[2];
  C* const scratch = p.channels_last ? nullptr : (C*)std::malloc((size_t)(2 * width + widest) * sizeof(C));
  for (int64_t item = begin; item < end; ++item) {
    const int64_t h = item % p.out.grid[1], t = item / p.out.grid[1] % p.out.grid[0];
    const int64_t plane = item / (p.out.grid[1] * p.out.grid[0]);
    if (p.channels_last)
      channels_last_row(p, plane, t, h);
    else
      planar_row(p, plane / p.channels, plane % p.channels, t, h, scratch, scratch + width, scratch + 2 * width);
  }
  std::free(scratch);
}

#define PYRAMID_INSTANTIATE(T) template void pyramid_sum_rows<T>(const PyramidSumParams<T>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
