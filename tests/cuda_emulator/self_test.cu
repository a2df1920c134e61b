// Kernels for the emulator's own tests: right ones, to compare with the definition, and wrong ones, to be caught.
#include "kernels/cuda_device.cuh"

namespace pyramid::kernels {
namespace {

// Each lane writes what it holds to the place that the PTX manual gives it. d (16, 8) = a (16, 16) b (16, 8); the lanes
// load a by ldmatrix and b, kept (8, 16) and (16, 8), by ldmatrix with and without transposition.
template <class T>
__global__ void product(const T* a, const T* b, float* d, bool b_by_rows) {
  T* const left = dynamic_shared<T>();
  T* const right = left + 256;
  const int lane = threadIdx.x;
  copy_async_16(left + lane * 8, a + lane * 8, true);
  commit_copies();
  for (int i = lane; i < 16; i += 32) copy_async_16(right + i * 8, b + i * 8, true);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  uint32_t x[4], y[4];
  load_matrices(x, left + lane % 16 * 16 + lane / 16 * 8);
  if (b_by_rows) {
    load_matrices_transposed(y, right + lane % 16 * 8);
  } else {
    load_matrices(y, right + lane % 8 * 16 + lane / 8 % 2 * 8);
  }
  float c[4] = {};
  mma<T>(c, x, y[0], y[1]);
  const int group = lane / 4, place = lane % 4;
  d[group * 8 + place * 2] = c[0];
  d[group * 8 + place * 2 + 1] = c[1];
  d[(group + 8) * 8 + place * 2] = c[2];
  d[(group + 8) * 8 + place * 2 + 1] = c[3];
}

// Block sums of x (num_blocks, 96): lanes shuffle, warps meet in static shared memory.
__global__ void block_sums(const float* x, float* sums) {
  __shared__ float partial[3];
  float value = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0] + partial[1] + partial[2];
}

template <class T>
__global__ void convert(const float* x, T* narrowed, float* widened, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) widened[i] = widen(narrowed[i] = narrow<T>(x[i]));
}

enum class Mistake { no_barrier, no_wait, divergent_barrier, missing_lane, other_barrier, overrun, early_return };

__global__ void wrong(float* out, const float* in, Mistake mistake) {
  float* const shared = dynamic_shared<float>();  // 64 numbers
  const int i = threadIdx.x;
  if (mistake == Mistake::no_wait) {
    if (i < 16) copy_async_16(shared + i * 4, in + i * 4, true);
    commit_copies();
    __syncthreads();
    out[i] = shared[63 - i];
    return;
  }
  shared[mistake == Mistake::overrun ? i + 1 : i] = in[i];
  if (mistake == Mistake::divergent_barrier) {
    if (i < 32) __syncthreads();
  } else if (mistake == Mistake::other_barrier) {
    if (i < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (mistake == Mistake::missing_lane) {
    if (i % 2) __syncwarp();
  } else if (mistake == Mistake::early_return) {
    if (i == 7) return;
    out[i] = __shfl_xor_sync(kAllLanes, in[i], 1);
  } else if (mistake != Mistake::no_barrier) {
    __syncthreads();
  }
  out[i] = shared[63 - i];
}

}  // namespace
}  // namespace pyramid::kernels

using namespace pyramid::kernels;

#pragma GCC visibility push(default)
extern "C" {
int emulated_product(const void* a, const void* b, float* d, bool half, bool b_by_rows) {
  return half ? launch(product<Half>, 1, 32, 768, nullptr, (const Half*)a, (const Half*)b, d, b_by_rows)
              : launch(product<BFloat16>, 1, 32, 768, nullptr, (const BFloat16*)a, (const BFloat16*)b, d, b_by_rows);
}
int emulated_block_sums(const float* x, float* sums, int num_blocks) {
  return launch(block_sums, num_blocks, 96, 0, nullptr, x, sums);
}
int emulated_convert(const float* x, void* narrowed, float* widened, int count, bool half) {
  return half ? launch(convert<Half>, 1, 64, 0, nullptr, x, (Half*)narrowed, widened, count)
              : launch(convert<BFloat16>, 1, 64, 0, nullptr, x, (BFloat16*)narrowed, widened, count);
}
int emulated_mistake(float* out, const float* in, int mistake) {
  return launch(wrong, 1, 64, 256, nullptr, out, in, static_cast<Mistake>(mistake));
}
const char* emulated_message() { return cudaGetErrorString(cudaErrorLaunchFailure); }
}
