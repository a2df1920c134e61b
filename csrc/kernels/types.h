// Element types and small arithmetic shared by the CPU and the CUDA kernels. No torch header.
#pragma once

#include <cstdint>

namespace pyramid::kernels {

// Storage only: kernels widen to float. The same 16 bits as torch's (and CUDA's) types.
struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

// What a kernel computes in: double stays double, everything else is float.
template <class T>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};
template <class T>
using compute_t = typename Compute<T>::type;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace pyramid::kernels
