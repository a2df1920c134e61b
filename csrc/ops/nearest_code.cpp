// nearest_code, CPU: checks, the workspace of one panel of rows and one slab of codes, what the threads share.
#include "ops/nearest_code.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>

#include "check.h"
#include "dispatch.h"
#include "kernels/nearest_code.h"

namespace pyramid::ops {
namespace {

using kernels::ceil_div;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kSlabBytes = 2 << 20, kPanelBytes = 12 << 20;
constexpr int64_t kGrain = 65536;  // numbers of input that are worth a thread
constexpr int64_t kFewRows = 3;    // below which no preparation of the codes pays

Tensor workspace(const NearestCodeArguments& a, int64_t bytes) {
  return torch::stable::new_empty(a.ids, {ceil_div(bytes, 8)}, ScalarType::Long);
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class T>
const T* const_data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
void run_exact(const NearestCodeArguments& a) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts = a.num_rows < threads ? std::min(threads, ceil_div(a.num_codes * a.dim, kGrain)) : 1;
  const Tensor part_distance = workspace(a, parts * a.num_rows * 8), part_id = workspace(a, parts * a.num_rows * 8);
  const kernels::NearestCodeExactParams<T> p{const_data<T>(a.z),
                                             const_data<T>(a.codebook),
                                             a.num_rows,
                                             a.num_codes,
                                             a.dim,
                                             parts,
                                             data<double>(part_distance),
                                             data<int64_t>(part_id),
                                             data<int64_t>(a.ids),
                                             data<kernels::compute_t<T>>(a.distance)};
  if (parts > 1) {
    torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t part = begin; part < end; ++part) PYRAMID_BEST_ISA(nearest_code_exact<T>)(p, part, 0, a.num_rows);
    });
  } else {
    const int64_t grain = std::max<int64_t>(1, kGrain / (a.num_codes * a.dim));
    torch::stable::parallel_for(0, a.num_rows, grain, [&](int64_t begin, int64_t end) {
      PYRAMID_BEST_ISA(nearest_code_exact<T>)(p, 0, begin, end);
    });
  }
  PYRAMID_BEST_ISA(nearest_code_exact_choose<T>)(p);
}

template <class T>
void run(const NearestCodeArguments& a) {
  PYRAMID_CHECK(a.num_codes <= INT32_MAX, "nearest_code: at most ", INT32_MAX, " codes, got ", a.num_codes);
  const kernels::NearestCodeSizes sizes = PYRAMID_BEST_ISA(nearest_code_sizes)(a.dim);
  const int64_t threads = torch::stable::get_num_threads(), all_tiles = ceil_div(a.num_codes, sizes.tile_codes);
  const int64_t all_blocks = ceil_div(a.num_rows, sizes.block_rows);
  const int64_t parts = all_blocks < 2 * threads ? threads : 1;
  const int64_t slab_tiles = std::clamp<int64_t>(kSlabBytes / sizes.tile_bytes, 1, all_tiles);
  const int64_t bytes_of_block = sizes.row_block_bytes + parts * sizes.candidates_bytes;
  const int64_t panel_blocks = std::clamp<int64_t>(kPanelBytes / bytes_of_block, 1, all_blocks);

  const Tensor center = workspace(a, a.dim * 4), tiles = workspace(a, slab_tiles * sizes.tile_bytes);
  const Tensor row_blocks = workspace(a, panel_blocks * sizes.row_block_bytes);
  const Tensor candidates = workspace(a, parts * panel_blocks * sizes.candidates_bytes);
  kernels::NearestCodeCpuParams<T> p{};
  p.z = const_data<T>(a.z);
  p.codebook = const_data<T>(a.codebook);
  p.num_codes = a.num_codes;
  p.dim = a.dim;
  p.ids = data<int64_t>(a.ids);
  p.distance = data<float>(a.distance);
  p.center = data<float>(center);
  p.row_blocks = data<char>(row_blocks);
  p.candidates = data<char>(candidates);
  p.tiles = data<char>(tiles);
  p.num_parts = parts;
  PYRAMID_BEST_ISA(nearest_code_center<T>)(p);

  const auto share = [](int64_t count, int64_t numbers_each, auto&& work) {
    torch::stable::parallel_for(0, count, std::max<int64_t>(1, kGrain / numbers_each), work);
  };
  const int64_t block_numbers = sizes.block_rows * a.dim, tile_numbers = sizes.tile_codes * a.dim;
  for (int64_t first_block = 0; first_block < all_blocks; first_block += panel_blocks) {
    p.first_row = first_block * sizes.block_rows;
    p.num_rows = std::min(panel_blocks * sizes.block_rows, a.num_rows - p.first_row);
    const int64_t blocks = ceil_div(p.num_rows, sizes.block_rows);
    share(blocks, block_numbers, [&](int64_t begin, int64_t end) {
      PYRAMID_BEST_ISA(nearest_code_quantize_rows<T>)(p, begin, end);
    });
    for (int64_t first_tile = 0; first_tile < all_tiles; first_tile += slab_tiles) {
      p.first_code = first_tile * sizes.tile_codes;
      const int64_t num_tiles = std::min(slab_tiles, all_tiles - first_tile);
      share(num_tiles, tile_numbers, [&](int64_t begin, int64_t end) {
        PYRAMID_BEST_ISA(nearest_code_quantize_codes<T>)(p, begin, end);
      });
      if (parts > 1) {
        share(parts, num_tiles * tile_numbers / parts, [&](int64_t begin, int64_t end) {
          for (int64_t part = begin; part < end; ++part)
            PYRAMID_BEST_ISA(nearest_code_scan<T>)
          (p, part, 0, blocks, num_tiles * part / parts, num_tiles * (part + 1) / parts);
        });
      } else {
        share(blocks, block_numbers * num_tiles, [&](int64_t begin, int64_t end) {
          PYRAMID_BEST_ISA(nearest_code_scan<T>)(p, 0, begin, end, 0, num_tiles);
        });
      }
    }
    share(p.num_rows, 8 * a.dim, [&](int64_t begin, int64_t end) {
      PYRAMID_BEST_ISA(nearest_code_choose<T>)(p, begin, end);
    });
  }
}

std::tuple<Tensor, Tensor> nearest_code(const Tensor& z, const Tensor& codebook) {
  const NearestCodeArguments a = prepare(z, codebook);
  if (a.num_rows == 0) return {a.distance, a.ids};
  PYRAMID_DISPATCH_FLOATING("nearest_code", z, [&] {
    if constexpr (std::is_same_v<element_t, double>) {
      run_exact<element_t>(a);
    } else {
      a.num_rows <= kFewRows ? run_exact<element_t>(a) : run<element_t>(a);
    }
  });
  return {a.distance, a.ids};
}

}  // namespace
}  // namespace pyramid::ops

STABLE_TORCH_LIBRARY_IMPL(pyramid, CPU, m) {
  m.impl("nearest_code", TORCH_BOX(&pyramid::ops::nearest_code));
}
