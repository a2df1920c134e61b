// The host's side of kernels/cuda_device.cuh: the same functions, with the layouts of the PTX manual written out.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>

#include "fibers.h"
#include "kernels/types.h"

namespace pyramid::kernels {

constexpr unsigned kAllLanes = 0xffffffffu;

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, cudaStream_t,
                   Arguments&&... arguments) {
  emulator::run_grid(grid, block, shared, [=] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaGetLastError();
}

template <class T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(emulator::dynamic_memory);
}

inline int fresh_thread() { return static_cast<int>(threadIdx.x); }

inline void device_assert(bool good, const char* text) {
  if (!good) emulator::fail(emulator::name(*emulator::current) + ": " + text);
}

// numbers

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(BFloat16 value) { return __uint_as_float(static_cast<unsigned>(value.bits) << 16); }
inline float widen(Half value) {
  const int exponent = value.bits >> 10 & 31, mantissa = value.bits & 1023;
  const float magnitude = exponent == 31   ? (mantissa ? NAN : INFINITY)
                          : exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                          : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
  return value.bits >> 15 ? -magnitude : magnitude;
}

template <class T>
T narrow(compute_t<T> value) {
  return value;
}
template <>
inline BFloat16 narrow<BFloat16>(float value) {
  const unsigned bits = __float_as_uint(value);
  if (std::isnan(value)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half narrow<Half>(float value) {
  if (std::isnan(value)) return {0x7fff};
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520) return {static_cast<uint16_t>(sign | 0x7c00)};
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude in [2^(exponent - 1), 2^exponent)
  const int step = magnitude == 0 || exponent < -13 ? -24 : exponent - 11;
  const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -step)));
  return {static_cast<uint16_t>(sign | (step == -24 ? units : ((step + 24) << 10) + units))};
}

template <class T>
uint32_t pack(float low, float high) {
  return narrow<T>(low).bits | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
}
template <class T>
float2 unpack(uint32_t pair) {
  return {widen(T{static_cast<uint16_t>(pair)}), widen(T{static_cast<uint16_t>(pair >> 16)})};
}

inline float rounded_product(float a, float b) { return a * b; }  // x86-64 without -mfma fuses nothing
inline float fast_exp2(float x) { return std::exp2(x); }

// tensor cores

// As the worst of them add (Fasi, Higham, Mikaitis and Pranesh 2021, "Numerical behavior of NVIDIA tensor cores"): all terms
// cut off below the 24 bits of the greatest, so is the sum.
inline float sum_of_tensor_cores(const double* terms, int count) {
  double greatest = 0, sum = 0;
  for (int i = 0; i < count; ++i) greatest = std::fmax(greatest, std::fabs(terms[i]));
  for (int i = 0; i < count; ++i) sum += terms[i];
  if (!std::isfinite(sum) || greatest == 0) return static_cast<float>(sum);
  int exponent;
  std::frexp(greatest, &exponent);
  const double unit = std::ldexp(1.0, std::max(exponent - 24, -149)), inverse = 1 / unit;
  sum = 0;
  for (int i = 0; i < count; ++i) sum += std::trunc(terms[i] * inverse) * unit;
  const float nearest = static_cast<float>(sum);
  return std::fabs(nearest) > std::fabs(sum) ? std::nextafter(nearest, 0.0f) : nearest;
}

template <class T>
void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Fragments {
    float* c;
    const uint32_t* a;
    uint32_t b[2];
  } mine{c, a, {b0, b1}};
  emulator::meet("mma", kAllLanes, &mine, [](void** all) {
    const auto half_of = [](uint32_t pair, int i) { return widen(T{static_cast<uint16_t>(pair >> 16 * (i & 1))}); };
    float left[16][16], right[16][8];
    for (int lane = 0; lane < 32; ++lane) {
      const Fragments& f = *static_cast<Fragments*>(all[lane]);
      const int group = lane / 4, place = lane % 4;
      for (int i = 0; i < 8; ++i)  // PTX: a0..a7
        left[group + (i / 2 % 2) * 8][place * 2 + i % 2 + (i / 4) * 8] = half_of(f.a[i / 2], i);
      for (int i = 0; i < 4; ++i)  // PTX: b0..b3
        right[place * 2 + i % 2 + (i / 2) * 8][group] = half_of(f.b[i / 2], i);
    }
    for (int lane = 0; lane < 32; ++lane)
      for (int i = 0; i < 4; ++i) {  // PTX: c0..c3
        const int row = lane / 4 + (i / 2) * 8, column = lane % 4 * 2 + i % 2;
        double terms[17];
        float& target = static_cast<Fragments*>(all[lane])->c[i];
        for (int k = 0; k < 16; ++k) terms[k] = static_cast<double>(left[row][k]) * right[k][column];
        terms[16] = target;
        target = sum_of_tensor_cores(terms, 17);
      }
  });
}

inline void load_matrices(uint32_t (&r)[4], const void* row, bool transposed) {
  struct Rows {
    uint32_t* r;
    const uint16_t* row;
  } mine{r, static_cast<const uint16_t*>(row)};
  if (reinterpret_cast<uintptr_t>(row) % 16) emulator::fail("ldmatrix: a row is not aligned to 16 bytes");
  emulator::meet(transposed ? "ldmatrix.trans" : "ldmatrix", kAllLanes, &mine, [=](void** all) {
    for (int lane = 0; lane < 32; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto element = [&](int i, int j) { return static_cast<Rows*>(all[matrix * 8 + i])->row[j]; };
        const int major = lane / 4, minor = lane % 4 * 2;
        const uint32_t low = transposed ? element(minor, major) : element(major, minor);
        const uint32_t high = transposed ? element(minor + 1, major) : element(major, minor + 1);
        static_cast<Rows*>(all[lane])->r[matrix] = low | high << 16;
      }
  });
}
inline void load_matrices(uint32_t (&r)[4], const void* row) { load_matrices(r, row, false); }
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row) { load_matrices(r, row, true); }

// asynchronous copies: the target is NaN from the moment of asking until the wait, so neither may come too early

inline void copy_async(void* target, const void* source, bool valid, int size) {
  if (reinterpret_cast<uintptr_t>(target) % size || (valid && reinterpret_cast<uintptr_t>(source) % size))
    emulator::fail(emulator::name(*emulator::current) + ": cp.async: not aligned to " + std::to_string(size) + " bytes");
  std::memset(target, emulator::kNan, size);
  emulator::current->copies.push_back({target, valid ? source : nullptr, size, emulator::current->groups});
}
inline void copy_async_16(void* target, const void* source, bool valid) { copy_async(target, source, valid, 16); }
inline void copy_async_4(void* target, const void* source, bool valid) { copy_async(target, source, valid, 4); }
inline void commit_copies() { ++emulator::current->groups; }
template <int kLeft>
void wait_copies() {
  emulator::Thread& self = *emulator::current;
  std::vector<emulator::Copy> left;
  for (const emulator::Copy& copy : self.copies) {
    if (copy.group >= self.groups - kLeft) {
      left.push_back(copy);
    } else if (copy.source) {
      std::memcpy(copy.target, copy.source, copy.size);
    } else {
      std::memset(copy.target, 0, copy.size);
    }
  }
  self.copies = std::move(left);
}

}  // namespace pyramid::kernels
