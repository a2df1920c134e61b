// nearest_code on CUDA: a first pass in bfloat16 on the tensor cores (mma m16n8k16, sm_80 and newer), then in double
// the few buckets that its bound admits (nearest_code.h has the bound). The same ids as on the CPU.
//
//   round_vectors  x' = x - c in bfloat16, |x'|, what rounding lost, |x'|^2 / 2       warp per vector
//   bucket_norms   the greatest norms of each bucket                                  thread per bucket
//   score_tiles    the least s per (row, bucket): 128 rows x 128 codes, 64 columns at a time, the next ones on their
//                  way in the other half of shared memory. A warp has 64 rows x 64 codes, two buckets; what leaves a
//                  tile is 4 minima a row in place of 128 numbers
//   choose         ranks in double the codes of the admitted buckets                  warp per row
//
// Bound by the matrix units: 2 N K D operations, against (128 + 128) x 2 D bytes from the L2 cache for 128 x 128 pairs.
// From memory the rounded codebook is read once for each panel of rows (N' rows, whose N' x K / 32 minima and N' x D
// rounded numbers take up to 64 MiB each), the minima twice. `choose` reads 32 codes for each admitted bucket.
#include "nearest_code.h"

#include "convert.cuh"
#include "mma_tile.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kLanes;
constexpr int kTile = 128, kDepth = 64;
constexpr int kBucket = 32;  // consecutive codes
constexpr int kVector = 4;   // numbers that choose loads at a time; eight would spill
constexpr int kWarpRows = 64, kWarpCodes = 64, kRowWarps = kTile / kWarpRows;
constexpr int kScoreThreads = kRowWarps * (kTile / kWarpCodes) * kLanes;
constexpr int kStage = 2 * kTile * kTileStep<kDepth>;  // numbers: the rows, then the codes
constexpr size_t kShared = 2 * kStage * sizeof(BFloat16);
constexpr int64_t kMostMinima = 1 << 24, kMostNumbers = 1 << 25;  // of a panel: 64 MiB each
static_assert(kBucket == kLanes, "choose gives each lane one code of a bucket");

// Vectors as round_vectors leaves them, padded with zeros to whole tiles.
struct Rounded {
  BFloat16* numbers;  // (padded, width)
  float2* norms;      // (padded,) |x'| and |x' - numbers|, upper bounds
  float* half;        // (padded,) |x'|^2 / 2; infinite for vectors that do not exist
};

struct Layout {
  int64_t width, buckets, panel_rows;
  Rounded rows, codes;   // of a panel; all
  float2* bucket_norms;  // (buckets,)
  float* minima;         // (panel_rows, buckets)
  int64_t bytes = 0;

  Layout(char* memory, int64_t num_rows, int64_t num_codes, int64_t dim) {
    const auto take = [&](int64_t size) {
      char* const at = memory + bytes;
      bytes += ceil_div(size, 256) * 256;
      return at;
    };
    const auto vectors = [&](int64_t count) {
      return Rounded{reinterpret_cast<BFloat16*>(take(count * width * 2)), reinterpret_cast<float2*>(take(count * 8)),
                     reinterpret_cast<float*>(take(count * 4))};
    };
    width = ceil_div(dim, kDepth) * kDepth;
    buckets = ceil_div(num_codes, kBucket);
    const int64_t by_minima = kMostMinima / buckets, by_numbers = kMostNumbers / width;
    const int64_t tiles = (by_minima < by_numbers ? by_minima : by_numbers) / kTile, all = ceil_div(num_rows, kTile);
    panel_rows = kTile * (all < tiles ? all : tiles > 1 ? tiles : 1);
    rows = vectors(panel_rows);
    codes = vectors(ceil_div(num_codes, kTile) * kTile);
    bucket_norms = reinterpret_cast<float2*>(take(buckets * 8));
    minima = reinterpret_cast<float*>(take(panel_rows * buckets * 4));
  }
};

__device__ float norm_above(double sum_of_squares) {
  const double norm = sqrt(sum_of_squares) * (1 + 1e-6);
  return norm < kGreatestNorm ? static_cast<float>(norm) : INFINITY;  // NaN too
}

// V numbers at a time, one after the other: the sum does not depend on V.
template <int V, class T>
__device__ double squared_distance(const T* a, const T* b, int64_t dim) {
  double sum = 0;
  for (int64_t d = 0; d < dim; d += V) {
    compute_t<T> x[V], y[V];
    load_pack<V>(a + d, x);
    load_pack<V>(b + d, y);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const double difference = static_cast<double>(x[v]) - static_cast<double>(y[v]);
      sum += difference * difference;
    }
  }
  return sum;
}

struct Best {
  double distance = INFINITY;
  int64_t id = 0;
  // Ties go to the lowest id; NaN and infinity never win, so id 0 stays if no other comes.
  __device__ void offer(double candidate, int64_t candidate_id) {
    if (candidate < distance || (candidate == distance && candidate_id < id)) {
      distance = candidate;
      id = candidate_id;
    }
  }
  // The best of all lanes, in all lanes.
  __device__ void reduce() {
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(kAllLanes, distance, step);
      const long long other_id = __shfl_xor_sync(kAllLanes, static_cast<long long>(id), step);
      offer(other, other_id);
    }
  }
};

// The bound of the error of s, as a function of the norms.
struct Bound {
  float factor, floor;

  static Bound of(int64_t dim) {
    const double u = 5.9604644775390625e-8, steps = static_cast<double>(ceil_div(dim, 16));
    return {static_cast<float>((36 * steps + 12) * 1.02 * u), static_cast<float>((dim + 12) * 2.350988701644575e-38)};
  }
  __device__ float operator()(float2 row, float2 code) const {
    const float rounding = row.y * code.x + (row.x + row.y) * code.y;
    return (rounding + factor * code.x * (row.x + 0.5f * code.x) + floor * (1 + row.x + code.x)) * 1.00001f;
  }
};

// kernels

template <class T>
__global__ void __launch_bounds__(kThreads)
round_vectors(const T* x, const float* center, int64_t count, int64_t padded, int64_t dim, int64_t width, Rounded out) {
  const int lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (row >= padded) return;
  double sum = 0, lost = 0;
  for (int64_t d = lane; d < width; d += kLanes) {
    const float value = row < count && d < dim ? widen(x[row * dim + d]) - center[d] : 0.0f;
    BFloat16 rounded = narrow<BFloat16>(value);
    // The tensor cores might take these for zeros: so be it, and counted.
    if (fabsf(widen(rounded)) < 1.17549435e-38f) rounded = BFloat16{0};
    out.numbers[row * width + d] = rounded;
    const double loss = static_cast<double>(value) - static_cast<double>(widen(rounded));
    sum += static_cast<double>(value) * value;
    lost += loss * loss;
  }
  sum = warp_sum(sum);
  lost = warp_sum(lost);
  if (lane != 0) return;
  out.norms[row] = make_float2(norm_above(sum), norm_above(lost));
  out.half[row] = row < count ? static_cast<float>(0.5 * sum) : INFINITY;
}

__global__ void __launch_bounds__(kThreads) bucket_norms(const float2* norms, int64_t num_buckets, float2* of_bucket) {
  const int64_t bucket = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (bucket >= num_buckets) return;
  float2 greatest = make_float2(0, 0);
  for (int64_t k = bucket * kBucket; k < (bucket + 1) * kBucket; ++k) {
    greatest.x = fmaxf(greatest.x, norms[k].x);
    greatest.y = fmaxf(greatest.y, norms[k].y);
  }
  of_bucket[bucket] = greatest;
}

// Block: a tile of rows and a tile of codes, the rows first. Warp w: rows w % 2 * 64 + {0..63}, codes w / 2 * 64 + ...
__global__ void __launch_bounds__(kScoreThreads, 2)
score_tiles(const BFloat16* rows, const BFloat16* codes, const float* half, int row_tiles, int num_rows, int width,
            int64_t num_buckets, float* minima) {
  constexpr int kStep = kTileStep<kDepth>;
  const int warp = threadIdx.x / kLanes;
  const int warp_row = warp % kRowWarps * kWarpRows, warp_code = warp / kRowWarps * kWarpCodes;
  const int first_row = blockIdx.x % row_tiles * kTile;
  const int64_t first_code = static_cast<int64_t>(blockIdx.x / row_tiles) * kTile;
  BFloat16* const shared = dynamic_shared<BFloat16>();
  rows += static_cast<int64_t>(first_row) * width;
  codes += first_code * width;

  const auto fetch = [&](int column) {
    BFloat16* const stage = shared + column / kDepth % 2 * kStage;
    if (column < width) {
      copy_lines<kDepth, kTile, kScoreThreads>(stage, rows + column, width, kDepth);
      copy_lines<kDepth, kTile, kScoreThreads>(stage + kTile * kStep, codes + column, width, kDepth);
    }
    commit_copies();
  };

  float product[kWarpRows / 16][kWarpCodes / 8][4] = {};
  fetch(0);
  for (int column = 0; column < width; column += kDepth) {
    fetch(column + kDepth);
    wait_copies<1>();
    __syncthreads();
    const BFloat16* const left = shared + column / kDepth % 2 * kStage + warp_row * kStep;
    const BFloat16* const right = shared + column / kDepth % 2 * kStage + (kTile + warp_code) * kStep;
#pragma unroll
    for (int d = 0; d < kDepth; d += 16) {
      uint32_t a[kWarpRows / 16][4];
#pragma unroll
      for (int i = 0; i < kWarpRows / 16; ++i) load_left<kStep>(a[i], left + i * 16 * kStep + d);
#pragma unroll
      for (int j = 0; j < kWarpCodes / 16; ++j) {
        uint32_t b[4];
        load_right<kStep>(b, right + j * 16 * kStep + d);
#pragma unroll
        for (int i = 0; i < kWarpRows / 16; ++i) {
          mma<BFloat16>(product[i][2 * j], a[i], b[0], b[1]);
          mma<BFloat16>(product[i][2 * j + 1], a[i], b[2], b[3]);
        }
      }
    }
    __syncthreads();
  }

  half += first_code + warp_code;
#pragma unroll
  for (int part = 0; part < kWarpCodes / kBucket; ++part) {
    const int64_t bucket = (first_code + warp_code) / kBucket + part;
#pragma unroll
    for (int i = 0; i < kWarpRows / 16; ++i) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float least = INFINITY;
#pragma unroll
        for (int j = part * kBucket / 8; j < (part + 1) * kBucket / 8; ++j)
#pragma unroll
          for (int k = 0; k < 2; ++k)
            least = fminf(least, half[j * 8 + result_column(k)] - product[i][j][2 * side + k]);
        least = fminf(least, __shfl_xor_sync(kAllLanes, least, 1));
        least = fminf(least, __shfl_xor_sync(kAllLanes, least, 2));
        const int row = first_row + warp_row + i * 16 + result_row(2 * side);
        if (threadIdx.x % 4 == 0 && row < num_rows && bucket < num_buckets) minima[row * num_buckets + bucket] = least;
      }
    }
  }
}

template <int V, class T>
__global__ void __launch_bounds__(kThreads)
choose(const T* z, const T* codebook, const float* minima, const float2* of_bucket, const float2* of_row,
       int64_t num_rows, int64_t num_codes, int64_t dim, int64_t num_buckets, Bound bound, int64_t* ids,
       float* distance) {
  const int lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (row >= num_rows) return;
  const float2 norms = of_row[row];
  minima += row * num_buckets;
  z += row * dim;

  float limit = INFINITY;
  for (int64_t bucket = lane; bucket < num_buckets; bucket += kLanes)
    limit = fminf(limit, minima[bucket] + bound(norms, of_bucket[bucket]));
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) limit = fminf(limit, __shfl_xor_sync(kAllLanes, limit, step));

  Best best;
  for (int64_t start = 0; start < num_buckets; start += kLanes) {
    const int64_t mine = start + lane;
    // Not "<= limit": in this form a NaN admits its bucket.
    unsigned admitted = __ballot_sync(
        kAllLanes, mine < num_buckets && !(minima[mine] - bound(norms, of_bucket[mine]) > limit));
    for (; admitted; admitted &= admitted - 1) {
      const int64_t code = (start + __ffs(admitted) - 1) * kBucket + lane;
      if (code < num_codes) best.offer(squared_distance<V>(z, codebook + code * dim, dim), code);
    }
  }
  best.reduce();
  if (lane == 0) {
    ids[row] = best.id;
    distance[row] = static_cast<float>(squared_distance<V>(z, codebook + best.id * dim, dim));
  }
}

__global__ void __launch_bounds__(kThreads) choose_double(NearestCodeCudaParams<double> p) {
  const int lane = threadIdx.x % kLanes;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (row >= p.num_rows) return;
  const double* const z = p.z + row * p.dim;
  Best best;
  for (int64_t code = lane; code < p.num_codes; code += kLanes)
    best.offer(squared_distance<1>(z, p.codebook + code * p.dim, p.dim), code);
  best.reduce();
  if (lane == 0) {
    p.ids[row] = best.id;
    p.distance[row] = squared_distance<1>(z, p.codebook + best.id * p.dim, p.dim);
  }
}

unsigned blocks_of(int64_t count, int64_t each) { return static_cast<unsigned>(ceil_div(count, each)); }

// launchers

template <class T>
cudaError_t round_all(const T* x, const NearestCodeCudaParams<T>& p, const Layout& layout, int64_t count,
                     const Rounded& out, cudaStream_t stream) {
  const int64_t padded = ceil_div(count, kTile) * kTile;
  return launch(round_vectors<T>, blocks_of(padded, kWarps), kThreads, 0, stream, x, p.center, count, padded, p.dim,
                layout.width, out);
}

}  // namespace

int64_t nearest_code_cuda_bytes(int64_t num_rows, int64_t num_codes, int64_t dim) {
  return Layout(nullptr, num_rows, num_codes, dim).bytes;
}

template <class T>
cudaError_t nearest_code_cuda(const NearestCodeCudaParams<T>& p, cudaStream_t stream) {
  const bool vectors = p.dim % kVector == 0 && reinterpret_cast<uintptr_t>(p.z) % (kVector * sizeof(T)) == 0 &&
                       reinterpret_cast<uintptr_t>(p.codebook) % (kVector * sizeof(T)) == 0;
  const Layout layout(p.workspace, p.num_rows, p.num_codes, p.dim);
  cudaError_t error = round_all(p.codebook, p, layout, p.num_codes, layout.codes, stream);
  if (error == cudaSuccess)
    error = launch(bucket_norms, blocks_of(layout.buckets, kThreads), kThreads, 0, stream, layout.codes.norms,
                   layout.buckets, layout.bucket_norms);
  for (int64_t start = 0; start < p.num_rows && error == cudaSuccess; start += layout.panel_rows) {
    const int64_t left = p.num_rows - start, count = left < layout.panel_rows ? left : layout.panel_rows;
    const T* const z = p.z + start * p.dim;
    error = round_all(z, p, layout, count, layout.rows, stream);
    if (error != cudaSuccess) return error;
    const int64_t row_tiles = ceil_div(count, kTile);
    error = launch(score_tiles, static_cast<unsigned>(row_tiles * ceil_div(p.num_codes, kTile)), kScoreThreads, kShared,
                   stream, layout.rows.numbers, layout.codes.numbers, layout.codes.half, row_tiles, count, layout.width,
                   layout.buckets, layout.minima);
    if (error != cudaSuccess) return error;
    error = launch(vectors ? choose<kVector, T> : choose<1, T>, blocks_of(count, kWarps), kThreads, 0, stream, z,
                   p.codebook, layout.minima, layout.bucket_norms, layout.rows.norms, count, p.num_codes, p.dim,
                   layout.buckets, Bound::of(p.dim), p.ids + start, p.distance + start);
  }
  return error;
}

template <>
cudaError_t nearest_code_cuda(const NearestCodeCudaParams<double>& p, cudaStream_t stream) {
  return launch(choose_double, blocks_of(p.num_rows, kWarps), kThreads, 0, stream, p);
}

template cudaError_t nearest_code_cuda<float>(const NearestCodeCudaParams<float>&, cudaStream_t);
template cudaError_t nearest_code_cuda<BFloat16>(const NearestCodeCudaParams<BFloat16>&, cudaStream_t);
template cudaError_t nearest_code_cuda<Half>(const NearestCodeCudaParams<Half>&, cudaStream_t);

}  // namespace pyramid::kernels
