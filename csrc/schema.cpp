// The only place where an operator's schema is written. Fake and autograd registrations are in Python, beside the
// public function of each op (pyramid/ops/<op>.py).
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pyramid, m) {
  // z (..., D), codebook (K, D) -> distance (...) float32 (float64 for float64), ids (...) int64
  // (A differentiable output comes first: opcheck adds the outputs up, in the dtype of the first.)
  m.def("nearest_code(Tensor z, Tensor codebook) -> (Tensor distance, Tensor ids)");

  // x (..., d) -> codes (..., d), ids (...) int64, entropy (...), commitment (...)
  m.def("bit_quantize(Tensor x, float temperature) -> (Tensor codes, Tensor ids, Tensor entropy, Tensor commitment)");

  // The gradient of x (..., d) from those of codes, entropy and commitment; an absent one counts as zero.
  m.def(
      "bit_quantize_backward(Tensor x, float temperature, Tensor? grad_codes, Tensor? grad_entropy, "
      "Tensor? grad_commitment) -> Tensor grad_x");

  // q (B, H, S, D), k (B, Hkv, Skv, D), v (B, Hkv, Skv, Dv), intervals (B or 1, S, 4) int32 or int64 ->
  // out (B, H, S, Dv), logsumexp (B, H, S), float64 on the CPU, float32 on CUDA (float64 for float64), -inf where a query sees
  // nothing
  m.def(
      "interval_attention(Tensor q, Tensor k, Tensor v, Tensor intervals, float scale) -> "
      "(Tensor out, Tensor logsumexp)");
  m.def(
      "interval_attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor intervals, Tensor out, "
      "Tensor logsumexp, float scale) -> (Tensor grad_q, Tensor grad_k, Tensor grad_v)");

  // z (..., D), codebook (K, D) -> logsumexp (...), pull (..., D) = the codes' mean by softmax(-|z - e|^2 / tau) less z,
  // both float32 (float64 for float64); the backward: that of the codebook alone
  m.def("code_logsumexp(Tensor z, Tensor codebook, float tau) -> (Tensor logsumexp, Tensor pull)");
  m.def(
      "code_logsumexp_backward(Tensor grad, Tensor z, Tensor codebook, Tensor logsumexp, float tau) -> "
      "Tensor grad_codebook");

  // x (B, C, t, h, w) -> (B, C, *size); channels last where the channels of x are adjacent, else contiguous
  m.def("level_resample(Tensor x, int[] size) -> Tensor");
  // The gradient of x (B, C, *size) from grad (B, C, t, h, w); its memory follows that of grad in the same way.
  m.def("level_resample_backward(Tensor grad, int[] size) -> Tensor grad_x");

  // codes: levels (B, C, t, h, w), coarse first -> (B, C, *size); channels last where those of the last level are
  m.def("pyramid_sum(Tensor[] codes, int[] size) -> Tensor");
  // The gradient of every level from grad (B, C, t, h, w); grids: t, h, w of the levels in a row.
  m.def("pyramid_sum_backward(Tensor grad, int[] grids) -> Tensor[]");

  // x (N, d) -> (2^(d / 2), 2^(d - d / 2)): the sum over rows of the joint probabilities of all 2^d codes
  m.def("joint_bit_sum(Tensor x, float temperature) -> Tensor joint");
  // The gradient of x (N, d) from that of joint.
  m.def("joint_bit_sum_backward(Tensor grad, Tensor x, float temperature) -> Tensor grad_x");
}
