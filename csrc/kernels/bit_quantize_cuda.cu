// bit_quantize on CUDA: memory-bound. A block takes kRows whole rows as one flat run: coalesced loads into shared memory
// (rows padded to an odd length, so that neighbouring threads meet in different banks), then one thread a row packs
// and sums, and the codes go out coalesced. One read of x, one write of codes.
#include "bit_quantize.h"

#include "cuda_device.cuh"

namespace pyramid::kernels {
namespace {

// 32 KiB of shared memory at most: 62 numbers pad to 63.
template <class C>
constexpr int kRows = sizeof(C) == 8 ? 64 : 128;

// H_b at a = |y|, NaN staying NaN.
template <class C>
__device__ C binary_entropy(C a) {
  a = a > kGreatestLogit<C> ? kGreatestLogit<C> : a;
  const C t = exp(-a);
  return log1p(t) + a * t / (1 + t);
}

// dH_b/dy at y.
template <class C>
__device__ C entropy_slope(C y) {
  const C limit = kGreatestLogit<C>;
  y = y > limit ? limit : y < -limit ? -limit : y;
  const C t = exp(y < 0 ? y : -y);
  return -y * t / ((1 + t) * (1 + t));
}

// kernels

template <class T>
__global__ void bit_quantize(BitQuantizeParams<T> p) {
  using C = compute_t<T>;
  C* const values = dynamic_shared<C>();
  const int num_bits = static_cast<int>(p.num_bits), stride = num_bits | 1;
  const C scale = static_cast<C>(4 / p.temperature);

  // Blocks stride over the rows, so the grid need not hold them all.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows<C>; first < p.num_rows;
       first += static_cast<int64_t>(gridDim.x) * kRows<C>) {
    const int rows = static_cast<int>(p.num_rows - first < kRows<C> ? p.num_rows - first : kRows<C>);
    const int64_t offset = first * num_bits;
    for (int i = threadIdx.x; i < rows * num_bits; i += blockDim.x) {
      const C x = widen(p.x[offset + i]);
      values[i / num_bits * stride + i % num_bits] = x;
      p.codes[offset + i] = narrow<T>(x > 0 ? C(1) : C(-1));
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows) {
      const C* const row = values + threadIdx.x * stride;
      unsigned long long id = 0;
      C entropy = 0, commitment = 0;
      for (int i = 0; i < num_bits; ++i) {
        const C x = row[i], magnitude = fabs(x), away = magnitude - 1;
        id |= static_cast<unsigned long long>(x > 0) << i;
        entropy += binary_entropy(magnitude * scale);
        commitment += away * away;
      }
      p.ids[first + threadIdx.x] = static_cast<int64_t>(id);
      p.entropy[first + threadIdx.x] = entropy;
      p.commitment[first + threadIdx.x] = commitment / static_cast<C>(num_bits);
    }
    __syncthreads();
  }
}

template <class T>
__global__ void bit_quantize_backward(BitQuantizeBackwardParams<T> p) {
  using C = compute_t<T>;
  const C scale = static_cast<C>(4 / p.temperature), share = C(2) / static_cast<C>(p.num_bits);
  const int64_t count = p.num_rows * p.num_bits, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t row = i / p.num_bits;
    const C x = widen(p.x[i]);
    C grad = p.grad_codes ? C(widen(p.grad_codes[i])) : C(0);
    if (p.grad_entropy) grad += p.grad_entropy[row] * scale * entropy_slope(x * scale);
    if (p.grad_commitment) grad += p.grad_commitment[row] * share * (x > 0 ? x - 1 : x + 1);
    p.grad_x[i] = narrow<T>(grad);
  }
}

constexpr int64_t kMostBlocks = 1 << 16;

unsigned blocks(int64_t count, int64_t per_block) {
  const int64_t wanted = ceil_div(count, per_block);
  return static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
}

}  // namespace

// launchers

template <class T>
cudaError_t bit_quantize_cuda(const BitQuantizeParams<T>& p, cudaStream_t stream) {
  using C = compute_t<T>;
  if (p.num_rows == 0) return cudaSuccess;
  const size_t shared = sizeof(C) * kRows<C> * (p.num_bits | 1);
  return launch(bit_quantize<T>, blocks(p.num_rows, kRows<C>), kRows<C>, shared, stream, p);
}

template <class T>
cudaError_t bit_quantize_backward_cuda(const BitQuantizeBackwardParams<T>& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  return launch(bit_quantize_backward<T>, blocks(p.num_rows * p.num_bits, 256), 256, 0, stream, p);
}

#define PYRAMID_INSTANTIATE(T)                                                          \
  template cudaError_t bit_quantize_cuda<T>(const BitQuantizeParams<T>&, cudaStream_t); \
  template cudaError_t bit_quantize_backward_cuda<T>(const BitQuantizeBackwardParams<T>&, cudaStream_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace pyramid::kernels
