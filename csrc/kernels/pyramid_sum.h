// The levels of a pyramid, each resampled to one grid (see level_resample.h), summed coarse to fine in one pass over the
// result. The gradient of each level is level_resample's adjoint of the one gradient.
#pragma once

#include "level_resample.h"

namespace pyramid::kernels {

constexpr int64_t kMostLevels = 32;

template <class T>
struct PyramidSumParams {
  LevelSource<T> levels[kMostLevels];  // (B, C, t, h, w) each
  int64_t num_levels;
  LevelTarget<T> out;                  // (B, C, t, h, w)
  int64_t batch, channels;
  bool channels_last;
  const LevelAxis* axes;  // (num_levels, 3); of the CPU alone
};

// The items that are shared out, rows of w: of all channels (channels last) or of one (planar).
template <class T>
constexpr int64_t row_items(const PyramidSumParams<T>& p) {
  return p.batch * (p.channels_last ? 1 : p.channels) * p.out.grid[0] * p.out.grid[1];
}

// Items [begin, end). T is float, double, BFloat16 or Half.
PYRAMID_PER_ISA(template <class T> void pyramid_sum_rows(const PyramidSumParams<T>&, int64_t begin, int64_t end))

#if PYRAMID_WITH_CUDA
template <class T>
cudaError_t pyramid_sum_cuda(const PyramidSumParams<T>&, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
