// Checks of an operator's arguments: name of the op, what was expected, what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

namespace pyramid {

template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

inline std::string shape_of(const torch::stable::Tensor& tensor) {
  std::ostringstream text;
  text << '(';
  for (int64_t i = 0; i < tensor.dim(); ++i) text << (i ? ", " : "") << tensor.size(i);
  text << (tensor.dim() == 1 ? ",)" : ")");
  return text.str();
}

inline const char* dtype_of(const torch::stable::Tensor& tensor) {
  return torch::headeronly::toString(tensor.scalar_type());
}

}  // namespace pyramid

// Python sees RuntimeError with exactly this text; the public functions have raised ValueError or
// TypeError before that, so what fails here came through torch.ops directly.
#define PYRAMID_CHECK(condition, ...)                                          \
  do {                                                                         \
    if (!(condition)) throw std::runtime_error(::pyramid::concat(__VA_ARGS__)); \
  } while (0)

#define PYRAMID_CHECK_SAME_DTYPE(op, a, b)                                                     \
  PYRAMID_CHECK((a).scalar_type() == (b).scalar_type(), op ": " #a " and " #b                  \
                " must have one dtype, got ", ::pyramid::dtype_of(a), " and ", ::pyramid::dtype_of(b))

#define PYRAMID_CHECK_SAME_DEVICE(op, a, b)                                                \
  PYRAMID_CHECK((a).device() == (b).device(), op ": " #a " and " #b " must be on one device")

// For the launchers of csrc/kernels, which return cudaError_t.
#define PYRAMID_CUDA_CHECK(op, call)                                                        \
  do {                                                                                      \
    const cudaError_t pyramid_error = (call);                                               \
    PYRAMID_CHECK(pyramid_error == cudaSuccess, op ": ", cudaGetErrorString(pyramid_error)); \
  } while (0)
