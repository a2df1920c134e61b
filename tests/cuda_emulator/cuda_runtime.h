// The subset of CUDA that csrc/kernels/*_cuda.cu use, on the host: g++ finds this file instead of the runtime's.
//
// A block runs at a time, its threads as fibers of one system thread. Where they meet (a shuffle, a ballot, mma,
// __syncthreads) the last one to arrive does the work and wakes the others; who runs next is drawn by chance, so are the
// order of the blocks and what a racing read sees. Shared memory is filled with NaN before each block. What a GPU would
// answer with a hang or with garbage ends the launch with cudaErrorLaunchFailure and a line in emulator::message: lanes
// that miss each other, different __syncthreads, a write behind dynamic shared memory.
//
// It proves logic, not speed, and not what the compiler and the caches may reorder. `static __shared__` arrays of
// templates are not filled (gcc keeps them out of the section): kernels take dynamic_shared().
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <utility>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static __attribute__((section("emulated_shared")))

struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) double2 { double x, y; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) int2 { int x, y; };
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

using cudaStream_t = void*;


#define threadIdx (::emulator::current->index)
#define blockIdx (::emulator::block_index)
#define blockDim (::emulator::block_size)
#define gridDim (::emulator::grid_size)
#define __syncthreads() ::emulator::barrier(__LINE__)

inline cudaError_t cudaGetLastError() { return std::exchange(emulator::last_error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t error) {
  static std::string text;
  text = error == cudaSuccess ? "no error" : std::exchange(emulator::message, std::string());
  return text.c_str();
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  struct Vote {
    bool yes;
    unsigned all;
  } mine{predicate != 0, 0};
  emulator::meet("__ballot_sync", mask, &mine, [](void** all) {
    unsigned votes = 0;
    for (int i = 0; i < emulator::kWarp; ++i)
      if (all[i] && static_cast<Vote*>(all[i])->yes) votes |= 1u << i;
    for (int i = 0; i < emulator::kWarp; ++i)
      if (all[i]) static_cast<Vote*>(all[i])->all = votes;
  });
  return mine.all;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  emulator::meet("__syncwarp", mask, nullptr, [](void**) {});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return emulator::shuffle("__shfl_xor_sync", mask, value, [&](int lane) { return lane ^ bits; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned step) {
  return emulator::shuffle("__shfl_down_sync", mask, value, [&](int lane) { return lane + static_cast<int>(step); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned step) {
  return emulator::shuffle("__shfl_up_sync", mask, value, [&](int lane) { return lane - static_cast<int>(step); });
}
template <class T>
T __shfl_sync(unsigned mask, T value, int from) {
  return emulator::shuffle("__shfl_sync", mask, value, [&](int) { return from & 31; });
}

inline int __reduce_min_sync(unsigned mask, int value) {
  for (int bits = 16; bits > 0; bits /= 2) {
    const int other = __shfl_xor_sync(mask, value, bits);
    value = other < value ? other : value;
  }
  return value;
}

template <class T, class V>
T atomicAdd(T* target, V value) { return std::exchange(*target, static_cast<T>(*target + value)); }
template <class T, class V>
T atomicMin(T* target, V value) { return std::exchange(*target, value < *target ? static_cast<T>(value) : *target); }
template <class T, class V>
T atomicMax(T* target, V value) { return std::exchange(*target, value > *target ? static_cast<T>(value) : *target); }
inline void __threadfence() {}

inline int __ffs(unsigned bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
template <class To, class From>
To emulator_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
template <class T>
T __ldg(const T* p) { return *p; }
template <class T>
T min(T a, T b) { return b < a ? b : a; }
template <class T>
T max(T a, T b) { return a < b ? b : a; }
