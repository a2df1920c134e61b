// The sum, over rows, of the joint distribution of d independent bits, over all 2^d codes; and its backward.
//
//   p_ni = sigmoid(4 x_ni / temperature): bit i of row n is set
//   A_na = prod_i p_ni or 1 - p_ni, by bit i of a: the probabilities of the low d / 2 bits (rounded down)
//   B_nb: those of the other bits
//   joint = A^T B, (2^low, 2^high): the code a + b 2^low has joint[a, b]
//
// A matrix product whose factors are made as they are needed: a factor of a run of codes is that of its high bits, one
// number, times the table of its low bits. What is stored whole is the probabilities (N x d) and small tables.
//
// Backward: H = B joint_grad^T and W = A joint_grad are the gradients of A and B. With u = H A, elementwise,
//   grad of logit i = (1 - p_i) sum of u over the codes with bit i - p_i sum of u over those without,
// so a tile of H is used where it is made and never written.
#pragma once

#include <cstdint>

#include "cuda_types.h"
#include "isa.h"
#include "types.h"

namespace pyramid::kernels {

constexpr int64_t kMostJointBits = 28;

struct JointShape {
  int64_t num_rows, num_bits;
  int64_t low_bits() const { return num_bits / 2; }
  int64_t high_bits() const { return num_bits - num_bits / 2; }
  int64_t low_codes() const { return int64_t{1} << low_bits(); }
  int64_t high_codes() const { return int64_t{1} << high_bits(); }
  // The CPU takes rows in vectors: zeros follow the last one.
  int64_t padded_rows() const { return ceil_div(num_rows, 32) * 32; }
};

template <class T>
struct JointProbabilitiesParams {
  JointShape shape;
  double temperature;
  const T* x;                  // (N, d)
  compute_t<T>* probabilities;  // (2, d, padded N): of a bit that isn't set, of one that is; out
};

// The blocks of the product that are shared out among threads.
constexpr int64_t block_of(int64_t codes, int64_t least) {
  return codes / 2 < least ? least : codes / 2 < 128 ? codes / 2 : 128;
}

template <class C>
struct JointBitSumParams {
  JointShape shape;
  const C* probabilities;  // (2, d, padded N)
  C* low_table;            // (padded N, 8) workspace: of the first bits of the low half
  C* high_table;           // (padded N, 32) workspace: of the first bits of the high half
  C* joint;                // (2^low, 2^high) out
  int64_t num_blocks() const {
    const int64_t low = shape.low_codes(), high = shape.high_codes();
    return ceil_div(low, block_of(low, 8)) * ceil_div(high, block_of(high, 32));
  }
};

template <class T>
struct JointBitSumBackwardParams {
  using C = compute_t<T>;
  JointShape shape;
  double temperature;
  const C* probabilities;  // (2, d, padded N)
  const C* grad;           // (2^low, 2^high)
  C* packed_low;           // (2^low padded to 8, 2^high) workspace: grad in panels of low codes
  C* packed_high;          // (2^high padded to 8, 2^low) workspace: grad in panels of high codes
  T* grad_x;               // (N, d) out
  int64_t padded_low() const { return ceil_div(shape.low_codes(), 8) * 8; }
  int64_t padded_high() const { return ceil_div(shape.high_codes(), 8) * 8; }
};

// In this order, each for all rows before the next. Forward: probabilities, tables, blocks.
PYRAMID_PER_ISA(template <class T> void joint_probabilities_rows(const JointProbabilitiesParams<T>&, int64_t begin,
                                                                 int64_t end))  // groups of 32 rows
PYRAMID_PER_ISA(template <class C> void joint_tables_rows(const JointBitSumParams<C>&, int64_t begin, int64_t end))
PYRAMID_PER_ISA(template <class C> void joint_bit_sum_blocks(const JointBitSumParams<C>&, int64_t begin, int64_t end))
// Backward: probabilities, panels (of 8 codes, those of packed_low first), then groups of 32 rows.
PYRAMID_PER_ISA(template <class T> void joint_panels(const JointBitSumBackwardParams<T>&, int64_t begin, int64_t end))
PYRAMID_PER_ISA(template <class T> void joint_bit_sum_backward_rows(const JointBitSumBackwardParams<T>&, int64_t begin,
                                                                    int64_t end))

#if PYRAMID_WITH_CUDA
// A block has a tile of kJointTile x kJointTile codes (forward), or of codes x rows (backward).
constexpr int64_t kJointTile = 128;
constexpr int64_t kJointSums = 15;  // with and without each of the 7 bits that vary in a tile, and in all

inline int64_t joint_tiles(int64_t codes) { return ceil_div(codes, kJointTile); }

// Into how many runs the rows are cut, so that small products fill the device too; by the shape alone.
inline int64_t joint_splits(const JointShape& shape) {
  const int64_t tiles = joint_tiles(shape.low_codes()) * joint_tiles(shape.high_codes());
  const int64_t wanted = ceil_div(int64_t{264}, tiles), most = ceil_div(shape.num_rows, kJointTile);
  return wanted < most ? wanted : most;
}

template <class C>
struct JointBitSumCudaParams {
  JointShape shape;
  const C* probabilities;  // (2, d, padded N)
  int64_t splits;
  C* partial;  // (splits, 2^low, 2^high) workspace, added up in order; unused for one split
  C* joint;    // (2^low, 2^high) out
};

template <class T>
struct JointBitSumBackwardCudaParams {
  using C = compute_t<T>;
  JointShape shape;
  double temperature;
  const C* probabilities;  // (2, d, padded N)
  const C* grad;           // (2^low, 2^high)
  C* partial;              // (tiles of low, then of high codes; kJointSums, padded N) workspace
  T* grad_x;               // (N, d) out
};

template <class T>
cudaError_t joint_probabilities_cuda(const JointProbabilitiesParams<T>&, cudaStream_t stream);
template <class C>
cudaError_t joint_bit_sum_cuda(const JointBitSumCudaParams<C>&, cudaStream_t stream);
template <class T>
cudaError_t joint_bit_sum_backward_cuda(const JointBitSumBackwardCudaParams<T>&, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
