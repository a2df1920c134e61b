// Arg-min over a codebook without the N x K matrix: what both devices share.
//
// Idea. With any centre c, z' = z - c and e' = e - c, the order of the codes by |z - e|^2 is the order by
//     s_k = |e'_k|^2 / 2 - z' . e'_k
// which is one fused multiply-add per number, as in a matrix product. It is computed in float32 and of each *bucket* of
// codes only the least s is kept. The rounding error of s is at most
//     E = error_factor(D) * (|z'| |e'| + |e'|^2 / 2) + a term for underflow
// (D + 1 additions and products, the subtraction of c, the rounding of |e'|^2), so the true nearest code, and every code
// that ties with it, is in a bucket with min s - E <= U, U = least (min s + E). All codes of these few buckets are
// ranked by sum (z - e)^2 in double, ties to the lowest id. A bound that is infinite or NaN admits its bucket.
#pragma once

#include <cstdint>

#include "cuda_types.h"
#include "isa.h"
#include "types.h"

namespace pyramid::kernels {

struct NearestCodeParams {
  const float* z;         // (N, D)
  const float* codebook;  // (K, D)
  const float* center;    // (D,) anything; the mean of the codes makes the bound tight
  int64_t num_rows;       // N
  int64_t num_codes;      // K
  int64_t dim;            // D
  int64_t* ids;           // (N,) out
  float* distance;        // (N,) out

  // Workspace of the CPU kernel. A group is kBucket vectors of codes; lane j of a group is one bucket.
  float* packed;         // (groups, kBucket / 2, D, 2 lanes)
  float* half_norm;      // (groups, kBucket, lanes), +inf where there is no code
  float* group_norm;     // (groups,) greatest |e'| of the group
  float* code_norm;      // (K,) |e'|, rounded up
  const int64_t* order;  // (K,) packed position -> code, or null for the identity

  // Workspace of the CUDA kernel. A bucket is kCudaBucket consecutive codes.
  float* centered;     // (K, D) e'
  float* bucket_norm;  // (buckets,) greatest |e'| of the bucket
  float* bucket_min;   // (rows at a time, buckets) least s
  float* row_norm;     // (N,) |z'|, rounded up
  int64_t rows_at_a_time;
};

struct NearestCodeDoubleParams {
  const double* z;         // (N, D)
  const double* codebook;  // (K, D)
  int64_t num_rows, num_codes, dim;
  int64_t* ids;      // (N,) out
  double* distance;  // (N,) out
};

constexpr int64_t kBucket = 16;
constexpr int64_t kCudaBucket = 32;

// Norms from here on count as infinite: below it neither products nor sums of products overflow.
constexpr float kGreatestNorm = 1e18f;

#define PYRAMID_ERROR_FACTOR(dim) ((float)((double)((dim) + 12) * 1.05 * 5.9604644775390625e-8))
#define PYRAMID_ERROR_FLOOR(dim) ((float)((double)((dim) + 12) * 2.350988701644575e-38))

PYRAMID_PER_ISA(int64_t nearest_code_group_size())
PYRAMID_PER_ISA(void nearest_code_norms(const NearestCodeParams&, int64_t begin, int64_t end))  // of codes
PYRAMID_PER_ISA(void nearest_code_pack(const NearestCodeParams&, int64_t begin, int64_t end))   // of groups
PYRAMID_PER_ISA(int64_t nearest_code_row_block())
PYRAMID_PER_ISA(bool nearest_code_rows(const NearestCodeParams&, int64_t begin, int64_t end))  // false: no memory
PYRAMID_PER_ISA(void nearest_code_rows_double(const NearestCodeDoubleParams&, int64_t begin, int64_t end))

#if PYRAMID_WITH_CUDA
cudaError_t nearest_code_cuda(const NearestCodeParams&, cudaStream_t stream);
cudaError_t nearest_code_double_cuda(const NearestCodeDoubleParams&, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
