// Numbers from and to memory of any element type, and up to 16 bytes of them at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "types.h"

namespace pyramid::kernels {

__device__ inline float load_one(const float* p) { return *p; }
__device__ inline double load_one(const double* p) { return *p; }
__device__ inline float load_one(const BFloat16* p) { return __bfloat162float(__ushort_as_bfloat16(p->bits)); }
__device__ inline float load_one(const Half* p) { return __half2float(__ushort_as_half(p->bits)); }

__device__ inline void store_one(float* p, float value) { *p = value; }
__device__ inline void store_one(double* p, double value) { *p = value; }
__device__ inline void store_one(BFloat16* p, float value) { p->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
__device__ inline void store_one(Half* p, float value) { p->bits = __half_as_ushort(__float2half_rn(value)); }

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

// V adjacent numbers; p lies on a multiple of their size.
template <int V, class T>
__device__ void load_pack(const T* p, compute_t<T> (&wide)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(p);
#pragma unroll
  for (int v = 0; v < V; ++v) wide[v] = load_one(pack.values + v);
}

template <int V, class T>
__device__ void store_pack(T* p, const compute_t<T> (&wide)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) store_one(pack.values + v, wide[v]);
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}

}  // namespace pyramid::kernels
