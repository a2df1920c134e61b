// code_logsumexp on CUDA: attention whose keys and values are the codes, on the tensor cores (mma m16n8k16, sm_80 and
// newer) with the accuracy of float32. A centred number is the sum of three bfloat16 numbers, 24 bits in all; of the
// nine products of two such numbers the six greatest are formed, and what is left out is about 2^-26 of the product.
//
//   split_rows   (R, D) -> three parts of each centred number, padded with zeros to whole tiles, and |x'|^2 / 2
//   attend       128 rows against blocks of 64 codes (backward: 128 codes against blocks of 64 rows). Scores stay in
//                registers, and so do the sums of up to 256 columns; the other side comes by through shared memory, 32
//                columns at a time for the scores, 16 rows at a time for the sums. Wider vectors: a block for each
//                slice of the columns, which forms the scores again
//   finish       puts together the runs into which the other side was cut so that all multiprocessors have work
//
// The tensor cores round towards zero, so nothing long is summed there: each product of 16 x 16 tiles starts from zero,
// the small parts before the great ones, and is added up in float32.
//
// Bound by the matrix units: 6 (slices + 1) products of 16-bit numbers a pair and column. For 128 x 64 pairs a block
// reads 1.1 KiB a column from the L2 cache for the scores and 0.4 KiB for the sums; from memory the parts of the other
// side, 6 bytes a number, come once or twice. The workspace holds the parts of both sides, and the sums of the runs.
// The cuts follow from the sizes alone and there are no atomics: the result is the same every time.
#include "code_logsumexp.h"

#include "code_logsumexp_cuda.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kStageNumbers = kParts * (kRows + kKeys) * kTileStep<kDepth>;
constexpr size_t kShared = 2 * sizeof(BFloat16) * kStageNumbers;
static_assert(kValueKeys * kTileStep<kMostColumns> <= (kRows + kKeys) * kTileStep<kDepth>, "either step fits a stage");

// kernels

template <class T>
__global__ void __launch_bounds__(kThreads)
split_rows(const T* x, const float* center, int64_t dim, int64_t width, int64_t padded, Side side) {
  const int lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (row >= padded) return;
  const bool exists = row < side.count;
  double sum = 0;
  for (int64_t d = lane; d < width; d += kLanes) {
    float left = exists && d < dim ? widen(x[row * dim + d]) - center[d] : 0.0f;
    sum += static_cast<double>(left) * left;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const BFloat16 rounded = narrow<BFloat16>(left);
      side.parts[(row * kParts + part) * width + d] = rounded;
      left -= widen(rounded);
    }
  }
  sum = warp_sum(sum);
  if (lane == 0) side.half[row] = exists ? static_cast<float>(0.5 * sum) : INFINITY;
}

// low, high (16, 8 each) += a b, (16, 16) both: the small products of the parts first.
__device__ __forceinline__ void multiply(float (&low)[4], float (&high)[4], const uint32_t (&a)[kParts][4],
                                         const uint32_t (&b)[kParts][4]) {
  float first[4] = {}, second[4] = {};
#pragma unroll
  for (int rank = kParts - 1; rank >= 0; --rank) {
#pragma unroll
    for (int part = 0; part <= rank; ++part) {
      mma<BFloat16>(first, a[part], b[rank - part][0], b[rank - part][1]);
      mma<BFloat16>(second, a[part], b[rank - part][2], b[rank - part][3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    low[i] += first[i];
    high[i] += second[i];
  }
}

// Two neighbouring 16 x 8 results of mma as the parts of a left factor (16, 16).
__device__ __forceinline__ void split_left(uint32_t (&r)[kParts][4], const float (&low)[4], const float (&high)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float first = i < 2 ? low[2 * i] : high[2 * i - 4], second = i < 2 ? low[2 * i + 1] : high[2 * i - 3];
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      r[part][i] = pack<BFloat16>(first, second);
      const float2 taken = unpack<BFloat16>(r[part][i]);
      first -= taken.x;
      second -= taken.y;
    }
  }
}

// The steps of a block in the order in which they are taken: for each block of the other side, chunks of kDepth columns
// of both, then its rows, kValueKeys at a time. A step is on its way while the one before is used.
template <int kColumns>
struct Steps {
  const Attention& x;
  BFloat16* shared;
  const BFloat16* own;    // the first of the block's own rows
  const BFloat16* other;  // the row that is fetched next, and how many there still are
  int left, first_column, columns;
  int column = 0, turn = 0;  // column == width: it is the turn of the sums

  __device__ __forceinline__ BFloat16* stage(int which) const { return shared + (which & 1) * kStageNumbers; }

  __device__ __forceinline__ void fetch() {
    if (left == 0) return;
    BFloat16* const target = stage(turn);
    const int width = static_cast<int>(x.cut.width);
    if (column < width) {
      copy_lines<kDepth, kParts * kRows, kThreads>(target, own + column, width, kDepth);
      copy_lines<kDepth, kParts * kKeys, kThreads>(target + kParts * kRows * kTileStep<kDepth>, other + column, width,
                                                   kDepth);
      column += kDepth;
    } else {
      copy_lines<kColumns, kParts * kValueKeys, kThreads>(target, other + first_column, width, columns);
      other += static_cast<int64_t>(kParts * kValueKeys) * width;
      left -= kValueKeys;
      if (left % kKeys == 0) column = 0;
    }
  }

  // The stage of the step that is due; the next one is asked for.
  __device__ __forceinline__ const BFloat16* begin() {
    ++turn;
    fetch();
    commit_copies();
    wait_copies<1>();
    __syncthreads();
    return stage(turn - 1);
  }
  __device__ __forceinline__ void end() const { __syncthreads(); }
};

// Scores to weights, in place. A lane has two rows: result_row(0) and result_row(2).
struct Softmax {
  float top[2] = {-INFINITY, -INFINITY}, total[2] = {};

  // Online: the weights are 2^(scale (score - top)), and `shrink` is what the sums so far are to be multiplied by.
  __device__ __forceinline__ void soften(float (&s)[kKeys / 8][4], const float* half, float scale, float (&shrink)[2]) {
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] -= half[j * 8 + result_column(i)];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float best = top[side];
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) best = fmaxf(best, fmaxf(s[j][2 * side], s[j][2 * side + 1]));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 1));
      best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, 2));
      shrink[side] = fast_exp2((top[side] - best) * scale);
      top[side] = best;
      float sum = 0;
#pragma unroll
      for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
        for (int i = 2 * side; i < 2 * side + 2; ++i) {
          s[j][i] = fast_exp2((s[j][i] - best) * scale);
          sum += s[j][i];
        }
      }
      total[side] = total[side] * shrink[side] + sum;
    }
  }

  // The normalizers are known: exp(scale (score - |e'|^2 / 2 - |z'|^2 / 2) - logsumexp) grad.
  __device__ __forceinline__ void weigh(float (&s)[kKeys / 8][4], const Attention& x, int key,
                                        const float (&own_half)[2]) {
    float sum[2] = {};
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int n = key + j * 8 + result_column(i);
        const bool exists = n < x.other.count;
        const float half = x.other.half[n], logsumexp = exists ? x.logsumexp[n] : 0.0f;
        const float grad = exists ? x.grad[n] : 0.0f;
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          float& score = s[j][2 * side + i];
          // Rounded as `finish` rounds it: the weight of a code that is nearly all of the sum is off by little.
          score = fast_exp2((rounded_product(score - own_half[side] - half, x.scale) - logsumexp) * kLog2E) * grad;
          sum[side] += score;
        }
      }
    }
    total[0] += sum[0];
    total[1] += sum[1];
  }
};

// Block (128 own rows, slice of the columns, run of the other side).
template <bool kBackward, int kColumns>
__global__ void __launch_bounds__(kThreads, 1) attend(const Attention x) {
  const int warp = threadIdx.x / kLanes, width = static_cast<int>(x.cut.width);
  const int own_first = blockIdx.x * kRows, first_column = blockIdx.y * static_cast<int>(x.cut.slice_columns);
  const int first_key = blockIdx.z * static_cast<int>(x.cut.run_keys);
  const int columns = min(static_cast<int>(x.cut.slice_columns), width - first_column);
  const int end_key = static_cast<int>(ceil_div(min(x.other.count, first_key + x.cut.run_keys), kKeys) * kKeys);
  const auto row_of = [&](const Side& side, int row) {
    return side.parts + static_cast<int64_t>(row) * kParts * width;
  };
  Steps<kColumns> steps{x,         dynamic_shared<BFloat16>(), row_of(x.own, own_first), row_of(x.other, first_key),
                        end_key - first_key, first_column, columns};

  Softmax softmax;
  float out[kColumns / 8][4] = {};
  float own_half[2];
  if constexpr (kBackward) {
    own_half[0] = x.own.half[own_first + warp * 16 + result_row(0)];
    own_half[1] = x.own.half[own_first + warp * 16 + result_row(2)];
  }
  steps.fetch();
  commit_copies();
  for (int key = first_key; key < end_key; key += kKeys) {
    float s[kKeys / 8][4] = {};
    for (int depth = 0; depth < width; depth += kDepth) {
      constexpr int kStep = kTileStep<kDepth>;
      const BFloat16* const own = steps.begin() + warp * 16 * kParts * kStep;
      const BFloat16* const other = own + (kRows - warp * 16) * kParts * kStep;
#pragma unroll 1
      for (int d = 0; d < kDepth; d += 16) {
        uint32_t a[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part) load_left<kParts * kStep>(a[part], own + part * kStep + d);
#pragma unroll
        for (int j = 0; j < kKeys / 16; ++j) {
          uint32_t b[kParts][4];
#pragma unroll
          for (int part = 0; part < kParts; ++part)
            load_right<kParts * kStep>(b[part], other + (j * 16 * kParts + part) * kStep + d);
          multiply(s[2 * j], s[2 * j + 1], a, b);
        }
      }
      steps.end();
    }

    if constexpr (kBackward) {
      softmax.weigh(s, x, key, own_half);
    } else {
      float shrink[2];
      softmax.soften(s, x.other.half + key, x.scale * kLog2E, shrink);
#pragma unroll
      for (int n = 0; n < kColumns / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[n][i] *= shrink[i / 2];
    }

#pragma unroll
    for (int j = 0; j < kKeys / kValueKeys; ++j) {
      constexpr int kStep = kTileStep<kColumns>;
      const BFloat16* const values = steps.begin();
      uint32_t a[kParts][4];
      split_left(a, s[2 * j], s[2 * j + 1]);
#pragma unroll
      for (int n = 0; n < kColumns / 16; ++n) {
        if (n * 16 >= columns) continue;
        uint32_t b[kParts][4];
#pragma unroll
        for (int part = 0; part < kParts; ++part)
          load_right_plain<kParts * kStep>(b[part], values + part * kStep + n * 16);
        multiply(out[2 * n], out[2 * n + 1], a, b);
      }
      steps.end();
    }
  }

  const int64_t run_first = blockIdx.z * x.own.count;
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    const int row = own_first + warp * 16 + result_row(2 * side);
    float total = softmax.total[side];
    total += __shfl_xor_sync(kAllLanes, total, 1);
    total += __shfl_xor_sync(kAllLanes, total, 2);
    if (row >= x.own.count) continue;
    if (blockIdx.y == 0 && threadIdx.x % 4 == 0) {
      x.total[run_first + row] = total;
      if constexpr (!kBackward) x.top[run_first + row] = softmax.top[side];
    }
    float* const sums = x.sums + (run_first + row) * x.cut.dim;
#pragma unroll
    for (int n = 0; n < kColumns / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int column = first_column + n * 8 + result_column(i);
        if (n * 8 < columns && column < x.cut.dim) sums[column] = out[n][2 * side + i];
      }
    }
  }
}

// x' of one number, from its parts.
__device__ __forceinline__ float whole(const BFloat16* row, int64_t width, int64_t d) {
  return (widen(row[2 * width + d]) + widen(row[width + d])) + widen(row[d]);
}

// A warp per row; lane r has the weight of run r.
__global__ void __launch_bounds__(kThreads) finish(const Attention x, float* logsumexp, float* pull) {
  const int lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes, rows = x.own.count;
  if (row >= rows) return;
  const bool has_run = lane < x.cut.runs;
  const float top = has_run ? x.top[lane * rows + row] : -INFINITY;
  float best = top;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) best = fmaxf(best, __shfl_xor_sync(kAllLanes, best, step));
  float weight = has_run ? fast_exp2((top - best) * (x.scale * kLog2E)) : 0.0f;
  const float total = warp_sum(has_run ? weight * x.total[lane * rows + row] : 0.0f);
  if (lane == 0) logsumexp[row] = rounded_product(best - x.own.half[row], x.scale) + logf(total);
  weight /= total;
  const BFloat16* const own = x.own.parts + row * kParts * x.cut.width;
  for (int64_t first = 0; first < x.cut.dim; first += kLanes) {
    const int64_t d = first + lane;
    float sum = 0;
    for (int64_t run = 0; run < x.cut.runs; ++run) {
      const float of_run = __shfl_sync(kAllLanes, weight, static_cast<int>(run));
      if (d < x.cut.dim) sum = fmaf(of_run, x.sums[(run * rows + row) * x.cut.dim + d], sum);
    }
    if (d < x.cut.dim) pull[row * x.cut.dim + d] = sum - whole(own, x.cut.width, d);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) finish_backward(const Attention x, T* grad_codebook) {
  const int lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes, rows = x.own.count;
  if (row >= rows) return;
  float total = 0;
  for (int64_t run = 0; run < x.cut.runs; ++run) total += x.total[run * rows + row];
  const BFloat16* const own = x.own.parts + row * kParts * x.cut.width;
  for (int64_t d = lane; d < x.cut.dim; d += kLanes) {
    float sum = 0;
    for (int64_t run = 0; run < x.cut.runs; ++run) sum += x.sums[(run * rows + row) * x.cut.dim + d];
    grad_codebook[row * x.cut.dim + d] = narrow<T>(x.scale * (sum - total * whole(own, x.cut.width, d)));
  }
}

// launchers

unsigned blocks_of(int64_t count, int64_t each) { return static_cast<unsigned>(ceil_div(count, each)); }

template <class T>
cudaError_t split(const T* x, const float* center, const Cut& cut, const Side& side, cudaStream_t stream) {
  const int64_t padded = padded_rows(side.count);
  if (padded == 0) return cudaSuccess;
  return launch(split_rows<T>, blocks_of(padded, kWarps), kThreads, 0, stream, x, center, cut.dim, cut.width, padded,
                side);
}

template <bool kBackward>
cudaError_t start(const Attention& x, cudaStream_t stream) {
  const dim3 grid(blocks_of(x.own.count, kRows), static_cast<unsigned>(x.cut.slices),
                  static_cast<unsigned>(x.cut.runs));
  if (x.cut.slice_columns <= 64) return launch(attend<kBackward, 64>, grid, kThreads, kShared, stream, x);
  if (x.cut.slice_columns <= 128) return launch(attend<kBackward, 128>, grid, kThreads, kShared, stream, x);
  return launch(attend<kBackward, 256>, grid, kThreads, kShared, stream, x);
}

}  // namespace

int64_t code_logsumexp_cuda_bytes(int64_t num_rows, int64_t num_codes, int64_t dim) {
  const Cut cut(num_rows, num_codes, dim);
  return Workspace(nullptr, num_rows, num_codes, num_rows, cut, cut.runs > 1).bytes;
}

int64_t code_logsumexp_backward_cuda_bytes(int64_t num_rows, int64_t num_codes, int64_t dim) {
  return Workspace(nullptr, num_rows, num_codes, num_codes, Cut(num_codes, num_rows, dim), true).bytes;
}

template <class T>
cudaError_t code_logsumexp_cuda(const CodeLogsumexpParams<T>& p, char* workspace, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  const Cut cut(p.num_rows, p.num_codes, p.dim);
  const Workspace w(workspace, p.num_rows, p.num_codes, p.num_rows, cut, cut.runs > 1);
  if (!in_reach(w)) return cudaErrorInvalidValue;
  // One run: its sums lie where the pull will.
  const Attention x{w.rows, w.codes, cut, static_cast<float>(2 / p.tau), nullptr, nullptr,
                    cut.runs > 1 ? w.sums : p.pull, w.top, w.total};
  cudaError_t error = split(p.z, p.center, cut, w.rows, stream);
  if (error == cudaSuccess) error = split(p.codebook, p.center, cut, w.codes, stream);
  if (error == cudaSuccess) error = start<false>(x, stream);
  if (error != cudaSuccess) return error;
  return launch(finish, blocks_of(p.num_rows, kWarps), kThreads, 0, stream, x, p.logsumexp, p.pull);
}

template <class T>
cudaError_t code_logsumexp_backward_cuda(const CodeLogsumexpBackwardParams<T>& p, char* workspace,
                                         cudaStream_t stream) {
  const Cut cut(p.num_codes, p.num_rows, p.dim);
  const Workspace w(workspace, p.num_rows, p.num_codes, p.num_codes, cut, true);
  if (!in_reach(w)) return cudaErrorInvalidValue;
  const Attention x{w.codes, w.rows, cut, static_cast<float>(2 / p.tau), p.grad, p.logsumexp, w.sums, w.top, w.total};
  cudaError_t error = split(p.z, p.center, cut, w.rows, stream);
  if (error == cudaSuccess) error = split(p.codebook, p.center, cut, w.codes, stream);
  if (error == cudaSuccess) error = start<true>(x, stream);
  if (error != cudaSuccess) return error;
  return launch(finish_backward<T>, blocks_of(p.num_codes, kWarps), kThreads, 0, stream, x, p.grad_codebook);
}

#define PYRAMID_INSTANTIATE(T)                                                                       \
  template cudaError_t code_logsumexp_cuda<T>(const CodeLogsumexpParams<T>&, char*, cudaStream_t);   \
  template cudaError_t code_logsumexp_backward_cuda<T>(const CodeLogsumexpBackwardParams<T>&, char*, cudaStream_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace pyramid::kernels
