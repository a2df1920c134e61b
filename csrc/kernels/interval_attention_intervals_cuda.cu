// The intervals of interval_attention on CUDA: as they came -> int32, looked at, with hulls for the backward.
//
// Nobody waits for the device to say whether they are in order (so a graph can hold the launch): a bad one is a
// device-side assertion, as a bad index is in torch. What is written is cut to the keys that there are in any case, so no
// kernel behind this one can read beyond them, whatever came.
#include "interval_attention_cuda.cuh"

namespace pyramid::kernels {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kLanes;

template <class Integer>
__device__ __forceinline__ bool in_order(const Integer* given, int64_t num_keys) {
  return 0 <= given[0] && given[0] <= given[1] && given[1] <= num_keys && 0 <= given[2] && given[2] <= given[3] &&
         given[3] <= num_keys;
}

__device__ __forceinline__ int cut(int64_t position, int64_t num_keys) {
  return static_cast<int>(min(max(position, int64_t{0}), num_keys));
}

// A warp a tile of kHullRows queries.
template <class Integer>
__global__ void __launch_bounds__(kThreads) read_intervals(IntervalsCudaParams<Integer> p, int64_t num_tiles) {
  const int64_t tile = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  if (tile >= num_tiles * p.num_sets) return;
  const int64_t set = tile / num_tiles, first = tile % num_tiles * kHullRows;
  Span hull{kNoBlock, 0, kNoBlock, 0};
  for (int64_t row = first + threadIdx.x % kLanes; row < first + kHullRows && row < p.num_queries; row += kLanes) {
    const int64_t at = (set * p.num_queries + row) * 4;
    const Integer* const given = p.given + at;
    device_assert(in_order(given, p.num_keys), "interval_attention: expected 0 <= a <= b <= Skv and 0 <= c <= d <= Skv");
    Span s{cut(given[0], p.num_keys), cut(given[1], p.num_keys), cut(given[2], p.num_keys), cut(given[3], p.num_keys)};
    s.b = max(s.a, s.b);
    s.d = max(s.c, s.d);
    *reinterpret_cast<Span*>(p.intervals + at) = s;
    if (s.a < s.b) hull.a = min(hull.a, s.a), hull.b = max(hull.b, s.b);
    if (s.c < s.d) hull.c = min(hull.c, s.c), hull.d = max(hull.d, s.d);
  }
  if (p.hulls == nullptr) return;
  hull.a = __reduce_min_sync(kAllLanes, hull.a);
  hull.b = -__reduce_min_sync(kAllLanes, -hull.b);
  hull.c = __reduce_min_sync(kAllLanes, hull.c);
  hull.d = -__reduce_min_sync(kAllLanes, -hull.d);
  if (threadIdx.x % kLanes == 0) *reinterpret_cast<Span*>(p.hulls + tile * 4) = hull;
}

}  // namespace

template <class Integer>
cudaError_t read_intervals_cuda(const IntervalsCudaParams<Integer>& p, cudaStream_t stream) {
  const int64_t tiles = ceil_div(p.num_queries, kHullRows), blocks = ceil_div(p.num_sets * tiles, kWarps);
  if (blocks == 0) return cudaSuccess;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  return launch(read_intervals<Integer>, static_cast<unsigned>(blocks), kThreads, 0, stream, p, tiles);
}

template cudaError_t read_intervals_cuda(const IntervalsCudaParams<int32_t>&, cudaStream_t);
template cudaError_t read_intervals_cuda(const IntervalsCudaParams<int64_t>&, cudaStream_t);

}  // namespace pyramid::kernels
