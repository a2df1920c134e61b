// Arg-min over a codebook without the N x K matrix: what both devices share.
//
// Idea. With any centre c, z' = z - c and e' = e - c, the order of the codes by |z - e|^2 is the order by
//     s_k = |e'_k|^2 / 2 - z' . e'_k.
// A first pass computes s_k in low precision with a proven bound E of its error: the true nearest code, and every code that
// ties with it, has s_k - E <= U, U = least (s_k + E). The few codes that this admits are ranked by sum (z - e)^2 in
// double, ties to the lowest id. A bound that is infinite or NaN admits its code.
//
// CPU: every vector is rounded to small integers times a scale of its own (quantize.h). With a, b the rounded z', e',
//     |z' . e' - a . b| <= |z' - a| |e'| + |a| |e' - b|        (Cauchy-Schwarz)
// and the norms on the right are measured. a . b is exact, in integers.
//
// CUDA: every vector is rounded to bfloat16, and of each *bucket* of codes only the least s is kept, so the bound is that
// of the greatest norms of the bucket; an admitted bucket is ranked whole. a . b is summed in float32 by the tensor cores:
// of the 16 products and the sum so far that an instruction adds, each is cut off below the 24 bits of the greatest of
// them, which is at most |a| |b|, and so is the sum (Fasi, Higham, Mikaitis and Pranesh 2021). With u = 2^-24 that is
// 18 * 2 u |a| |b| for 16 coordinates. The subtraction of c, |e'|^2 / 2 and the subtraction of the product round too:
//     E = |z' - a| |e'| + |a| |e' - b| + error_factor(D) (|z'| |e'| + |e'|^2 / 2) + a term for underflow.
#pragma once

#include <cstdint>

#include "cuda_types.h"
#include "isa.h"
#include "types.h"

namespace pyramid::kernels {

// The CPU takes a panel of rows and a slab of codes at a time; the workspace is that of one panel and one slab. The codes
// of a slab are cut into parts: a row has a list of candidates for each part, so that threads can share few rows.
template <class T>
struct NearestCodeCpuParams {
  const T* z;         // (N, D)
  const T* codebook;  // (K, D)
  int64_t num_codes;  // K, below 2^31
  int64_t dim;        // D
  int64_t* ids;       // (N,) out
  float* distance;    // (N,) out

  float* center;      // (D,)
  char* row_blocks;   // (blocks of the panel, row_block_bytes)
  char* candidates;   // (parts, blocks of the panel, candidates_bytes)
  char* tiles;        // (tiles of the slab, tile_bytes)
  int64_t num_parts;
  int64_t first_row, num_rows;  // of the panel
  int64_t first_code;           // of the slab
};

struct NearestCodeSizes {
  int64_t block_rows, tile_codes;
  int64_t row_block_bytes, candidates_bytes, tile_bytes;  // all multiples of 64
};

// Every distance in double: for float64, and for so few rows that it isn't worth while to prepare the codes.
template <class T>
struct NearestCodeExactParams {
  const T* z;         // (N, D)
  const T* codebook;  // (K, D)
  int64_t num_rows, num_codes, dim;
  int64_t num_parts;       // of the codes
  double* part_distance;   // (parts, N)
  int64_t* part_id;        // (parts, N)
  int64_t* ids;            // (N,) out
  compute_t<T>* distance;  // (N,) out
};

template <class T>
struct NearestCodeCudaParams {
  const T* z;              // (N, D)
  const T* codebook;       // (K, D)
  const float* center;     // (D,) anything; the mean of the codes makes the bound tight
  int64_t num_rows;        // N
  int64_t num_codes;       // K
  int64_t dim;             // D
  int64_t* ids;            // (N,) out
  compute_t<T>* distance;  // (N,) out
  char* workspace;         // nearest_code_cuda_bytes, aligned to 256; double has none, and no center
};

// Norms from here on count as infinite: below it neither products nor sums of products overflow.
constexpr float kGreatestNorm = 1e18f;

// Ranges are of blocks of rows, tiles of codes, rows. In this order: center; then for each panel quantize_rows, for each
// slab quantize_codes and scan, and at last choose.
PYRAMID_PER_ISA(NearestCodeSizes nearest_code_sizes(int64_t dim))
PYRAMID_PER_ISA(template <class T> void nearest_code_center(const NearestCodeCpuParams<T>&))
PYRAMID_PER_ISA(template <class T> void nearest_code_quantize_rows(const NearestCodeCpuParams<T>&, int64_t begin,
                                                                   int64_t end))
PYRAMID_PER_ISA(template <class T> void nearest_code_quantize_codes(const NearestCodeCpuParams<T>&, int64_t begin,
                                                                    int64_t end))
PYRAMID_PER_ISA(template <class T> void nearest_code_scan(const NearestCodeCpuParams<T>&, int64_t part, int64_t begin,
                                                          int64_t end, int64_t tile_begin, int64_t tile_end))
PYRAMID_PER_ISA(template <class T> void nearest_code_choose(const NearestCodeCpuParams<T>&, int64_t begin, int64_t end))

// Rows [begin, end) against one part of the codes; then the best of the parts.
PYRAMID_PER_ISA(template <class T> void nearest_code_exact(const NearestCodeExactParams<T>&, int64_t part, int64_t begin,
                                                           int64_t end))
PYRAMID_PER_ISA(template <class T> void nearest_code_exact_choose(const NearestCodeExactParams<T>&))

#if PYRAMID_WITH_CUDA
int64_t nearest_code_cuda_bytes(int64_t num_rows, int64_t num_codes, int64_t dim);
template <class T>
cudaError_t nearest_code_cuda(const NearestCodeCudaParams<T>&, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
