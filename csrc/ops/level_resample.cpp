// level_resample and its backward, CPU: cells or rows of the result are shared out among torch's threads.
#include "ops/level_resample.h"

#include <torch/csrc/stable/library.h>

#include "ops/level_rows.h"

namespace pyramid::ops {
namespace {

Tensor level_resample(const Tensor& x, std::vector<int64_t> size) {
  const LevelResampleArguments a = prepare_resample(x, size, false);
  PYRAMID_DISPATCH_FLOATING("level_resample", x, [&] { resample_on_cpu<element_t>(a); });
  return a.out;
}

Tensor level_resample_backward(const Tensor& grad, std::vector<int64_t> size) {
  const LevelResampleArguments a = prepare_resample(grad, size, true);
  PYRAMID_DISPATCH_FLOATING("level_resample_backward", grad, [&] { resample_on_cpu<element_t>(a); });
  return a.out;
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("level_resample", TORCH_BOX(&pyramid::ops::level_resample));
  m.impl("level_resample_backward", TORCH_BOX(&pyramid::ops::level_resample_backward));
}
