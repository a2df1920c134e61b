// pyramid_sum: the checks and allocations that CPU and CUDA share.
#pragma once

#include "kernels/pyramid_sum.h"
#include "ops/level_resample.h"

namespace pyramid::ops {

struct PyramidSumArguments {
  std::vector<Tensor> codes;
  Tensor out;
  bool channels_last;
};

inline PyramidSumArguments prepare_sum(const std::vector<Tensor>& codes, const std::vector<int64_t>& size) {
  const int64_t num_levels = static_cast<int64_t>(codes.size());
  PYRAMID_CHECK(num_levels >= 1 && num_levels <= kernels::kMostLevels, "pyramid_sum: expected 1 to ",
                kernels::kMostLevels, " levels, got ", num_levels);
  check_grid("pyramid_sum", size);
  const Tensor& first = codes.front();
  for (const Tensor& code : codes) {
    check_level("pyramid_sum", "each level", code);
    PYRAMID_CHECK(code.size(0) == first.size(0) && code.size(1) == first.size(1),
                  "pyramid_sum: levels must have one B and C, got ", shape_of(first), " and ", shape_of(code));
    PYRAMID_CHECK_SAME_DTYPE("pyramid_sum", first, code);
    PYRAMID_CHECK_SAME_DEVICE("pyramid_sum", first, code);
  }
  const bool channels_last = is_channels_last(codes.back());
  return {codes, new_level(first, size, channels_last), channels_last};
}

template <class T>
kernels::PyramidSumParams<T> sum_params(const PyramidSumArguments& a) {
  kernels::PyramidSumParams<T> p{};
  p.num_levels = static_cast<int64_t>(a.codes.size());
  for (int64_t level = 0; level < p.num_levels; ++level) p.levels[level] = level_source<T>(a.codes[level]);
  p.out = level_target<T>(a.out);
  p.batch = a.out.size(0);
  p.channels = a.out.size(1);
  p.channels_last = a.channels_last;
  return p;
}

// The gradients of the levels: each a backward of level_resample. grids: t, h, w of every level.
inline std::vector<LevelResampleArguments> prepare_sum_backward(const Tensor& grad, const std::vector<int64_t>& grids) {
  PYRAMID_CHECK(!grids.empty() && grids.size() % 3 == 0, "pyramid_sum_backward: grids must be t, h, w of every level, ",
                "got ", grids.size(), " numbers");
  check_level("pyramid_sum_backward", "grad", grad);
  std::vector<LevelResampleArguments> levels;
  for (size_t i = 0; i < grids.size(); i += 3) {
    const std::vector<int64_t> grid(grids.begin() + static_cast<int64_t>(i), grids.begin() + static_cast<int64_t>(i) + 3);
    check_grid("pyramid_sum_backward", grid);
    levels.push_back(prepare_resample(grad, grid, true));
  }
  return levels;
}

}  // namespace pyramid::ops
