// Up to 16 bytes of adjacent numbers at once, from and to memory of any element type.
#pragma once

#include "cuda_device.cuh"

namespace pyramid::kernels {

template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T values[V];
};

// V adjacent numbers; p lies on a multiple of their size.
template <int V, class T>
__device__ void load_pack(const T* p, compute_t<T> (&wide)[V]) {
  const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(p);
#pragma unroll
  for (int v = 0; v < V; ++v) wide[v] = widen(pack.values[v]);
}

template <int V, class T>
__device__ void store_pack(T* p, const compute_t<T> (&wide)[V]) {
  Pack<T, V> pack;
#pragma unroll
  for (int v = 0; v < V; ++v) pack.values[v] = narrow<T>(wide[v]);
  *reinterpret_cast<Pack<T, V>*>(p) = pack;
}

}  // namespace pyramid::kernels
