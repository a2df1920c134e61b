// Lookup-free quantization of d real numbers a row to d signs, in one pass over the input.
//   code_i = x_i > 0 ? 1 : -1                     id = sum_i [x_i > 0] 2^i
//   entropy = sum_i H_b(sigmoid(y_i)), y_i = 4 x_i / temperature, in nats (the bits are independent: this is exact)
//   commitment = mean_i (x_i - code_i)^2
// With a = |y|, t = exp(-a):  H_b = log(1 + t) + a t / (1 + t),  dH_b/dy = -y t / (1 + t)^2: no overflow for any x.
#pragma once

#include <cstdint>

#include "cuda_types.h"
#include "isa.h"
#include "types.h"

namespace pyramid::kernels {

constexpr int64_t kMaxBits = 62;

// exp(-a) is 0 for all purposes beyond; a is cut there so that infinity times zero doesn't arise.
template <class C>
constexpr C kGreatestLogit = sizeof(C) == 8 ? (C)700 : (C)87;

template <class T>
struct BitQuantizeParams {
  const T* x;  // (N, d)
  int64_t num_rows, num_bits;
  double temperature;
  T* codes;                // (N, d) out
  int64_t* ids;            // (N,) out
  compute_t<T>* entropy;     // (N,) out
  compute_t<T>* commitment;  // (N,) out
};

template <class T>
struct BitQuantizeBackwardParams {
  const T* x;  // (N, d)
  int64_t num_rows, num_bits;
  double temperature;
  const T* grad_codes;                  // (N, d) or null
  const compute_t<T>* grad_entropy;     // (N,) or null
  const compute_t<T>* grad_commitment;  // (N,) or null
  T* grad_x;                            // (N, d) out
};

// Rows [begin, end). T is float, double, BFloat16 or Half.
PYRAMID_PER_ISA(template <class T> void bit_quantize_rows(const BitQuantizeParams<T>&, int64_t begin, int64_t end))
PYRAMID_PER_ISA(template <class T> void bit_quantize_backward_rows(const BitQuantizeBackwardParams<T>&, int64_t begin,
                                                                   int64_t end))

#if PYRAMID_WITH_CUDA
template <class T>
cudaError_t bit_quantize_cuda(const BitQuantizeParams<T>&, cudaStream_t stream);
template <class T>
cudaError_t bit_quantize_backward_cuda(const BitQuantizeBackwardParams<T>&, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
