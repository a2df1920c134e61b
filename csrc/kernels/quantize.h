// A vector as small integers times one scale, with the norm of what that loses: the first pass of nearest_code.
//
// Integers ("digits") are packed in 32-bit words; one `dot` multiplies a word of a row by a word of each of kLanes codes.
// With VNNI a word is four 8-bit digits, elsewhere two 16-bit ones.
#pragma once

#include "simd.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace pyramid::kernels {
namespace PYRAMID_ISA {

#if defined(__AVX512VNNI__)
typedef int8_t Digit;
constexpr float kGreatestDigit = 127;
constexpr int32_t kCodeOffset = 128;  // VNNI multiplies signed bytes by unsigned ones: codes are stored as digit + 128
constexpr uint32_t kOffsetWord = 0x80808080;
#else
typedef int16_t Digit;
constexpr float kGreatestDigit = 32000;
constexpr int32_t kCodeOffset = 0;
constexpr uint32_t kOffsetWord = 0;
#endif
constexpr int kDigits = 4 / (int)sizeof(Digit);  // of a word

PYRAMID_INLINE IVec splat_int(int32_t value) { return IVec{} + value; }

// sum + row . (code + kCodeOffset) in every lane, modulo 2^32.
PYRAMID_INLINE IVec dot(IVec sum, IVec row, IVec code) {
#if defined(__AVX512VNNI__)
  return (IVec)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)code, (__m512i)row);
#elif defined(__AVX2__)
  return sum + (IVec)_mm256_madd_epi16((__m256i)row, (__m256i)code);
#elif defined(__SSE2__)
  return sum + (IVec)_mm_madd_epi16((__m128i)row, (__m128i)code);
#else
  return sum + (row << 16 >> 16) * (code << 16 >> 16) + (row >> 16) * (code >> 16);
#endif
}

constexpr int kChunk = 64;  // numbers at a time
constexpr int kVecs = kChunk / kLanes;

// x[0, count) - center[0, count), then zeros.
template <class T>
PYRAMID_INLINE void load_centered(const T* x, const float* center, int64_t count, Vec (&out)[kVecs]) {
  if (count >= kChunk) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) out[v] = load_wide(x + v * kLanes) - load<Vec>(center + v * kLanes);
  } else {
    alignas(64) float values[kChunk] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = widen(x[i]) - center[i];
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) out[v] = load<Vec>(values + v * kLanes);
  }
}

// sum of squares: kVecs numbers a lane in float, from there in double.
struct SquareSum {
  DoubleVec total = {};
  PYRAMID_INLINE void add(const Vec (&v)[kVecs]) {
    Vec sum = splat(0.0f);
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) sum = fma(v[j], v[j], sum);
    alignas(64) float lanes[kLanes];
    store(lanes, sum);
    total += load_double(lanes) + load_double(lanes + kLanes / 2);
  }
  double value() const {
    double sum = 0;
    for (int j = 0; j < kLanes / 2; ++j) sum += total[j];
    return sum;
  }
};

struct Quantized {
  float scale;     // the vector is about scale * digits; 0 where there is nothing to scale
  float square;    // |x|^2, to a relative error of 2^-18
  float norm;      // |x|, an upper bound; infinite from kGreatestNorm on, and for NaN
  float residual;  // |x - scale * digits|, an upper bound
  uint32_t sum;    // of the digits, modulo 2^32
};

// Rounds x - center to digits; word w goes to words[w * stride]. For any two vectors of digits |a| |b| < 2^31, whatever D
// is: no product a . b overflows.
//
// What float32 adds, with u = 2^-24: x - center rounds once (u of the coordinate), its quotient by the scale twice (2 u);
// SquareSum is off by less than 18 u of itself, and squares that underflow by 2^-126 each. The bounds allow for more.
template <class T>
Quantized quantize(const T* x, const float* center, int64_t dim, int32_t* words, int64_t stride, uint32_t offset_word) {
  Vec v[kVecs], most = splat(0.0f);
  SquareSum squares;
  for (int64_t i = 0; i < dim; i += kChunk) {
    load_centered(x + i, center + i, dim - i, v);
    squares.add(v);
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) most = max(abs(v[j]), most);
  }
  const double square = squares.value() + (double)dim * 1.2e-38, norm = __builtin_sqrt(square) * (1 + 4e-6);
  const double greatest = lane_max(most);
  Quantized result{0, (float)square, (float)norm, (float)norm, 0};
  if (!(norm < kGreatestNorm)) result.norm = result.residual = __builtin_inff();  // NaN too
  if (!(norm < kGreatestNorm) || greatest < 1e-30) {
    for (int64_t w = 0; w < ceil_div(dim, (int64_t)kDigits); ++w) words[w * stride] = (int32_t)offset_word;
    return result;
  }
  double room = 46000 - 0.5 * __builtin_sqrt((double)dim);  // for |digits| before they are rounded: 46340^2 < 2^31
  room = room > 1 ? room : 1;
  result.scale = (float)(norm / room > greatest / kGreatestDigit ? norm / room : greatest / kGreatestDigit);
  const Vec inverse = splat(1 / result.scale), magic = splat(12582912.0f);  // adding 1.5 * 2^23 rounds to an integer
  SquareSum lost;
  IVec sum = {};
  for (int64_t i = 0; i < dim; i += kChunk) {
    load_centered(x + i, center + i, dim - i, v);
    alignas(64) Digit digits[kChunk];
#pragma GCC unroll 16
    for (int j = 0; j < kVecs; ++j) {
      const Vec shifted = fma(v[j], inverse, magic);
      const IVec rounded = (IVec)shifted - (IVec)magic;
      sum += rounded;
      v[j] = fma(v[j], inverse, magic - shifted);
      typedef Digit Digits __attribute__((vector_size(sizeof(Digit) * kLanes)));
      store(digits + j * kLanes, __builtin_convertvector(rounded, Digits));
    }
    lost.add(v);
    const int64_t count = ceil_div(dim - i < kChunk ? dim - i : kChunk, (int64_t)kDigits);
    for (int64_t w = 0; w < count; ++w, words += stride) *words = (int32_t)(load<uint32_t>(digits + w * kDigits) ^ offset_word);
  }
  result.residual = (float)(__builtin_sqrt(lost.value()) * result.scale * (1 + 4e-6) + norm * 4e-7);
  for (int j = 0; j < kLanes; ++j) result.sum += (uint32_t)sum[j];
  return result;
}

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
