// Attention in which query i sees the keys [a_i, b_i) and [c_i, d_i): what both devices share.
//
//   score_ij = scale * q_i . k_j         out_i = sum_j softmax_j(score_ij) v_j         over the keys that i sees
//   logsumexp_i = log sum_j exp(score_ij), -inf (and out_i = 0) where it sees none
//
// The keys are read block by block with a running maximum and sum (online softmax: 1805.02867, FlashAttention:
// 2205.14135); no S x S matrix is formed, and a block of keys that no query of a block of queries sees is skipped. The
// backward forms the probabilities again from logsumexp (2205.14135, section 3.1):
//   delta_i = sum_j p_ij grad_out_i . v_j      grad_score_ij = p_ij (grad_out_i . v_j - delta_i)
// where delta_i is grad_out_i . out_i as well, if out is not rounded to 16 bits.
//
// H heads of queries share Hkv heads of keys: query head h reads key head h / (H / Hkv).
#pragma once

#include <cstdint>

#include "cuda_types.h"
#include "isa.h"
#include "types.h"

namespace pyramid::kernels {

// The last axis is contiguous; the other three have strides, in elements.
struct HeadStrides {
  int64_t batch, head, row;
};

struct IntervalAttentionShape {
  int64_t batch, heads, kv_heads;
  int64_t num_queries, num_keys;  // S, Skv
  int64_t dim, value_dim;         // D, Dv
  double scale;
  HeadStrides q, k, v;
  int64_t interval_batch;  // 4 S, or 0 where all of the batch share one set
};

// Row: the type of a number a query. The CPU keeps logsumexp in double: in float one of 64 is rounded by up to 4e-6, by
// which forward's probabilities and those of backward would differ.
template <class T, class Row = compute_t<T>>
struct IntervalAttentionParams {
  IntervalAttentionShape shape;
  const T* q;                // (B, H, S, D) strided
  const T* k;                // (B, Hkv, Skv, D) strided
  const T* v;                // (B, Hkv, Skv, Dv) strided
  const int32_t* intervals;  // (B or 1, S, 4) a, b, c, d; 0 <= a <= b <= Skv, 0 <= c <= d <= Skv; they may overlap
  T* out;                    // (B, H, S, Dv) contiguous, out
  Row* logsumexp;            // (B, H, S) out
};

template <class T, class Row = compute_t<T>>
struct IntervalAttentionBackwardParams {
  IntervalAttentionShape shape;
  const T* q;
  const T* k;
  const T* v;
  const int32_t* intervals;
  const T* out;          // (B, H, S, Dv) contiguous
  const Row* logsumexp;  // (B, H, S)
  const T* grad_out;     // (B, H, S, Dv) contiguous
  compute_t<T>* delta;   // (B, H, S) workspace
  T* grad_q;             // (B, H, S, D) contiguous, out
  T* grad_k;             // (B, Hkv, Skv, D) contiguous, out
  T* grad_v;             // (B, Hkv, Skv, Dv) contiguous, out
};

// A task is a number of queries of one head of keys (backward: all of them). Tasks write to different places.
PYRAMID_PER_ISA(int64_t interval_attention_num_tasks(const IntervalAttentionShape&))
PYRAMID_PER_ISA(template <class T> bool interval_attention_tasks(const IntervalAttentionParams<T, double>&,
                                                                 int64_t begin, int64_t end))  // false: no memory
PYRAMID_PER_ISA(int64_t interval_attention_backward_num_tasks(const IntervalAttentionShape&))
PYRAMID_PER_ISA(template <class T> bool interval_attention_backward_tasks(
    const IntervalAttentionBackwardParams<T, double>&, int64_t begin, int64_t end))

#if PYRAMID_WITH_CUDA
constexpr int kHullRows = 64;

// The intervals as they came -> those that the kernels take; bad ones are a device-side assertion.
template <class Integer>
struct IntervalsCudaParams {
  const Integer* given;  // (num_sets, S, 4)
  int64_t num_sets, num_queries, num_keys;
  int32_t* intervals;  // (num_sets, S, 4) out
  int32_t* hulls;      // (num_sets, ceil(S / kHullRows), 4) out: the hull of each kind in a tile of queries; or null
};

template <class Integer>
cudaError_t read_intervals_cuda(const IntervalsCudaParams<Integer>&, cudaStream_t stream);

// With few queries (decoding) the keys are cut into slices of a fixed size, one a block, and the slices' results are put
// together by a second kernel. The cuts depend on S, Skv and H / Hkv only, so no result depends on the batch.
int64_t interval_attention_slices(const IntervalAttentionShape&);  // 1: the workspace is not used

template <class T>
struct IntervalAttentionSplitParams {
  IntervalAttentionParams<T> attention;
  compute_t<T>* partial_out;        // (slices, B, H, S, Dv) workspace
  compute_t<T>* partial_logsumexp;  // (slices, B, H, S) workspace
};

template <class T>
cudaError_t interval_attention_cuda(const IntervalAttentionSplitParams<T>&, cudaStream_t stream);

template <class T>
struct IntervalAttentionCudaBackwardParams {
  IntervalAttentionBackwardParams<T> attention;
  const int32_t* hulls;  // (B or 1, ceil(S / kHullRows), 4), from read_intervals_cuda
};

template <class T>
cudaError_t interval_attention_backward_cuda(const IntervalAttentionCudaBackwardParams<T>&, cudaStream_t stream);
#endif

}  // namespace pyramid::kernels
