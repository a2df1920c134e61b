// bit_quantize on the CPU. A block of whole rows (at most kBlock numbers) is taken as one flat run, so that vectors are
// full whatever d is; rows appear only when the block's bits are cut into ids and its terms are summed.
// Memory: one read of x, one write of codes; the block's scratch stays in L1.
#include "bit_quantize.h"

#include <cmath>

#include "simd.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {
namespace {

constexpr int64_t kBlock = 2048;
static_assert(kBlock % 64 == 0 && kBlock >= kMaxBits, "a block holds a row and fills its words");

// H_b and its derivative by y, up to the sign of y, at a = |y|.
struct Entropy {
  Vec value, slope;
};

PYRAMID_INLINE Entropy binary_entropy(Vec a) {
  const Vec one = splat(1.0f);
  a = min(splat(kGreatestLogit<float>), a);  // in this order NaN stays
  const Vec t = exp(-a);
  // log(1 + t) = 2 atanh(s), s = t / (2 + t) <= 1/3; one division serves both quotients.
  const Vec u = one + t, w = u + one, inverse = one / (u * w);
  const Vec s = t * u * inverse, q = t * w * inverse, s2 = s * s;
  Vec series = splat(1.0f / 15);
  series = fma(series, s2, splat(1.0f / 13));
  series = fma(series, s2, splat(1.0f / 11));
  series = fma(series, s2, splat(1.0f / 9));
  series = fma(series, s2, splat(1.0f / 7));
  series = fma(series, s2, splat(1.0f / 5));
  series = fma(series, s2, splat(1.0f / 3));
  const Vec log1p = fma(s2 * s, series, s) * splat(2.0f);
  return {fma(a, q, log1p), a * q / u};
}

template <class T>
PYRAMID_INLINE T one_of(bool positive) {
  return narrow<T>(positive ? 1.0f : -1.0f);
}

// Rows [begin, end) whose numbers fit one block.
template <class T>
void block_forward(const BitQuantizeParams<T>& p, int64_t begin, int64_t end) {
  const int64_t d = p.num_bits, count = (end - begin) * d, padded = ceil_div(count, 64) * 64;
  const T* x = p.x + begin * d;
  T* codes = p.codes + begin * d;
  alignas(64) float value[kBlock], entropy[kBlock], commitment[kBlock];
  alignas(64) uint64_t words[kBlock / 64 + 1];

  for (int64_t i = 0; i < count; ++i) value[i] = widen(x[i]);
  for (int64_t i = count; i < padded; ++i) value[i] = 0;
  const Vec zero = splat(0.0f), one = splat(1.0f), scale = splat((float)(4 / p.temperature));
  for (int64_t i = 0; i < padded; i += 64) {
    uint64_t word = 0;
    for (int j = 0; j < 64; j += kLanes) {
      const Vec v = load<Vec>(value + i + j), magnitude = abs(v), away = magnitude - one;
      word |= (uint64_t)greater_mask(v, zero) << j;
      store(entropy + i + j, binary_entropy(magnitude * scale).value);
      store(commitment + i + j, away * away);  // (x - code)^2
    }
    words[i / 64] = word;
  }
  words[padded / 64] = 0;
  for (int64_t i = 0; i < count; ++i) codes[i] = one_of<T>(value[i] > 0);

  const uint64_t mask = (1ull << d) - 1;
  const float inverse = 1.0f / (float)d;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = (row - begin) * d, shift = at & 63;
    uint64_t bits = words[at / 64] >> shift;
    if (shift) bits |= words[at / 64 + 1] << (64 - shift);
    p.ids[row] = (int64_t)(bits & mask);
    float entropy_sum = 0, commitment_sum = 0;
    for (int64_t i = at; i < at + d; ++i) {
      entropy_sum += entropy[i];
      commitment_sum += commitment[i];
    }
    p.entropy[row] = entropy_sum;
    p.commitment[row] = commitment_sum * inverse;
  }
}

template <class T>
void block_backward(const BitQuantizeBackwardParams<T>& p, int64_t begin, int64_t end) {
  const int64_t d = p.num_bits, count = (end - begin) * d, padded = ceil_div(count, (int64_t)kLanes) * kLanes;
  alignas(64) float value[kBlock], by_entropy[kBlock], by_commitment[kBlock];
  for (int64_t i = 0; i < count; ++i) value[i] = widen(p.x[begin * d + i]);
  for (int64_t i = count; i < padded; ++i) value[i] = 0;
  for (int64_t row = begin; row < end; ++row) {
    const float e = p.grad_entropy ? p.grad_entropy[row] : 0;
    const float c = p.grad_commitment ? p.grad_commitment[row] * (2.0f / (float)d) : 0;
    for (int64_t i = (row - begin) * d; i < (row - begin + 1) * d; ++i) {
      by_entropy[i] = e;
      by_commitment[i] = c;
    }
  }
  for (int64_t i = count; i < padded; ++i) by_entropy[i] = by_commitment[i] = 0;
  const Vec one = splat(1.0f), scale = splat((float)(4 / p.temperature));
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Vec v = load<Vec>(value + i);
    // x = 0 counts as negative: x - code is 1 there.
    const Vec minus_code = (Vec)((IVec)one | ((IVec)(v > splat(0.0f)) & (int32_t)0x80000000));
    const Vec away = v + minus_code;
    Vec grad = splat(0.0f);  // a term without its gradient is left out: 0 * infinity is no gradient
    if (p.grad_entropy) {
      const Vec slope = copy_sign(binary_entropy(abs(v) * scale).slope, (Vec)((IVec)v ^ (int32_t)0x80000000));
      grad = load<Vec>(by_entropy + i) * scale * slope;
    }
    if (p.grad_commitment) grad = fma(load<Vec>(by_commitment + i), away, grad);
    store(value + i, grad);
  }
  T* grad_x = p.grad_x + begin * d;
  if (p.grad_codes) {
    const T* straight_through = p.grad_codes + begin * d;
    for (int64_t i = 0; i < count; ++i) grad_x[i] = narrow<T>(value[i] + widen(straight_through[i]));
  } else {
    for (int64_t i = 0; i < count; ++i) grad_x[i] = narrow<T>(value[i]);
  }
}

// double is there for gradcheck: plain loops.
void block_forward(const BitQuantizeParams<double>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    double entropy = 0, commitment = 0;
    uint64_t id = 0;
    for (int64_t i = 0; i < p.num_bits; ++i) {
      const double x = p.x[row * p.num_bits + i], code = x > 0 ? 1 : -1;
      double a = __builtin_fabs(x) * (4 / p.temperature);
      if (a > kGreatestLogit<double>) a = kGreatestLogit<double>;
      const double t = ::exp(-a);
      entropy += ::log1p(t) + a * t / (1 + t);
      commitment += (x - code) * (x - code);
      id |= (uint64_t)(x > 0) << i;
      p.codes[row * p.num_bits + i] = code;
    }
    p.ids[row] = (int64_t)id;
    p.entropy[row] = entropy;
    p.commitment[row] = commitment / (double)p.num_bits;
  }
}

void block_backward(const BitQuantizeBackwardParams<double>& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const double e = p.grad_entropy ? p.grad_entropy[row] : 0;
    const double c = p.grad_commitment ? p.grad_commitment[row] * 2 / (double)p.num_bits : 0;
    for (int64_t i = row * p.num_bits; i < (row + 1) * p.num_bits; ++i) {
      const double x = p.x[i], code = x > 0 ? 1 : -1, scale = 4 / p.temperature;
      double y = x * scale;
      if (y > kGreatestLogit<double>) y = kGreatestLogit<double>;
      if (y < -kGreatestLogit<double>) y = -kGreatestLogit<double>;
      const double t = ::exp(-__builtin_fabs(y));
      p.grad_x[i] = p.grad_codes ? p.grad_codes[i] : 0;
      if (p.grad_entropy) p.grad_x[i] -= e * scale * y * t / ((1 + t) * (1 + t));
      if (p.grad_commitment) p.grad_x[i] += c * (x - code);  // 0 * infinity is no gradient
    }
  }
}

}  // namespace

template <class T>
void bit_quantize_rows(const BitQuantizeParams<T>& p, int64_t begin, int64_t end) {
  const int64_t step = kBlock / p.num_bits;
  for (; begin < end; begin += step) block_forward(p, begin, begin + step < end ? begin + step : end);
}

template <class T>
void bit_quantize_backward_rows(const BitQuantizeBackwardParams<T>& p, int64_t begin, int64_t end) {
  const int64_t step = kBlock / p.num_bits;
  for (; begin < end; begin += step) block_backward(p, begin, begin + step < end ? begin + step : end);
}

#define PYRAMID_INSTANTIATE(T)                                                           \
  template void bit_quantize_rows<T>(const BitQuantizeParams<T>&, int64_t, int64_t);      \
  template void bit_quantize_backward_rows<T>(const BitQuantizeBackwardParams<T>&, int64_t, int64_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
