// pyramid_sum and its backward, CPU: rows of the result are shared out among torch's threads.
#include "ops/pyramid_sum.h"

#include <torch/csrc/stable/library.h>

#include <memory>

#include "ops/level_rows.h"

namespace pyramid::ops {
namespace {

template <class T>
void sum_on_cpu(const PyramidSumArguments& a) {
  kernels::PyramidSumParams<T> p = sum_params<T>(a);
  std::vector<std::unique_ptr<LevelAxes>> tables;
  std::vector<kernels::LevelAxis> axes;
  for (int64_t level = 0; level < p.num_levels; ++level) {
    tables.push_back(std::make_unique<LevelAxes>(p.levels[level].grid, p.out.grid, false));
    axes.insert(axes.end(), tables.back()->data(), tables.back()->data() + 3);
  }
  p.axes = axes.data();
  const int64_t items = kernels::row_items(p);
  if (items == 0) return;
  const int64_t grain = std::max<int64_t>(1, kNumbersAtLeast * items / std::max<int64_t>(1, a.out.numel()));
  torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(pyramid_sum_rows<T>)(p, begin, end);
  });
}

Tensor pyramid_sum(std::vector<Tensor> codes, std::vector<int64_t> size) {
  const PyramidSumArguments a = prepare_sum(codes, size);
  PYRAMID_DISPATCH_FLOATING("pyramid_sum", codes.front(), [&] { sum_on_cpu<element_t>(a); });
  return a.out;
}

std::vector<Tensor> pyramid_sum_backward(const Tensor& grad, std::vector<int64_t> grids) {
  std::vector<Tensor> grads;
  for (const LevelResampleArguments& level : prepare_sum_backward(grad, grids)) {
    PYRAMID_DISPATCH_FLOATING("pyramid_sum_backward", grad, [&] { resample_on_cpu<element_t>(level); });
    grads.push_back(level.out);
  }
  return grads;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("pyramid_sum", TORCH_BOX(&pyramid::ops::pyramid_sum));
  m.impl("pyramid_sum_backward", TORCH_BOX(&pyramid::ops::pyramid_sum_backward));
}
