// level_resample on the CPU, for a tensor that is allocated: what level_resample and pyramid_sum_backward call.
#pragma once

#include <algorithm>

#include "ops/level_axes.h"
#include "ops/level_resample.h"

namespace pyramid::ops {

constexpr int64_t kNumbersAtLeast = 16384;  // for which another thread is woken

template <class T>
void resample_on_cpu(const LevelResampleArguments& a) {
  kernels::LevelResampleParams<T> p = resample_params<T>(a);
  const LevelAxes axes(p.x.grid, p.out.grid, p.adjoint);
  p.axes = axes.data();
  const int64_t items = kernels::level_items(p.batch, p.channels, p.out.grid, p.channels_last);
  if (items == 0) return;
  const int64_t numbers = std::max(a.x.numel(), a.out.numel()) / items;
  const int64_t grain = std::max<int64_t>(1, kNumbersAtLeast / std::max<int64_t>(1, numbers));
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(level_resample_items<T>)(p, begin, end);
  });
}

}  // namespace pyramid::ops
