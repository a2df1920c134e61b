// nearest_code, CPU: checks, allocation, the two parallel phases (pack the codes, then the rows).
#include "ops/nearest_code.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <tuple>
#include <vector>

#include "check.h"
#include "kernels/nearest_code.h"

namespace pyramid::ops {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using kernels::ceil_div;

// Codes in order of their norm, where norms differ enough for the error bound of a group to be loose without it.
std::vector<int64_t> order_by_norm(const float* norms, int64_t num_codes) {
  double sum = 0;
  float greatest = 0;
  for (int64_t k = 0; k < num_codes; ++k) {
    sum += norms[k];
    greatest = std::max(greatest, norms[k]);
  }
  if (greatest <= 2 * sum / num_codes) return {};
  std::vector<int64_t> order(num_codes);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return norms[a] < norms[b]; });
  return order;
}

void run_float(const NearestCodeArguments& a) {
  const int64_t group = PYRAMID_BEST_ISA(nearest_code_group_size)();
  const int64_t groups = ceil_div(a.num_codes, group);
  const auto workspace = [&](int64_t count) {
    return torch::stable::new_empty(a.codebook, {count}, ScalarType::Float);
  };
  const Tensor center = mean_code(a.codebook), packed = workspace(groups * group * a.dim);
  const Tensor half_norm = workspace(groups * group), group_norm = workspace(groups);
  const Tensor code_norm = workspace(a.num_codes);

  kernels::NearestCodeParams p{};
  p.z = static_cast<const float*>(a.z.const_data_ptr());
  p.codebook = static_cast<const float*>(a.codebook.const_data_ptr());
  p.center = static_cast<const float*>(center.const_data_ptr());
  p.num_rows = a.num_rows;
  p.num_codes = a.num_codes;
  p.dim = a.dim;
  p.ids = static_cast<int64_t*>(a.ids.mutable_data_ptr());
  p.distance = static_cast<float*>(a.distance.mutable_data_ptr());
  p.packed = static_cast<float*>(packed.mutable_data_ptr());
  p.half_norm = static_cast<float*>(half_norm.mutable_data_ptr());
  p.group_norm = static_cast<float*>(group_norm.mutable_data_ptr());
  p.code_norm = static_cast<float*>(code_norm.mutable_data_ptr());

  const int64_t grain = std::max<int64_t>(1, 65536 / (group * a.dim));  // groups a thread is worth
  torch::stable::parallel_for(0, a.num_codes, grain * group, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(nearest_code_norms)(p, begin, end);
  });
  const std::vector<int64_t> order = order_by_norm(p.code_norm, a.num_codes);
  p.order = order.empty() ? nullptr : order.data();
  torch::stable::parallel_for(0, groups, grain, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(nearest_code_pack)(p, begin, end);
  });

  const int64_t block = PYRAMID_BEST_ISA(nearest_code_row_block)();
  const int64_t work = a.num_codes * a.dim * block;
  std::atomic<bool> enough_memory{true};
  torch::stable::parallel_for(
      0, ceil_div(a.num_rows, block), std::max<int64_t>(1, 262144 / work), [&](int64_t begin, int64_t end) {
        if (!PYRAMID_BEST_ISA(nearest_code_rows)(p, begin * block, std::min(end * block, a.num_rows)))
          enough_memory = false;
      });
  PYRAMID_CHECK(enough_memory, "nearest_code: out of memory for the workspace of a thread");
}

void run_double(const NearestCodeArguments& a) {
  const kernels::NearestCodeDoubleParams p{static_cast<const double*>(a.z.const_data_ptr()),
                                           static_cast<const double*>(a.codebook.const_data_ptr()),
                                           a.num_rows,
                                           a.num_codes,
                                           a.dim,
                                           static_cast<int64_t*>(a.ids.mutable_data_ptr()),
                                           static_cast<double*>(a.distance.mutable_data_ptr())};
  const int64_t grain = std::max<int64_t>(1, 65536 / (a.num_codes * a.dim));
  torch::stable::parallel_for(0, a.num_rows, grain, [&](int64_t begin, int64_t end) {
    PYRAMID_BEST_ISA(nearest_code_rows_double)(p, begin, end);
  });
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  const NearestCodeArguments a = prepare(z, codebook);
  if (a.num_rows > 0) a.is_double ? run_double(a) : run_float(a);
  return {a.distance, a.ids};
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("nearest_code", TORCH_BOX(&pyramid::ops::nearest_code));
}
