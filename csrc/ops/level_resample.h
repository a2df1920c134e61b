// level_resample: the checks and allocations that CPU and CUDA share.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "check.h"
#include "dispatch.h"
#include "kernels/level_resample.h"

namespace pyramid::ops {

using torch::stable::Tensor;

inline std::string text_of(const std::vector<int64_t>& values) {
  std::ostringstream text;
  for (size_t i = 0; i < values.size(); ++i) text << (i ? ", " : "(") << values[i];
  text << ')';
  return text.str();
}

inline void check_level(const char* op, const char* name, const Tensor& x) {
  PYRAMID_CHECK(x.dim() == 5 && x.size(2) >= 1 && x.size(3) >= 1 && x.size(4) >= 1, op, ": ", name,
                " must be (B, C, t, h, w) without an empty axis, got ", shape_of(x));
}

inline void check_grid(const char* op, const std::vector<int64_t>& grid) {
  PYRAMID_CHECK(grid.size() == 3 && grid[0] >= 1 && grid[1] >= 1 && grid[2] >= 1, op,
                ": size must be (t, h, w), each at least 1, got ", text_of(grid));
}

// The channels of a cell are adjacent.
inline bool is_channels_last(const Tensor& x) { return x.size(1) > 1 && x.stride(1) == 1; }

// (B, C, *grid) in the dtype and on the device of x.
inline Tensor new_level(const Tensor& x, const std::vector<int64_t>& grid, bool channels_last) {
  using torch::headeronly::MemoryFormat;
  return torch::stable::empty({x.size(0), x.size(1), grid[0], grid[1], grid[2]}, x.scalar_type(), std::nullopt,
                              x.device(), std::nullopt,
                              channels_last ? MemoryFormat::ChannelsLast3d : MemoryFormat::Contiguous);
}

inline void check_device_grid(const char* op, const Tensor& x, const Tensor& out) {
  for (int64_t i = 2; i < 5; ++i)
    PYRAMID_CHECK(x.size(i) <= kernels::kMostCells && out.size(i) <= kernels::kMostCells, op, ": t, h and w must be ",
                  kernels::kMostCells, " at most on CUDA, got ", shape_of(x), " and ", shape_of(out));
}

template <class T>
kernels::LevelSource<T> level_source(const Tensor& x) {
  kernels::LevelSource<T> source{static_cast<const T*>(x.const_data_ptr()), {}, {}};
  for (int i = 0; i < 3; ++i) source.grid[i] = x.size(i + 2);
  for (int i = 0; i < 5; ++i) source.stride[i] = x.stride(i);
  return source;
}

template <class T>
kernels::LevelTarget<T> level_target(const Tensor& out) {
  kernels::LevelTarget<T> target{static_cast<T*>(out.mutable_data_ptr()), {}, {}};
  for (int i = 0; i < 3; ++i) target.grid[i] = out.size(i + 2);
  for (int i = 0; i < 5; ++i) target.stride[i] = out.stride(i);
  return target;
}

struct LevelResampleArguments {
  Tensor x, out;
  bool channels_last, adjoint;
};

inline LevelResampleArguments prepare_resample(const Tensor& x, const std::vector<int64_t>& size, bool adjoint) {
  const char* op = adjoint ? "level_resample_backward" : "level_resample";
  check_level(op, adjoint ? "grad" : "x", x);
  check_grid(op, size);
  const bool channels_last = is_channels_last(x);
  return {x, new_level(x, size, channels_last), channels_last, adjoint};
}

template <class T>
kernels::LevelResampleParams<T> resample_params(const LevelResampleArguments& a) {
  return {level_source<T>(a.x), level_target<T>(a.out), a.x.size(0), a.x.size(1), a.channels_last, a.adjoint, nullptr};
}

}  // namespace pyramid::ops
