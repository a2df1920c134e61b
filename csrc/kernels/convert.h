// Vectors of floats to memory of any element type (from memory: load_wide of simd.h).
#pragma once

#include "simd.h"

namespace pyramid::kernels {
namespace PYRAMID_ISA {

typedef int16_t ShortVec __attribute__((vector_size(2 * kLanes)));

PYRAMID_INLINE void store_narrow(float* p, Vec v) { store(p, v); }
PYRAMID_INLINE void store_narrow(BFloat16* p, Vec v) {  // to nearest, ties to even; NaN stays NaN
  const IVec bits = (IVec)v, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16, quiet = (bits >> 16) | 0x40;
  store(p, __builtin_convertvector((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded, ShortVec));
}
PYRAMID_INLINE void store_narrow(Half* p, Vec v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
  for (int j = 0; j < kLanes; ++j) p[j] = narrow<Half>(v[j]);
#endif
}

// One number, in the type it is computed in.
PYRAMID_INLINE float load_one(const float* p) { return *p; }
PYRAMID_INLINE float load_one(const BFloat16* p) { return widen(*p); }
PYRAMID_INLINE float load_one(const Half* p) { return widen(*p); }
PYRAMID_INLINE double load_one(const double* p) { return *p; }

template <class T>
PYRAMID_INLINE void store_one(T* p, float value) {
  *p = narrow<T>(value);
}
PYRAMID_INLINE void store_one(double* p, double value) { *p = value; }

}  // namespace PYRAMID_ISA
}  // namespace pyramid::kernels
