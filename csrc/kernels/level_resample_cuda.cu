// level_resample and its adjoint on CUDA: memory-bound. A thread has 16 bytes of adjacent channels of one cell (channels
// last), or one number (planar: neighbours along w lie side by side). Where windows are large and cells few, a block's
// threads share out the windows of its cells and add up in shared memory, in a fixed order.
#include "level_resample.h"

#include "level_cells.cuh"

namespace pyramid::kernels {
namespace {

// The windows of one cell, forward or adjoint.
struct Windows {
  DeviceWindow axis[3];
  bool weighted;
  uint32_t divisor;
};

template <class T>
__device__ Windows windows_of(const LevelResampleParams<T>& p, const Place& place) {
  Windows windows;
  windows.weighted = false;
  windows.divisor = 1;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    const uint32_t x = static_cast<uint32_t>(p.x.grid[axis]), out = static_cast<uint32_t>(p.out.grid[axis]);
    const uint32_t i = place.cell[axis];
    DeviceWindow& window = windows.axis[axis];
    if (!p.adjoint) {
      window = source_window(i, x, out);
      windows.divisor *= window.end - window.begin;
    } else {  // x is on the grid of the result, out on that of the source
      window = target_window(i, out, x);
      if (is_even(out, x)) {
        windows.divisor *= x < out ? out / x : 1;
      } else {
        windows.weighted = true;
      }
    }
  }
  return windows;
}

// How much cell i of x counts in a gradient, where that isn't the same for all.
template <class T>
__device__ compute_t<T> weight_at(const LevelResampleParams<T>& p, int axis, uint32_t i) {
  const uint32_t x = static_cast<uint32_t>(p.x.grid[axis]), out = static_cast<uint32_t>(p.out.grid[axis]);
  return is_even(out, x) ? 1 : compute_t<T>(1) / static_cast<compute_t<T>>(source_count(i, out, x));
}

template <int V, class T>
__device__ void add_source(const LevelResampleParams<T>& p, const Windows& windows, const T* x, uint32_t t, uint32_t h,
                           uint32_t w, compute_t<T> (&sum)[V]) {
  compute_t<T> value[V];
  load_pack(x + t * p.x.stride[2] + h * p.x.stride[3] + w * p.x.stride[4], value);
  compute_t<T> weight = 1;
  if (windows.weighted) weight = weight_at(p, 0, t) * weight_at(p, 1, h) * weight_at(p, 2, w);
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] += value[v] * weight;
}

template <int V, class T>
__device__ void write(const LevelResampleParams<T>& p, const Place& place, const Windows& windows,
                      compute_t<T> (&sum)[V]) {
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] /= static_cast<compute_t<T>>(windows.divisor);
  store_pack(p.out.data + offset_of(place, p.out), sum);
}

// kernels

// I: an integer that holds the number of items.
template <int V, class I, class T>
__global__ void level_resample(const __grid_constant__ LevelResampleParams<T> p, I items) {
  for (I i = static_cast<I>(blockIdx.x) * blockDim.x + threadIdx.x; i < items;
       i += static_cast<I>(gridDim.x) * blockDim.x) {
    const Place place = place_of<V>(i, p.out.grid, p.channels, p.channels_last);
    const Windows windows = windows_of(p, place);
    const T* x = p.x.data + place.batch * p.x.stride[0] + place.channel * p.x.stride[1];
    compute_t<T> sum[V] = {};
    for (uint32_t t = windows.axis[0].begin; t < windows.axis[0].end; ++t)
      for (uint32_t h = windows.axis[1].begin; h < windows.axis[1].end; ++h)
        for (uint32_t w = windows.axis[2].begin; w < windows.axis[2].end; ++w)
          add_source(p, windows, x, t, h, w, sum);
    write(p, place, windows, sum);
  }
}

// A block has blockDim.x items; the threads along y share out the cells of each one's window.
template <int V, class T>
__global__ void level_resample_shared(const __grid_constant__ LevelResampleParams<T> p, uint32_t items) {
  using C = compute_t<T>;
  C* const partial = dynamic_shared<C>();  // (kThreads, V)
  for (uint32_t first = blockIdx.x * blockDim.x; first < items; first += gridDim.x * blockDim.x) {
    const uint32_t i = first + threadIdx.x;
    const Place place = place_of<V>(i < items ? i : first, p.out.grid, p.channels, p.channels_last);
    const Windows windows = windows_of(p, place);
    const T* x = p.x.data + place.batch * p.x.stride[0] + place.channel * p.x.stride[1];
    const uint32_t height = windows.axis[1].end - windows.axis[1].begin;
    const uint32_t width = windows.axis[2].end - windows.axis[2].begin;
    const uint32_t cells = (windows.axis[0].end - windows.axis[0].begin) * height * width;
    C sum[V] = {};
    for (uint32_t cell = threadIdx.y; cell < cells; cell += blockDim.y) {
      const uint32_t w = cell % width, h = cell / width % height, t = cell / width / height;
      add_source(p, windows, x, windows.axis[0].begin + t, windows.axis[1].begin + h, windows.axis[2].begin + w, sum);
    }
    C* const mine = partial + (threadIdx.y * blockDim.x + threadIdx.x) * V;
#pragma unroll
    for (int v = 0; v < V; ++v) mine[v] = sum[v];
    for (uint32_t half = blockDim.y / 2; half > 0; half /= 2) {
      __syncthreads();
      if (threadIdx.y < half) {
#pragma unroll
        for (int v = 0; v < V; ++v) mine[v] += mine[half * blockDim.x * V + v];
      }
    }
    if (threadIdx.y == 0 && i < items) {
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = mine[v];
      write(p, place, windows, sum);
    }
    __syncthreads();
  }
}

constexpr int64_t kMostBlocks = 1 << 16;
constexpr int64_t kFewNumbers = 1 << 18;  // fewer leave a large device idle
constexpr int64_t kLargeWindow = 16;
constexpr int kAcross = 8;  // items of a block that shares out windows

unsigned blocks(int64_t count, int64_t per_block) {
  const int64_t wanted = ceil_div(count, per_block);
  return static_cast<unsigned>(wanted < kMostBlocks ? wanted : kMostBlocks);
}

template <int V, class T>
cudaError_t launch_packs(const LevelResampleParams<T>& p, cudaStream_t stream) {
  const int64_t cells = p.out.grid[0] * p.out.grid[1] * p.out.grid[2];
  const int64_t numbers = p.batch * cells * p.channels, items = numbers / V;
  const int64_t window = p.x.grid[0] * p.x.grid[1] * p.x.grid[2] / cells;
  if (numbers < kFewNumbers && window >= kLargeWindow) {  // the same for both orders of memory, so that the sums are
    const dim3 shape(kAcross, kThreads / kAcross);
    const size_t shared = kThreads * V * sizeof(compute_t<T>);
    return launch(level_resample_shared<V, T>, blocks(items, kAcross), shape, shared, stream, p, items);
  }
  if (items < (int64_t{1} << 31))
    return launch(level_resample<V, uint32_t, T>, blocks(items, kThreads), kThreads, 0, stream, p, items);
  return launch(level_resample<V, uint64_t, T>, blocks(items, kThreads), kThreads, 0, stream, p, items);
}

}  // namespace

// launchers

template <class T>
cudaError_t level_resample_cuda(const LevelResampleParams<T>& p, cudaStream_t stream) {
  if (p.batch * p.channels == 0) return cudaSuccess;
  constexpr int V = kPack<T>;
  const bool packs = p.channels_last && p.channels % V == 0 && fits<V>(p.x.data, p.x.stride) &&
                     fits<V>(p.out.data, p.out.stride);
  return packs ? launch_packs<V>(p, stream) : launch_packs<1>(p, stream);
}

#define PYRAMID_INSTANTIATE(T) template cudaError_t level_resample_cuda<T>(const LevelResampleParams<T>&, cudaStream_t);
PYRAMID_INSTANTIATE(float)
PYRAMID_INSTANTIATE(double)
PYRAMID_INSTANTIATE(BFloat16)
PYRAMID_INSTANTIATE(Half)
#undef PYRAMID_INSTANTIATE

}  // namespace pyramid::kernels
