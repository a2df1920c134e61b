// joint_bit_sum on CUDA: a matrix product in tiles of 128 x 128, 8 x 8 numbers a thread, whose factors are made in shared
// memory from the probabilities. Forward: the rows are cut into runs, whose sums a second kernel adds up in order.
// Backward: a block has 128 rows and 128 codes of one half, multiplies its tile of H by the table of its own half and
// leaves sums by bit, which a second kernel adds up in order. No atomics: the result is the same every time.
#include "joint_bit_sum.h"

#include "cuda_device.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kTile = kJointTile, kDepth = 16, kThreads = 256;
constexpr int kStride = kTile + 4;  // of a line in shared memory: lines begin in different banks
constexpr int kTileBits = 7;
template <class C>
constexpr size_t kShared = 2 * kDepth * kStride * sizeof(C);  // the two factors
template <class C>
constexpr size_t kSharedBackward = kShared<C> + kDepth * kTile * sizeof(C);
template <class C>
constexpr int kBlocks = sizeof(C) == 4 ? 2 : 1;  // of a multiprocessor: one makes factors while the other multiplies

// The probabilities of one half of the bits, in one row.
template <class C>
struct HalfRow {
  const C* zero;
  int64_t one, stride;  // to the probability of a bit that is set; to the next bit

  __device__ C at(int bit, bool set) const { return zero[bit * stride + (set ? one : 0)]; }

  // Of bits [begin, end) of a code.
  __device__ C product(int code, int begin, int end) const {
    C value = 1;
    for (int i = begin; i < end; ++i) value *= at(i, code >> i & 1);
    return value;
  }
};

template <class C>
__device__ HalfRow<C> half_row(const JointShape& shape, const C* probabilities, bool high, int64_t row) {
  const int64_t padded = ceil_div(shape.num_rows, int64_t{32}) * 32;
  return {probabilities + (high ? shape.num_bits / 2 : 0) * padded + row, shape.num_bits * padded, padded};
}

// 8 x 8 of the product of two factors in shared memory, each (kDepth, kStride).
template <class C>
__device__ void multiply(const C* rows, const C* columns, int y, int x, C (&sum)[8][8]) {
#pragma unroll 4
  for (int k = 0; k < kDepth; ++k) {
    C a[8], b[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = rows[k * kStride + y * 4 + i];
      a[i + 4] = rows[k * kStride + 64 + y * 4 + i];
      b[i] = columns[k * kStride + x * 4 + i];
      b[i + 4] = columns[k * kStride + 64 + x * 4 + i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[i][j] += a[i] * b[j];
  }
}

// Where number i (of 8) of thread y or x lies in its tile.
__device__ constexpr int place(int thread, int i) { return thread * 4 + i % 4 + i / 4 * 64; }

// kernels

template <class T>
__global__ void joint_probabilities(JointProbabilitiesParams<T> p, int64_t padded) {
  using C = compute_t<T>;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, bits = p.shape.num_bits;
  if (n >= padded) return;
  for (int64_t i = 0; i < bits; ++i) {
    C zero = 0, one = 0;
    if (n < p.shape.num_rows) {
      const C y = widen(p.x[n * bits + i]) * static_cast<C>(4 / p.temperature);
      const C t = exp(-fabs(y)), likely = 1 / (1 + t), other = t * likely;
      zero = y > 0 ? other : likely;
      one = y > 0 ? likely : other;
    }
    p.probabilities[i * padded + n] = zero;
    p.probabilities[(bits + i) * padded + n] = one;
  }
}

// Block (tile of high codes, tile of low codes, run of rows).
template <class C>
__global__ void __launch_bounds__(kThreads, kBlocks<C>) joint_bit_sum(JointBitSumCudaParams<C> p) {
  C* const low = dynamic_shared<C>();
  C* const high = low + kDepth * kStride;
  const int thread = threadIdx.x, x = thread % 16, y = thread / 16;
  const int low_bits = static_cast<int>(p.shape.num_bits) / 2, high_bits = static_cast<int>(p.shape.num_bits) - low_bits;
  const int low_codes = 1 << low_bits, high_codes = 1 << high_bits;
  const int low_first = blockIdx.y * kTile, high_first = blockIdx.x * kTile;
  const int64_t run = ceil_div(ceil_div(p.shape.num_rows, p.splits), int64_t{kDepth}) * kDepth;
  const int64_t begin = blockIdx.z * run, end = begin + run < p.shape.num_rows ? begin + run : p.shape.num_rows;

  // A thread makes 16 codes of one row of one factor: threads 0 to 127 those of the low half.
  const int line = thread % kDepth, group = thread / kDepth % 8;
  const bool makes_high = thread >= kThreads / 2;
  const int bits = makes_high ? high_bits : low_bits;
  const int code = (makes_high ? high_first : low_first) + group * 16;
  C* const made = (makes_high ? high : low) + line * kStride + group * 16;

  C sum[8][8] = {};
  for (int64_t first = begin; first < end; first += kDepth) {
    C table[16];
    const int64_t row = first + line;
    const bool there = row < end && code < 1 << bits;
    const HalfRow<C> half = half_row(p.shape, p.probabilities, makes_high, there ? row : 0);
    table[0] = there ? half.product(code, 4, bits) : C(0);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool exists = i < bits;
      const C zero = exists ? half.at(i, false) : C(1), one = exists ? half.at(i, true) : C(0);
#pragma unroll
      for (int j = 0; j < 8; ++j) {  // all bounds constant: the table stays in registers
        if (j >= 1 << i) continue;
        table[(1 << i) + j] = table[j] * one;
        table[j] *= zero;
      }
    }
    __syncthreads();  // the factors before are used up
#pragma unroll
    for (int j = 0; j < 16; j += 4) {
#pragma unroll
      for (int i = 0; i < 4; ++i) made[j + i] = table[j + i];
    }
    __syncthreads();
    multiply(low, high, y, x, sum);
  }

  C* const out = p.splits > 1 ? p.partial + static_cast<int64_t>(blockIdx.z) * low_codes * high_codes : p.joint;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int a = low_first + place(y, i);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int b = high_first + place(x, j);
      if (a < low_codes && b < high_codes) out[static_cast<int64_t>(a) * high_codes + b] = sum[i][j];
    }
  }
}

template <class C>
__global__ void add_runs(JointBitSumCudaParams<C> p, int64_t codes) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < codes;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    C sum = 0;
    for (int64_t split = 0; split < p.splits; ++split) sum += p.partial[split * codes + i];
    p.joint[i] = sum;
  }
}

// kDepth x kTile numbers of joint's gradient: line k is code other + k of the other half, column c code mine + c.
template <class C>
__device__ void load_grad(const C* grad, int low_codes, int high_codes, bool high, int mine, int other, C* tile) {
  const int thread = threadIdx.x;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    // Neighbouring threads: neighbouring columns of grad (high), or rows whose 8 numbers fill a sector (low).
    const int line = high ? thread / 128 + 2 * i : thread / 128 * 8 + i, column = thread % 128;
    const int a = high ? other + line : mine + column, b = high ? mine + column : other + line;
    tile[line * kStride + column] = a < low_codes && b < high_codes ? grad[a * high_codes + b] : C(0);
  }
}

// The sums of u = H * table, over the codes of a tile, of 16 threads that have the same rows.
template <class C>
__device__ C add_lanes(C value) {
#pragma unroll
  for (int lane = 8; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// Block (128 rows, tile of codes: those of the low half, then those of the high half).
template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks<compute_t<T>>) joint_bit_sum_backward(JointBitSumBackwardCudaParams<T> p, int low_tiles) {
  using C = compute_t<T>;
  C* const table = dynamic_shared<C>();
  C* const grads = table + kDepth * kStride;
  const int thread = threadIdx.x, x = thread % 16, y = thread / 16;
  const int low_bits = static_cast<int>(p.shape.num_bits) / 2, high_bits = static_cast<int>(p.shape.num_bits) - low_bits;
  const bool high = static_cast<int>(blockIdx.y) >= low_tiles;  // the half whose codes these are
  const int mine = (static_cast<int>(blockIdx.y) - (high ? low_tiles : 0)) * kTile;
  const int bits = high ? high_bits : low_bits, other_bits = high ? low_bits : high_bits;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTile;

  // A thread makes 8 codes of one row of the other half's table, those with bit 3 as its own `upper`; what their first
  // bits give stays in its own places of shared memory.
  const int row = thread % kTile;
  const bool upper = thread >= kTile, there = first + row < p.shape.num_rows;
  const HalfRow<C> other = half_row(p.shape, p.probabilities, !high, there ? first + row : 0);
  C* const first_bits = grads + kDepth * kStride + (upper ? 8 * kTile : 0) + row;  // (8, kTile)
  C small[8];
  small[0] = !there ? C(0) : other_bits > 3 ? other.at(3, upper) : upper ? C(0) : C(1);
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const bool exists = i < other_bits;
    const C zero = exists ? other.at(i, false) : C(1), one = exists ? other.at(i, true) : C(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j >= 1 << i) continue;
      small[(1 << i) + j] = small[j] * one;
      small[j] *= zero;
    }
  }

#pragma unroll
  for (int i = 0; i < 8; ++i) first_bits[i * kTile] = small[i];

  C sum[8][8] = {};  // rows, codes
  for (int code = 0; code < 1 << other_bits; code += kDepth) {
    const C factor = other.product(code, 4, other_bits);
    __syncthreads();  // the factors before are used up
#pragma unroll
    for (int i = 0; i < 8; ++i) table[(i + (upper ? 8 : 0)) * kStride + row] = factor * first_bits[i * kTile];
    load_grad(p.grad, 1 << low_bits, 1 << high_bits, high, mine, code, grads);
    __syncthreads();
    multiply(table, grads, y, x, sum);
  }

  const int64_t padded = ceil_div(p.shape.num_rows, int64_t{32}) * 32;
  C* const partial = p.partial + blockIdx.y * kJointSums * padded;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t n = first + place(y, i);
    const bool counts = n < p.shape.num_rows;
    const HalfRow<C> own = half_row(p.shape, p.probabilities, high, counts ? n : 0);
    // By bits 0, 1 and 6 the codes of a thread differ, by 2 to 5 the threads, by the others the tiles.
    C by_code[3][2] = {};
    const int code = mine + x * 4;
    C outer = own.product(code, kTileBits, bits);
    outer *= own.product(code, 2, bits < 6 ? bits : 6);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at[3] = {j & 1, j >> 1 & 1, j >> 2};
      C weight = outer;
      if (bits > 0) weight *= own.at(0, at[0]);
      if (bits > 1) weight *= own.at(1, at[1]);
      if (bits > 6) weight *= own.at(6, at[2]);
      // Codes that do not exist have no gradient, so u is 0 there.
      const C u = sum[i][j] * weight;
#pragma unroll
      for (int bit = 0; bit < 3; ++bit) by_code[bit][at[bit]] += u;
    }
    const C all = by_code[0][0] + by_code[0][1];
#pragma unroll
    for (int bit = 0; bit < kTileBits; ++bit) {
#pragma unroll
      for (int set = 0; set < 2; ++set) {
        C share;
        if (bit < 2 || bit == 6)
          share = by_code[bit == 6 ? 2 : bit][set];
        else
          share = (x >> (bit - 2) & 1) == set ? all : C(0);
        share = add_lanes(share);
        if (x == 0 && counts) partial[(2 * bit + set) * padded + n] = share;
      }
    }
    const C total = add_lanes(all);
    if (x == 0 && counts) partial[(kJointSums - 1) * padded + n] = total;
  }
}

template <class T>
__global__ void add_tiles(JointBitSumBackwardCudaParams<T> p, int low_tiles, int high_tiles) {
  using C = compute_t<T>;
  const int64_t n = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (n >= p.shape.num_rows) return;
  const int num_bits = static_cast<int>(p.shape.num_bits), low_bits = num_bits / 2;
  const int64_t padded = ceil_div(p.shape.num_rows, int64_t{32}) * 32;
  const C scale = static_cast<C>(4 / p.temperature);
  for (int i = 0; i < num_bits; ++i) {
    const bool high = i >= low_bits;
    const int bit = high ? i - low_bits : i, tiles = high ? high_tiles : low_tiles;
    const C* const partial = p.partial + (high ? low_tiles : 0) * kJointSums * padded + n;
    C sums[2] = {};
    for (int tile = 0; tile < tiles; ++tile) {
      const C* const of_tile = partial + tile * kJointSums * padded;
      if (bit < kTileBits) {
        sums[0] += of_tile[2 * bit * padded];
        sums[1] += of_tile[(2 * bit + 1) * padded];
      } else if (tile >> (bit - kTileBits) & 1) {
        sums[1] += of_tile[(kJointSums - 1) * padded];
      } else {
        sums[0] += of_tile[(kJointSums - 1) * padded];
      }
    }
    const HalfRow<C> own = half_row(p.shape, p.probabilities, high, n);
    p.grad_x[n * num_bits + i] = narrow<T>((own.at(bit, false) * sums[1] - own.at(bit, true) * sums[0]) * scale);
  }
}

}  // namespace

// launchers

template <class T>
cudaError_t joint_probabilities_cuda(const JointProbabilitiesParams<T>& p, cudaStream_t stream) {
  const int64_t padded = p.shape.padded_rows();
  if (padded == 0) return cudaSuccess;
  return launch(joint_probabilities<T>, static_cast<unsigned>(ceil_div(padded, 128)), 128, 0, stream, p, padded);
}

template <class C>
cudaError_t joint_bit_sum_cuda(const JointBitSumCudaParams<C>& p, cudaStream_t stream) {
  if (p.shape.num_rows == 0) return cudaSuccess;
  const dim3 grid(static_cast<unsigned>(joint_tiles(p.shape.high_codes())),
                  static_cast<unsigned>(joint_tiles(p.shape.low_codes())), static_cast<unsigned>(p.splits));
  const cudaError_t error = launch(joint_bit_sum<C>, grid, kThreads, kShared<C>, stream, p);
  if (error != cudaSuccess || p.splits == 1) return error;
  const int64_t codes = p.shape.low_codes() * p.shape.high_codes(), wanted = ceil_div(codes, kThreads);
  return launch(add_runs<C>, static_cast<unsigned>(wanted < 65536 ? wanted : 65536), kThreads, 0, stream, p, codes);
}

template <class T>
cudaError_t joint_bit_sum_backward_cuda(const JointBitSumBackwardCudaParams<T>& p, cudaStream_t stream) {
  if (p.shape.num_rows == 0) return cudaSuccess;
  const int low_tiles = static_cast<int>(joint_tiles(p.shape.low_codes()));
  const int high_tiles = static_cast<int>(joint_tiles(p.shape.high_codes()));
  const dim3 grid(static_cast<unsigned>(ceil_div(p.shape.num_rows, kJointTile)),
                  static_cast<unsigned>(low_tiles + high_tiles));
  const cudaError_t error =
      launch(joint_bit_sum_backward<T>, grid, kThreads, kSharedBackward<compute_t<T>>, stream, p, low_tiles);
  if (error != cudaSuccess) return error;
  const unsigned blocks = static_cast<unsigned>(ceil_div(p.shape.num_rows, 128));
  return launch(add_tiles<T>, blocks, 128, 0, stream, p, low_tiles, high_tiles);
}

#define PYRAMID_INSTANTIATE(T)                                                                     \
  template cudaError_t joint_probabilities_cuda<T>(const JointProbabilitiesParams<T>&, cudaStream_t); \
  template cudaError_t joint_bit_sum_backward_cuda<T>(const JointBitSumBackwardCudaParams<T>&, cudaStream_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE
template cudaError_t joint_bit_sum_cuda<float>(const JointBitSumCudaParams<float>&, cudaStream_t);
template cudaError_t joint_bit_sum_cuda<double>(const JointBitSumCudaParams<double>&, cudaStream_t);

}  // namespace pyramid::kernels
