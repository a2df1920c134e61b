// From torch's run-time dtype to the kernels' compile-time element type.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "check.h"
#include "kernels/types.h"

// Runs the lambda with `element_t` set to float, double, kernels::BFloat16 or kernels::Half:
//   PYRAMID_DISPATCH_FLOATING("bit_quantize", x, [&] { run<element_t>(x); });
#define PYRAMID_DISPATCH_FLOATING(op, tensor, ...)                                              \
  do {                                                                                          \
    switch ((tensor).scalar_type()) {                                                           \
      case torch::headeronly::ScalarType::Float: {                                              \
        using element_t = float;                                                                \
        __VA_ARGS__();                                                                          \
        break;                                                                                  \
      }                                                                                         \
      case torch::headeronly::ScalarType::Double: {                                             \
        using element_t = double;                                                               \
        __VA_ARGS__();                                                                          \
        break;                                                                                  \
      }                                                                                         \
      case torch::headeronly::ScalarType::BFloat16: {                                           \
        using element_t = ::pyramid::kernels::BFloat16;                                         \
        __VA_ARGS__();                                                                          \
        break;                                                                                  \
      }                                                                                         \
      case torch::headeronly::ScalarType::Half: {                                               \
        using element_t = ::pyramid::kernels::Half;                                             \
        __VA_ARGS__();                                                                          \
        break;                                                                                  \
      }                                                                                         \
      default:                                                                                  \
        PYRAMID_CHECK(false, op ": " #tensor " must be float32, float64, bfloat16 or float16, " \
                      "got ", ::pyramid::dtype_of(tensor));                                     \
    }                                                                                           \
  } while (0)
