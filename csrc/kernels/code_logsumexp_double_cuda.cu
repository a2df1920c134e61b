// code_logsumexp on CUDA in double, for gradcheck: plain loops, a warp per row (backward: per code), no workspace.
#include "code_logsumexp.h"

#include "mma_tile.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;

// -|z - e|^2 / tau, in all lanes.
__device__ double exponent(const double* z, const double* e, int64_t dim, double tau) {
  double square = 0;
  for (int64_t d = threadIdx.x % kLanes; d < dim; d += kLanes) square += (z[d] - e[d]) * (z[d] - e[d]);
  return -warp_sum(square) / tau;
}

__global__ void __launch_bounds__(kThreads) logsumexp_double(CodeLogsumexpParams<double> p) {
  const int lane = threadIdx.x % kLanes;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (n >= p.num_rows) return;
  const double* const z = p.z + n * p.dim;
  double* const pull = p.pull + n * p.dim;
  double greatest = -INFINITY, sum = 0;
  for (int64_t d = lane; d < p.dim; d += kLanes) pull[d] = 0;
  for (int64_t k = 0; k < p.num_codes; ++k) {
    const double* const e = p.codebook + k * p.dim;
    const double score = exponent(z, e, p.dim, p.tau), best = fmax(greatest, score);
    const double shrink = exp(greatest - best), weight = exp(score - best);
    greatest = best;
    sum = sum * shrink + weight;
    for (int64_t d = lane; d < p.dim; d += kLanes) pull[d] = pull[d] * shrink + weight * e[d];
  }
  for (int64_t d = lane; d < p.dim; d += kLanes) pull[d] = pull[d] / sum - z[d];
  if (lane == 0) p.logsumexp[n] = greatest + log(sum);
}

__global__ void __launch_bounds__(kThreads) logsumexp_backward_double(CodeLogsumexpBackwardParams<double> p) {
  const int lane = threadIdx.x % kLanes;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (k >= p.num_codes) return;
  const double* const e = p.codebook + k * p.dim;
  double* const grad = p.grad_codebook + k * p.dim;
  for (int64_t d = lane; d < p.dim; d += kLanes) grad[d] = 0;
  for (int64_t n = 0; n < p.num_rows; ++n) {
    const double* const z = p.z + n * p.dim;
    const double weight = p.grad[n] * exp(exponent(z, e, p.dim, p.tau) - p.logsumexp[n]) * 2 / p.tau;
    for (int64_t d = lane; d < p.dim; d += kLanes) grad[d] += weight * (z[d] - e[d]);
  }
}

unsigned blocks_of(int64_t count) { return static_cast<unsigned>(ceil_div(count, kWarps)); }

}  // namespace

template <>
cudaError_t code_logsumexp_cuda(const CodeLogsumexpParams<double>& p, char*, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  return launch(logsumexp_double, blocks_of(p.num_rows), kThreads, 0, stream, p);
}

template <>
cudaError_t code_logsumexp_backward_cuda(const CodeLogsumexpBackwardParams<double>& p, char*, cudaStream_t stream) {
  return launch(logsumexp_backward_double, blocks_of(p.num_codes), kThreads, 0, stream, p);
}

}  // namespace pyramid::kernels
