// What the CUDA kernels use beyond C++ and the plain intrinsics: the launch, tensor cores, asynchronous copies, number
// formats. Everything here has a second implementation for the host (tests/cuda_emulator), with which the tests run the
// kernels where there is no GPU; so kernels hold no inline PTX, no <<<>>> and no `extern __shared__` of their own.
#pragma once

#include "cuda_types.h"
#include "types.h"

#ifdef PYRAMID_EMULATE
#include "emulated_device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cassert>

namespace pyramid::kernels {

constexpr unsigned kAllLanes = 0xffffffffu;

// kernel<<<grid, block, shared, stream>>>(arguments...). Blocks may have up to 99 KiB of shared memory (what every
// architecture from sm_80 on has); above 48 KiB a kernel must ask for it once, here each time: it is a host-side note.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (shared > (48 << 10)) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  return cudaGetLastError();
}

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char pyramid_dynamic_shared[];
  return reinterpret_cast<T*>(pyramid_dynamic_shared);
}

// threadIdx.x, read anew: what is computed from it inside a loop is computed there, and takes no registers from loop to loop.
__device__ __forceinline__ int fresh_thread() {
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
}

// A device-side assertion: ends the launch, and the process's use of the device, with `text` on stderr. As torch does
// where an index is out of range: the host need not wait to hear of it.
__device__ __forceinline__ void device_assert(bool good, const char* text) {
  if (!good) __assert_fail(text, "pyramid", 0, "on the device");
}

// numbers

template <class T>
constexpr bool kIsHalf = false;
template <>
constexpr bool kIsHalf<Half> = true;

__device__ __forceinline__ float widen(float value) { return value; }
__device__ __forceinline__ double widen(double value) { return value; }
__device__ __forceinline__ float widen(BFloat16 value) { return __bfloat162float(__ushort_as_bfloat16(value.bits)); }
__device__ __forceinline__ float widen(Half value) { return __half2float(__ushort_as_half(value.bits)); }

// To the nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(compute_t<T> value) {
  return value;
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float value) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
}
template <>
__device__ __forceinline__ Half narrow<Half>(float value) {
  return {__half_as_ushort(__float2half_rn(value))};
}

// Two numbers in a register, the first in the low half. T is BFloat16 or Half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  if constexpr (kIsHalf<T>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
  }
}
template <class T>
__device__ __forceinline__ float2 unpack(uint32_t pair) {
  return make_float2(widen(T{static_cast<uint16_t>(pair)}), widen(T{static_cast<uint16_t>(pair >> 16)}));
}

// a b, rounded: never a part of a fused multiplication and addition.
__device__ __forceinline__ float rounded_product(float a, float b) { return __fmul_rn(a, b); }

// 2^x to about 2 units in the last place; -infinity gives 0.
__device__ __forceinline__ float fast_exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Tensor cores: c (16, 8) += a (16, 16) b (16, 8), float32 sums. With group = lane / 4, place = lane % 4 a lane holds, two
// neighbouring columns (of a, c) or rows (of b) to a register:
//   a[0..3]   rows group, group + 8, group, group + 8; columns 2 place + {0, 1}, the same, both again + 8
//   b0, b1    column group; rows 2 place + {0, 1}, the same + 8
//   c[0..3]   row group: columns 2 place, 2 place + 1; row group + 8: the same
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kIsHalf<T>) {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Four 8 x 8 matrices of 16-bit elements from shared memory (ldmatrix.x4). Lane 8 m + i gives the address of row i of
// matrix m, aligned to 16 bytes; then r[m] of a lane holds row group, columns 2 place + {0, 1} of matrix m
// (transposed: column group, rows 2 place + {0, 1}).
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const void* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// Asynchronous copies of 16 (or 4) aligned bytes to shared memory, zeros where not valid (then `source` is not read). What is
// committed is a group; wait_copies<n> returns when all but the last n groups of this thread have landed, and
// __syncthreads must follow before another thread reads them.
__device__ __forceinline__ void copy_async_16(void* target, const void* source, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(target));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async_4(void* target, const void* source, bool valid) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(target));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(address), "l"(source), "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

}  // namespace pyramid::kernels

#endif
