// nearest_code on CUDA. The same bound and the same two ranks as on the CPU (nearest_code.h), so the same ids.
//
//   center_codes   e' = e - c, |e'|^2 / 2, |e'|                            warp per code
//   bucket_norms   greatest |e'| of each bucket                            thread per bucket
//   row_norms      |z - c|                                                 warp per row
//   score_tiles    least s per (row, bucket): a float32 product of 128 rows x 128 codes in shared memory, 8 x 8 a
//                  thread, whose epilogue writes 4 minima a row instead of 128 numbers
//   choose         ranks in double the codes of the admitted buckets       warp per row
//
// Memory: z is read once per 128 codes, the codebook once per 128 rows; rows_at_a_time x K / 32 minima.
#include "nearest_code.h"

namespace pyramid::kernels {
namespace {

constexpr int kWarp = 32;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTileRows = 128, kTileCodes = 128, kTileDim = 8;
constexpr unsigned kAll = 0xffffffffu;
static_assert(kTileCodes == 4 * kCudaBucket, "score_tiles writes four buckets a row");
static_assert(kCudaBucket == kWarp, "choose gives each lane one code of a bucket");

__device__ double warp_sum(double value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

__device__ float warp_min(float value) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = fminf(value, __shfl_xor_sync(kAll, value, step));
  return value;
}

__device__ float norm_above(double sum_of_squares) {
  const double norm = sqrt(sum_of_squares) * (1 + 1e-6);
  return norm < kGreatestNorm ? static_cast<float>(norm) : INFINITY;  // NaN too
}

template <class T>
__device__ double squared_distance(const T* __restrict__ a, const T* __restrict__ b, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; ++d) {
    const double difference = static_cast<double>(a[d]) - static_cast<double>(b[d]);
    sum += difference * difference;
  }
  return sum;
}

struct Best {
  double distance;
  int64_t id;
  // Starts at {infinity, 0}. Ties go to the lowest id; NaN and infinity never win, so id 0 stays if no other comes.
  __device__ void offer(double candidate, int64_t candidate_id) {
    if (candidate < distance || (candidate == distance && candidate_id < id)) {
      distance = candidate;
      id = candidate_id;
    }
  }
  // The best of all lanes, in all lanes.
  __device__ void reduce() {
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(kAll, distance, step);
      const long long other_id = __shfl_xor_sync(kAll, static_cast<long long>(id), step);
      offer(other, other_id);
    }
  }
};

// kernels

__global__ void __launch_bounds__(kThreads)
center_codes(const float* __restrict__ codebook, const float* __restrict__ center, int64_t num_codes, int64_t dim,
             float* __restrict__ centered, float* __restrict__ half_norm, float* __restrict__ code_norm) {
  const int lane = threadIdx.x % kWarp;
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (k >= num_codes) return;
  double sum = 0;
  for (int64_t d = lane; d < dim; d += kWarp) {
    const float value = codebook[k * dim + d] - center[d];
    centered[k * dim + d] = value;
    sum += static_cast<double>(value) * value;
  }
  sum = warp_sum(sum);
  if (lane == 0) {
    half_norm[k] = static_cast<float>(0.5 * sum);
    code_norm[k] = norm_above(sum);
  }
}

__global__ void __launch_bounds__(kThreads)
bucket_norms(const float* __restrict__ code_norm, int64_t num_codes, int64_t num_buckets,
             float* __restrict__ bucket_norm) {
  const int64_t bucket = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (bucket >= num_buckets) return;
  float greatest = 0;
  for (int64_t k = bucket * kCudaBucket; k < (bucket + 1) * kCudaBucket && k < num_codes; ++k)
    greatest = fmaxf(greatest, code_norm[k]);
  bucket_norm[bucket] = greatest;
}

__global__ void __launch_bounds__(kThreads)
row_norms(const float* __restrict__ z, const float* __restrict__ center, int64_t num_rows, int64_t dim,
          float* __restrict__ row_norm) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  double sum = 0;
  for (int64_t d = lane; d < dim; d += kWarp) {
    const float value = z[row * dim + d] - center[d];
    sum += static_cast<double>(value) * value;
  }
  sum = warp_sum(sum);
  if (lane == 0) row_norm[row] = norm_above(sum);
}

// Thread (tx, ty) of 16 x 16 has rows ty * 4 + {0..3} and 64 + the same, codes tx * 4 + {0..3} and 64 + the same: both
// are read from shared memory as float4 without bank conflicts. Eight neighbouring tx make a bucket.
__global__ void __launch_bounds__(kThreads, 2)
score_tiles(const float* __restrict__ z, const float* __restrict__ center, const float* __restrict__ centered,
            const float* __restrict__ half_norm, int64_t num_rows, int64_t num_codes, int64_t dim,
            int64_t num_buckets, float* __restrict__ bucket_min) {
  // One float4 of padding: the 8 x 4 numbers that a warp stores at a time fall into 32 banks.
  __shared__ float4 rows4[kTileDim][kTileRows / 4 + 1];
  __shared__ float4 codes4[kTileDim][kTileCodes / 4 + 1];
  const auto rows = reinterpret_cast<float(*)[kTileRows + 4]>(rows4);
  const auto codes = reinterpret_cast<float(*)[kTileCodes + 4]>(codes4);

  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTileRows;
  const int64_t first_code = static_cast<int64_t>(blockIdx.y) * kTileCodes;
  float product[8][8] = {};

  for (int64_t start = 0; start < dim; start += kTileDim) {
    for (int i = threadIdx.x; i < kTileRows * kTileDim; i += kThreads) {
      const int r = i / kTileDim, d = i % kTileDim;
      const int64_t row = first_row + r, column = start + d;
      rows[d][r] = row < num_rows && column < dim ? z[row * dim + column] - center[column] : 0.0f;
    }
    for (int i = threadIdx.x; i < kTileCodes * kTileDim; i += kThreads) {
      const int k = i / kTileDim, d = i % kTileDim;
      const int64_t code = first_code + k, column = start + d;
      codes[d][k] = code < num_codes && column < dim ? centered[code * dim + column] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int d = 0; d < kTileDim; ++d) {
      const float4 r0 = rows4[d][ty], r1 = rows4[d][16 + ty];
      const float4 c0 = codes4[d][tx], c1 = codes4[d][16 + tx];
      const float r[8] = {r0.x, r0.y, r0.z, r0.w, r1.x, r1.y, r1.z, r1.w};
      const float c[8] = {c0.x, c0.y, c0.z, c0.w, c1.x, c1.y, c1.z, c1.w};
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < 8; ++j) product[i][j] = fmaf(r[i], c[j], product[i][j]);
    }
    __syncthreads();
  }

  float half[8];
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    const int64_t code = first_code + (j / 4) * 64 + tx * 4 + j % 4;
    half[j] = code < num_codes ? half_norm[code] : INFINITY;
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const int64_t row = first_row + (i / 4) * 64 + ty * 4 + i % 4;
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float least = INFINITY;
#pragma unroll
      for (int j = side * 4; j < side * 4 + 4; ++j) least = fminf(least, half[j] - product[i][j]);
#pragma unroll
      for (int step = 4; step > 0; step /= 2) least = fminf(least, __shfl_xor_sync(kAll, least, step));
      const int64_t bucket = static_cast<int64_t>(blockIdx.y) * 4 + side * 2 + tx / 8;
      if (tx % 8 == 0 && row < num_rows && bucket < num_buckets) bucket_min[row * num_buckets + bucket] = least;
    }
  }
}

__global__ void __launch_bounds__(kThreads)
choose(const float* __restrict__ z, const float* __restrict__ codebook, const float* __restrict__ bucket_min,
       const float* __restrict__ bucket_norm, const float* __restrict__ row_norm, int64_t num_rows, int64_t num_codes,
       int64_t dim, int64_t num_buckets, float factor, float floor, int64_t* __restrict__ ids,
       float* __restrict__ distance) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  const float zn = row_norm[row];
  const float* minima = bucket_min + row * num_buckets;
  const float* vector = z + row * dim;
  const auto bound = [&](int64_t bucket) {
    const float e = bucket_norm[bucket];
    return factor * (zn * e + 0.5f * e * e) + floor * (1 + zn + e);
  };

  float limit = INFINITY;
  for (int64_t bucket = lane; bucket < num_buckets; bucket += kWarp)
    limit = fminf(limit, minima[bucket] + bound(bucket));
  limit = warp_min(limit);

  Best best{static_cast<double>(INFINITY), 0};
  for (int64_t start = 0; start < num_buckets; start += kWarp) {
    const int64_t mine = start + lane;
    // Not "<= limit": in this form a NaN admits its bucket.
    unsigned admitted = __ballot_sync(kAll, mine < num_buckets && !(minima[mine] - bound(mine) > limit));
    for (; admitted; admitted &= admitted - 1) {
      const int64_t code = (start + __ffs(admitted) - 1) * kCudaBucket + lane;
      if (code < num_codes) best.offer(squared_distance(vector, codebook + code * dim, dim), code);
    }
  }
  best.reduce();
  if (lane == 0) {
    ids[row] = best.id;
    distance[row] = static_cast<float>(squared_distance(vector, codebook + best.id * dim, dim));
  }
}

__global__ void __launch_bounds__(kThreads)
choose_double(const double* __restrict__ z, const double* __restrict__ codebook, int64_t num_rows, int64_t num_codes,
              int64_t dim, int64_t* __restrict__ ids, double* __restrict__ distance) {
  const int lane = threadIdx.x % kWarp;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  if (row >= num_rows) return;
  const double* vector = z + row * dim;
  Best best{static_cast<double>(INFINITY), 0};
  for (int64_t code = lane; code < num_codes; code += kWarp)
    best.offer(squared_distance(vector, codebook + code * dim, dim), code);
  best.reduce();
  if (lane == 0) {
    ids[row] = best.id;
    distance[row] = squared_distance(vector, codebook + best.id * dim, dim);
  }
}

unsigned blocks(int64_t count, int64_t per_block) { return static_cast<unsigned>(ceil_div(count, per_block)); }

}  // namespace

// launchers

cudaError_t nearest_code_cuda(const NearestCodeParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  const int64_t num_buckets = ceil_div(p.num_codes, kCudaBucket);
  center_codes<<<blocks(p.num_codes, kWarps), kThreads, 0, stream>>>(p.codebook, p.center, p.num_codes, p.dim,
                                                                     p.centered, p.half_norm, p.code_norm);
  bucket_norms<<<blocks(num_buckets, kThreads), kThreads, 0, stream>>>(p.code_norm, p.num_codes, num_buckets,
                                                                       p.bucket_norm);
  row_norms<<<blocks(p.num_rows, kWarps), kThreads, 0, stream>>>(p.z, p.center, p.num_rows, p.dim, p.row_norm);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;

  // The minima of all rows at once could be large: some rows after the other, in one buffer, on one stream.
  for (int64_t start = 0; start < p.num_rows; start += p.rows_at_a_time) {
    const int64_t count = p.num_rows - start < p.rows_at_a_time ? p.num_rows - start : p.rows_at_a_time;
    const float* z = p.z + start * p.dim;
    const dim3 grid(blocks(count, kTileRows), blocks(p.num_codes, kTileCodes));
    score_tiles<<<grid, kThreads, 0, stream>>>(z, p.center, p.centered, p.half_norm, count, p.num_codes, p.dim,
                                               num_buckets, p.bucket_min);
    choose<<<blocks(count, kWarps), kThreads, 0, stream>>>(
        z, p.codebook, p.bucket_min, p.bucket_norm, p.row_norm + start, count, p.num_codes, p.dim, num_buckets,
        PYRAMID_ERROR_FACTOR(p.dim), PYRAMID_ERROR_FLOOR(p.dim), p.ids + start, p.distance + start);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t nearest_code_double_cuda(const NearestCodeDoubleParams& p, cudaStream_t stream) {
  if (p.num_rows == 0) return cudaSuccess;
  choose_double<<<blocks(p.num_rows, kWarps), kThreads, 0, stream>>>(p.z, p.codebook, p.num_rows, p.num_codes, p.dim,
                                                                     p.ids, p.distance);
  return cudaGetLastError();
}

}  // namespace pyramid::kernels
