// How code_logsumexp is cut on CUDA, and what lies where in its workspace.
#pragma once

#include "code_logsumexp.h"
#include "mma_tile.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kParts = 3;
constexpr int kWarps = 8, kThreads = kWarps * kLanes;
constexpr int kRows = 16 * kWarps, kKeys = 64;     // of the two sides
constexpr int kDepth = 32, kValueKeys = 16;        // a step: this many columns of both sides, or rows of the other one
constexpr int kMostColumns = 256, kMostRuns = 32;  // of the sums of a block; of the other side
constexpr int64_t kBlocksWanted = 256;
constexpr float kLog2E = 1.4426950408889634f;

// One side, as split_rows leaves it.
struct Side {
  BFloat16* parts;  // (padded rows, kParts, width)
  float* half;      // (padded rows,) |x'|^2 / 2; infinite for rows that do not exist
  int64_t count;    // rows that exist
};

// How a problem is cut, from its sizes alone.
struct Cut {
  int64_t dim, width;             // width: dim to whole steps
  int64_t slices, slice_columns;  // of the columns
  int64_t runs, run_keys;         // of the other side

  Cut(int64_t own, int64_t other, int64_t columns) : dim(columns), width(ceil_div(columns, kDepth) * kDepth) {
    slices = ceil_div(width, kMostColumns);
    slice_columns = ceil_div(ceil_div(width, slices), kDepth) * kDepth;
    slices = ceil_div(width, slice_columns);
    const int64_t blocks = ceil_div(own, kRows) * slices, key_blocks = ceil_div(other, kKeys);
    int64_t wanted = blocks == 0 ? 1 : ceil_div(kBlocksWanted, blocks);
    wanted = wanted < kMostRuns ? wanted : kMostRuns;
    const int64_t run_blocks = key_blocks == 0 ? 1 : ceil_div(key_blocks, wanted);
    run_keys = run_blocks * kKeys;
    runs = key_blocks == 0 ? 1 : ceil_div(key_blocks, run_blocks);
  }
};

int64_t padded_rows(int64_t rows) { return ceil_div(rows, kRows) * kRows; }

struct Workspace {
  Side rows, codes;
  float *sums, *top, *total;  // (runs, own rows, dim), (runs, own rows) twice
  int64_t bytes = 0;

  Workspace(char* memory, int64_t num_rows, int64_t num_codes, int64_t own, const Cut& cut, bool with_sums) {
    const auto take = [&](int64_t count, int64_t size) {
      char* const at = memory + bytes;
      bytes += ceil_div(count * size, 256) * 256;
      return at;
    };
    const auto side = [&](int64_t count) {
      const int64_t padded = padded_rows(count);
      return Side{reinterpret_cast<BFloat16*>(take(padded * kParts * cut.width, 2)),
                  reinterpret_cast<float*>(take(padded, 4)), count};
    };
    rows = side(num_rows);
    codes = side(num_codes);
    sums = reinterpret_cast<float*>(take(with_sums ? cut.runs * own * cut.dim : 0, 4));
    top = reinterpret_cast<float*>(take(cut.runs * own, 4));
    total = reinterpret_cast<float*>(take(cut.runs * own, 4));
  }
};

// Rows are counted in int, the end of a tile beyond the last one included.
bool in_reach(const Workspace& w) {
  constexpr int64_t kMost = 0x7fffffff - kRows;
  return w.rows.count <= kMost && w.codes.count <= kMost;
}

struct Attention {
  Side own, other;
  Cut cut;
  float scale;             // 2 / tau
  const float* grad;       // (other rows,) backward
  const float* logsumexp;  // the same
  float* sums;             // (runs, own rows, dim) forward: sum_k 2^(..) e'_k; backward: sum_n w_nk z'_n
  float* top;              // (runs, own rows) forward: the greatest z' . e' - |e'|^2 / 2
  float* total;            // (runs, own rows) the sum of the weights
};

}  // namespace
}  // namespace pyramid::kernels
