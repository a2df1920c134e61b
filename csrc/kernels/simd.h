// Vectors of float in the width of the instruction set that this file is compiled for (see isa.h).
// Arithmetic is by the compilers' vector operators; only what they lack is a function here.
#pragma once

#include <cstdint>

#include "types.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define PYRAMID_INLINE inline __attribute__((always_inline))

namespace pyramid::kernels {
namespace PYRAMID_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UVec __attribute__((vector_size(4 * kLanes)));
typedef float HalfVec __attribute__((vector_size(2 * kLanes)));   // half as many floats ...
typedef double DoubleVec __attribute__((vector_size(4 * kLanes)));  // ... widen to one vector

template <class V, class T>
PYRAMID_INLINE V load(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V, class T>
PYRAMID_INLINE void store(T* p, V v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

PYRAMID_INLINE Vec splat(float value) {
#if defined(__AVX512F__)
  return (Vec)_mm512_set1_ps(value);
#elif defined(__AVX2__)
  return (Vec)_mm256_set1_ps(value);
#else
  return Vec{value, value, value, value};
#endif
}

// a * b + c; one rounding where the processor has it.
PYRAMID_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// The same of one number: rounded once where fma of vectors is.
PYRAMID_INLINE float fma(float a, float b, float c) {
#if defined(__AVX512F__) || defined(__AVX2__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// a * b, rounded before anything is added to it, which a compiler would fuse.
PYRAMID_INLINE Vec rounded_product(Vec a, Vec b) {
  Vec product = a * b;
#if defined(__AVX512F__)
  __asm__("" : "+v"(product));
#elif defined(__SSE2__)
  __asm__("" : "+x"(product));
#elif defined(__aarch64__)
  __asm__("" : "+w"(product));
#else
  __asm__("" : "+m"(product));
#endif
  return product;
}

// a < b ? a : b in every lane: where one is NaN, the second.
PYRAMID_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// a > b ? a : b in every lane: where one is NaN, the second.
PYRAMID_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

// mask ? a : b; every lane of the mask is all ones or all zeros, as comparisons give it.
PYRAMID_INLINE Vec select(IVec mask, Vec a, Vec b) { return (Vec)(((IVec)a & mask) | ((IVec)b & ~mask)); }

// Lane l is lane from[l] of a and b, one behind the other; `from` is a constant.
PYRAMID_INLINE Vec shuffle(Vec a, Vec b, IVec from) {
#if defined(__clang__)  // which makes shuffles of such a loop
  Vec result;
  for (int l = 0; l < kLanes; ++l) result[l] = from[l] < kLanes ? a[from[l]] : b[from[l] - kLanes];
  return result;
#else
  return __builtin_shuffle(a, b, from);
#endif
}

// Bit j is set where a[j] > b[j]: never for NaN.
PYRAMID_INLINE uint32_t greater_mask(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (uint32_t)_mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
#else
  uint32_t mask = 0;
  for (int j = 0; j < kLanes; ++j) mask |= (uint32_t)(a[j] > b[j]) << j;
  return mask;
#endif
}

PYRAMID_INLINE Vec abs(Vec a) { return (Vec)((IVec)a & 0x7fffffff); }

PYRAMID_INLINE Vec copy_sign(Vec magnitude, Vec sign) {
  return (Vec)(((IVec)magnitude & 0x7fffffff) | ((IVec)sign & (int32_t)0x80000000));
}

PYRAMID_INLINE float lane_min(Vec a) {
  float least = a[0];
  for (int j = 1; j < kLanes; ++j) least = a[j] < least ? a[j] : least;
  return least;
}

PYRAMID_INLINE float lane_max(Vec a) {
  float greatest = a[0];
  for (int j = 1; j < kLanes; ++j) greatest = a[j] > greatest ? a[j] : greatest;
  return greatest;
}

// exp(x) for -87 <= x <= 88, to about one unit in the last place; NaN stays NaN. Beyond, any number: lanes that stand for
// nothing come here too.
PYRAMID_INLINE Vec exp(Vec x) {
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = fma(x, splat(1.44269504f), magic);
  const Vec n = shifted - magic;
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + splat(1.0f);
  return (Vec)((UVec)p + (((UVec)shifted - (UVec)magic) << 23));
}

PYRAMID_INLINE double widen(double value) { return value; }
PYRAMID_INLINE float widen(float value) { return value; }
PYRAMID_INLINE float widen(BFloat16 value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}
PYRAMID_INLINE float widen(Half value) {
#if defined(__F16C__)
  return _cvtsh_ss(value.bits);
#else
  const uint32_t sign = (uint32_t)(value.bits & 0x8000) << 16, magnitude = value.bits & 0x7fff;
  uint32_t bits;
  float result;
  if (magnitude >= 0x7c00) {  // infinity and NaN
    bits = sign | 0x7f800000 | (magnitude << 13);
  } else if (magnitude >= 0x0400) {
    bits = sign | ((magnitude << 13) + 0x38000000);
  } else {  // zero and subnormal: an integer times 2^-24
    result = (float)magnitude * 5.9604644775390625e-8f;
    __builtin_memcpy(&bits, &result, 4);
    bits |= sign;
  }
  __builtin_memcpy(&result, &bits, 4);
  return result;
#endif
}

// One vector of numbers, widened.
PYRAMID_INLINE Vec load_wide(const float* p) { return load<Vec>(p); }
PYRAMID_INLINE Vec load_wide(const BFloat16* p) {
  typedef uint16_t Bits __attribute__((vector_size(2 * kLanes)));
  return (Vec)(__builtin_convertvector(load<Bits>(p), IVec) << 16);
}
PYRAMID_INLINE Vec load_wide(const Half* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_cvtph_ps(load<__m256i>(p));
#elif defined(__F16C__)
  return (Vec)_mm256_cvtph_ps(load<__m128i>(p));
#else
  Vec wide;
  for (int j = 0; j < kLanes; ++j) wide[j] = widen(p[j]);
  return wide;
#endif
}

// Half a vector of numbers, as double.
PYRAMID_INLINE DoubleVec load_double(const double* p) { return load<DoubleVec>(p); }
PYRAMID_INLINE DoubleVec load_double(const float* p) {
#if defined(__AVX512F__)
  return (DoubleVec)_mm512_cvtps_pd(load<__m256>(p));
#elif defined(__AVX2__)
  return (DoubleVec)_mm256_cvtps_pd(load<__m128>(p));
#else
  return __builtin_convertvector(load<HalfVec>(p), DoubleVec);
#endif
}
template <class T>
PYRAMID_INLINE DoubleVec load_double(const T* p) {
  alignas(64) float wide[kLanes / 2];
#pragma GCC unroll 8
  for (int j = 0; j < kLanes / 2; ++j) wide[j] = widen(p[j]);
  return load_double(wide);
}

// Round to nearest, ties to even.
template <class T>
PYRAMID_INLINE T narrow(float value);
template <>
PYRAMID_INLINE float narrow<float>(float value) {
  return value;
}
template <>
PYRAMID_INLINE BFloat16 narrow<BFloat16>(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {(uint16_t)((bits >> 16) | 0x0040)};
  return {(uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
PYRAMID_INLINE Half narrow<Half>(float value) {
#if defined(__F16C__)
  return {(uint16_t)_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)};
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  const uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return {(uint16_t)(sign | 0x7e00)};
  if (bits >= 0x477ff000) return {(uint16_t)(sign | 0x7c00)};  // 65520 and more round to infinity
  if (bits < 0x38800000) {  // subnormal: let an addition round to a multiple of 2^-24
    float magnitude;
    __builtin_memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    __builtin_memcpy(&bits, &magnitude, 4);
    return {(uint16_t)(sign | (bits - 0x3f000000))};
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return {(uint16_t)(sign | ((bits - 0x38000000) >> 13))};
#endif
}

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
