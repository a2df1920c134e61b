// pyramid_sum on CUDA: memory-bound. A thread has 16 bytes of adjacent channels of one cell (channels last), or one
// number (planar), and goes through the levels; coarse ones come from the cache.
#include "pyramid_sum.h"

#include "level_cells.cuh"

namespace pyramid::kernels {
namespace {

// I: an integer that holds the number of items.
template <int V, class I, class T>
__global__ void pyramid_sum(const __grid_constant__ PyramidSumParams<T> p, I items) {
  for (I i = static_cast<I>(blockIdx.x) * blockDim.x + threadIdx.x; i < items;
       i += static_cast<I>(gridDim.x) * blockDim.x) {
    const Place place = place_of<V>(i, p.out.grid, p.channels, p.channels_last);
    compute_t<T> sum[V] = {};
    for (int level = 0; level < static_cast<int>(p.num_levels); ++level) {
      const LevelSource<T>& source = p.levels[level];
      const T* x = source.data + place.batch * source.stride[0] + place.channel * source.stride[1];
      add_mean(source, x, p.out.grid, place, sum);
    }
    store_pack(p.out.data + offset_of(place, p.out), sum);
  }
}

template <int V, class T>
cudaError_t launch_packs(const PyramidSumParams<T>& p, cudaStream_t stream) {
  const int64_t items = p.batch * p.channels / V * p.out.grid[0] * p.out.grid[1] * p.out.grid[2];
  const int64_t wanted = ceil_div(items, kThreads);
  const unsigned blocks = static_cast<unsigned>(wanted < (1 << 16) ? wanted : 1 << 16);
  if (items < (int64_t{1} << 31)) return launch(pyramid_sum<V, uint32_t, T>, blocks, kThreads, 0, stream, p, items);
  return launch(pyramid_sum<V, uint64_t, T>, blocks, kThreads, 0, stream, p, items);
}

}  // namespace

// launchers

template <class T>
cudaError_t pyramid_sum_cuda(const PyramidSumParams<T>& p, cudaStream_t stream) {
  if (p.batch * p.channels == 0) return cudaSuccess;
  constexpr int V = kPack<T>;
  bool packs = p.channels_last && p.channels % V == 0 && fits<V>(p.out.data, p.out.stride);
  for (int64_t level = 0; level < p.num_levels; ++level)
    packs = packs && fits<V>(p.levels[level].data, p.levels[level].stride);
  return packs ? launch_packs<V>(p, stream) : launch_packs<1>(p, stream);
}

#define PYRAMID_INSTANTIATE(T) template cudaError_t pyramid_sum_cuda<T>(const PyramidSumParams<T>&, cudaStream_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace pyramid::kernels
