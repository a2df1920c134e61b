// level_resample and its adjoint on the CPU: see level_resample.h for the idea and level_cells.h for a cell.
// Memory: one read of x (again where windows overlap), one write of the result; a cell that is a copy moves its bytes,
// a row that repeats the row before it is copied from there.
#include "level_resample.h"

#include <cstdlib>

#include "level_cells.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

template <int N, class T>
PYRAMID_INLINE void write_vectors(const T* x, const int64_t* stride, const Cell& cell, T* out) {
  Vec value[N];
  cell_vectors<N>(x, stride, cell, value);
#pragma GCC unroll 4
  for (int v = 0; v < N; ++v) store_narrow(out + v * kLanes, value[v]);
}

// Channels [0, count) of a cell.
template <class T>
void write_channels(const T* x, const int64_t* stride, const Cell& cell, int64_t count, T* out) {
  int64_t c = 0;
  if (stride[1] == 1 && is_one_cell(cell)) {
    const T* source = x + cell.window[0].begin * stride[2] + cell.window[1].begin * stride[3] +
                      cell.window[2].begin * stride[4];
    __builtin_memcpy(out, source, (size_t)count * sizeof(T));
    return;
  }
  if constexpr (sizeof(compute_t<T>) == 4) {
    if (stride[1] == 1) {
      for (; c + kVectors * kLanes <= count; c += kVectors * kLanes)
        write_vectors<kVectors>(x + c, stride, cell, out + c);
      for (; c + kLanes <= count; c += kLanes) write_vectors<1>(x + c, stride, cell, out + c);
    }
  }
  for (; c < count; ++c) store_one(out + c, cell_number(x + c * stride[1], stride, cell));
}

template <class T>
void channels_last_items(const LevelResampleParams<T>& p, int64_t begin, int64_t end) {
  const int64_t blocks = ceil_div(p.channels, kChannels);
  const int64_t(&grid)[3] = p.out.grid;
  int64_t block = begin % blocks, at = begin / blocks;
  int64_t w = at % grid[2], h = at / grid[2] % grid[1], t = at / (grid[2] * grid[1]) % grid[0];
  int64_t b = at / (grid[2] * grid[1] * grid[0]);
  for (int64_t item = begin; item < end; ++item) {
    const Cell cell = cell_at(p.axes, t, h, w);
    const int64_t c = block * kChannels, count = p.channels - c < kChannels ? p.channels - c : kChannels;
    const int64_t* to = p.out.stride;
    write_channels(p.x.data + b * p.x.stride[0] + c * p.x.stride[1], p.x.stride, cell, count,
                   p.out.data + b * to[0] + c + t * to[2] + h * to[3] + w * to[4]);
    if (++block < blocks) continue;
    block = 0;
    if (++w < grid[2]) continue;
    w = 0;
    if (++h < grid[1]) continue;
    h = 0;
    if (++t < grid[0]) continue;
    t = 0;
    ++b;
  }
}

bool same(Window a, Window b) { return a.begin == b.begin && a.end == b.end; }

template <class T>
void planar_items(const LevelResampleParams<T>& p, int64_t begin, int64_t end) {
  using C = compute_t<T>;
  const int64_t(&grid)[3] = p.out.grid;
  const int64_t source_width = p.x.grid[2], width = grid[2];
  C* const sums = (C*)std::malloc((size_t)(source_width + width) * sizeof(C));
  C* const row = sums + source_width;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t h = item % grid[1], t = item / grid[1] % grid[0], plane = item / (grid[1] * grid[0]);
    const int64_t b = plane / p.channels, c = plane % p.channels;
    T* const out = p.out.data + b * p.out.stride[0] + c * p.out.stride[1] + t * p.out.stride[2] + h * p.out.stride[3];
    if (item > begin && h > 0 && same(p.axes[1].windows[h], p.axes[1].windows[h - 1])) {
      __builtin_memcpy(out, out - p.out.stride[3], (size_t)width * sizeof(T));
      continue;
    }
    const T* const x = p.x.data + b * p.x.stride[0] + c * p.x.stride[1];
    cell_row(x, p.x.stride, p.axes, t, h, source_width, width, sums, row);
    int64_t w = 0;
    if constexpr (sizeof(C) == 4) {
      for (; w + kLanes <= width; w += kLanes) store_narrow(out + w, load<Vec>(row + w));
    }
    for (; w < width; ++w) store_one(out + w, row[w]);
  }
  std::free(sums);
}

}  // namespace

template <class T>
void level_resample_items(const LevelResampleParams<T>& p, int64_t begin, int64_t end) {
  p.channels_last ? channels_last_items(p, begin, end) : planar_items(p, begin, end);
}

#define PYRAMID_INSTANTIATE(T) template void level_resample_items<T>(const LevelResampleParams<T>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
