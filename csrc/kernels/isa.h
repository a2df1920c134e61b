// One source, several instruction sets: setup.py compiles every *_cpu.cpp of this folder once per set, with
// -DPYRAMID_ISA=<name>, and the functions of each copy live in the namespace of that name. ops/ calls the best one:
//   PYRAMID_BEST_ISA(nearest_code_rows)(params, begin, end);
//
// A *_cpu.cpp must not use templates or inline functions of the standard library: the linker would keep one copy of
// them, perhaps the AVX-512 one, and the baseline code would call it.
#pragma once

// Declares a function once for every set that is built.
#if defined(PYRAMID_HAS_AVX2) && defined(PYRAMID_HAS_AVX512)
#define PYRAMID_PER_ISA(...)         \
  namespace base { __VA_ARGS__; }    \
  namespace avx2 { __VA_ARGS__; }    \
  namespace avx512 { __VA_ARGS__; }
#define PYRAMID_BEST_ISA(function)                                                       \
  (::pyramid::kernels::instruction_set() == ::pyramid::kernels::Isa::avx512              \
       ? &::pyramid::kernels::avx512::function                                           \
       : ::pyramid::kernels::instruction_set() == ::pyramid::kernels::Isa::avx2          \
             ? &::pyramid::kernels::avx2::function                                       \
             : &::pyramid::kernels::base::function)
#else
#define PYRAMID_PER_ISA(...) \
  namespace base { __VA_ARGS__; }
#define PYRAMID_BEST_ISA(function) (&::pyramid::kernels::base::function)
#endif

namespace pyramid::kernels {

enum class Isa { base, avx2, avx512 };

// What the processor offers (of what was built), found once.
inline Isa detected_instruction_set() {
#if defined(PYRAMID_HAS_AVX2) && defined(PYRAMID_HAS_AVX512)
  static const Isa found = [] {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    if (!avx2) return Isa::base;
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512vnni");
    return avx512 ? Isa::avx512 : Isa::avx2;
  }();
  return found;
#else
  return Isa::base;
#endif
}

// What the kernels use: the detected set, or a lesser one that a test or a benchmark asked for.
inline Isa& instruction_set() {
  static Isa chosen = detected_instruction_set();
  return chosen;
}

}  // namespace pyramid::kernels
