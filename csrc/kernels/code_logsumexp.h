// logsumexp over a codebook of -|z - e|^2 / tau: what both devices share.
//
//   logsumexp_n = log sum_k exp(-|z_n - e_k|^2 / tau)        pull_n = sum_k p_nk e_k - z_n,  p_nk = softmax_k
//
// This is attention whose keys and values are the codebook, so it is computed as such: the codes are read block by block
// with a running maximum and sum, and no N x K matrix is formed. The pull comes with the same pass, and the gradient of z
// needs no other: d logsumexp_n / d z_n = 2 / tau pull_n. With a centre c (the mean of the codes) taken from both sides,
// less cancels in |z|^2 - 2 z . e + |e|^2. The codebook's gradient, where it is asked for, forms p again:
//   grad_codebook_k = 2 / tau sum_n grad_n p_nk (z_n - e_k)
#pragma once

#include <cstdint>

#include "cuda_types.h"
#include "isa.h"
#include "types.h"

namespace pyramid::kernels {

template <class T>
struct CodeLogsumexpParams {
  const T* z;         // (N, D) contiguous
  const T* codebook;  // (K, D) contiguous
  const compute_t<T>* center;  // (D,)
  int64_t num_rows, num_codes, dim;
  double tau;
  compute_t<T>* logsumexp;  // (N,) out
  compute_t<T>* pull;       // (N, D) out
};

template <class T>
struct CodeLogsumexpBackwardParams {
  const compute_t<T>* grad;  // (N,)
  const T* z;                // (N, D)
  const T* codebook;         // (K, D)
  const compute_t<T>* center;     // (D,)
  const compute_t<T>* logsumexp;  // (N,)
  int64_t num_rows, num_codes, dim;
  double tau;
  T* grad_codebook;  // (K, D) out
};

// A task is a number of rows (backward: of codes).
PYRAMID_PER_ISA(int64_t code_logsumexp_task_rows())
PYRAMID_PER_ISA(template <class T> bool code_logsumexp_tasks(const CodeLogsumexpParams<T>&, int64_t begin,
                                                             int64_t end))  // false: no memory
PYRAMID_PER_ISA(template <class T> bool code_logsumexp_backward_tasks(const CodeLogsumexpBackwardParams<T>&,
                                                                      int64_t begin, int64_t end))

#if PYRAMID_WITH_CUDA
// `workspace`: code_logsumexp_cuda_bytes of them, aligned to 256. None for double.
int64_t code_logsumexp_cuda_bytes(int64_t num_rows, int64_t num_codes, int64_t dim);
int64_t code_logsumexp_backward_cuda_bytes(int64_t num_rows, int64_t num_codes, int64_t dim);
template <class T>
cudaError_t code_logsumexp_cuda(const CodeLogsumexpParams<T>&, char* workspace, cudaStream_t stream);
template <class T>
cudaError_t code_logsumexp_backward_cuda(const CodeLogsumexpBackwardParams<T>&, char* workspace, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
