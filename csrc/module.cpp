// The Python module pyramid._C. Importing it registers the operators (static initialisers of ops/ and schema.cpp);
// what it offers itself is what is not a tensor.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/isa.h"

namespace {

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

using pyramid::kernels::Isa;
namespace py = pybind11;

const char* name_of(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "base";
}

std::vector<std::string> compiled_sets() {
  std::vector<std::string> names{"base"};
#ifdef PYRAMID_HAS_AVX2
  names.emplace_back("avx2");
#endif
#ifdef PYRAMID_HAS_AVX512
  names.emplace_back("avx512");
#endif
  return names;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = kCompiler;
  info["flags"] = PYRAMID_BUILD_FLAGS;
  info["torch"] = PYRAMID_BUILD_TORCH;
  info["cuda_architectures"] = PYRAMID_BUILD_CUDA;
  info["instruction_sets_compiled"] = compiled_sets();
  info["instruction_set_detected"] = name_of(pyramid::kernels::detected_instruction_set());
  info["instruction_set_used"] = name_of(pyramid::kernels::instruction_set());
  return info;
}

// For tests and benchmarks: use a lesser set than the detected one.
void set_instruction_set(const std::string& name) {
  for (const Isa isa : {Isa::base, Isa::avx2, Isa::avx512}) {
    if (name != name_of(isa)) continue;
    if (isa > pyramid::kernels::detected_instruction_set())
      throw std::invalid_argument("set_instruction_set: this processor or build has no " + name);
    pyramid::kernels::instruction_set() = isa;
    return;
  }
  throw std::invalid_argument("set_instruction_set: expected base, avx2 or avx512, got " + name);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled operators of pyramid; see torch.ops.pyramid.";
  m.def("build_info", &build_info);
  m.def("set_instruction_set", &set_instruction_set);
}
