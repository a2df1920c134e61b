// A cell of a level as the GPU reads it: windows in 32-bit integers, made where they are used. For level_resample and
// pyramid_sum. A thread has a cell of the target, in V adjacent channels or, in planar memory, in one.
#pragma once

#include "convert.cuh"
#include "level_resample.h"

namespace pyramid::kernels {

using DeviceWindow = WindowOf<uint32_t>;

// Where a thread's numbers are.
struct Place {
  int64_t batch, channel;
  uint32_t cell[3];  // t, h, w of the target
};

// Item i: channels last (b, t, h, w, channels / V), planar (b, c, t, h, w). I holds the number of items.
template <int V, class I>
__device__ Place place_of(I i, const int64_t (&grid)[3], int64_t channels, bool channels_last) {
  Place place;
  if (channels_last) {
    const I groups = static_cast<I>(channels / V);
    place.channel = static_cast<int64_t>(i % groups) * V;
    i /= groups;
  }
#pragma unroll
  for (int axis = 2; axis >= 0; --axis) {
    const I size = static_cast<I>(grid[axis]);
    place.cell[axis] = static_cast<uint32_t>(i % size);
    i /= size;
  }
  if (!channels_last) {
    place.channel = static_cast<int64_t>(i % static_cast<I>(channels));
    i /= static_cast<I>(channels);
  }
  place.batch = static_cast<int64_t>(i);
  return place;
}

template <class T>
__device__ int64_t offset_of(const Place& place, const LevelTarget<T>& target) {
  return place.batch * target.stride[0] + place.channel * target.stride[1] + place.cell[0] * target.stride[2] +
         place.cell[1] * target.stride[3] + place.cell[2] * target.stride[4];
}

// sum += the mean over the source window of a cell. x: of the batch and the channel.
template <int V, class T>
__device__ void add_mean(const LevelSource<T>& source, const T* x, const int64_t (&grid)[3], const Place& place,
                         compute_t<T> (&sum)[V]) {
  using C = compute_t<T>;
  DeviceWindow window[3];
  uint32_t count = 1;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    window[axis] = source_window<uint32_t>(place.cell[axis], static_cast<uint32_t>(source.grid[axis]),
                                           static_cast<uint32_t>(grid[axis]));
    count *= window[axis].end - window[axis].begin;
  }
  C mean[V] = {}, value[V];
  for (uint32_t t = window[0].begin; t < window[0].end; ++t) {
    for (uint32_t h = window[1].begin; h < window[1].end; ++h) {
      const T* row = x + t * source.stride[2] + h * source.stride[3];
      for (uint32_t w = window[2].begin; w < window[2].end; ++w) {
        load_pack(row + w * source.stride[4], value);
#pragma unroll
        for (int v = 0; v < V; ++v) mean[v] += value[v];
      }
    }
  }
#pragma unroll
  for (int v = 0; v < V; ++v) sum[v] += count == 1 ? mean[v] : mean[v] / static_cast<C>(count);
}

// Whether V channels of every cell can be read or written at once.
template <int V, class T>
bool fits(const T* data, const int64_t (&stride)[5]) {
  bool aligned = stride[1] == 1 && reinterpret_cast<uintptr_t>(data) % (sizeof(T) * V) == 0;
  for (int i = 0; i < 5; ++i) aligned = aligned && (i == 1 || stride[i] % V == 0);
  return aligned;
}

template <class T>
constexpr int kPack = 16 / sizeof(T);

constexpr int kThreads = 256;

}  // namespace pyramid::kernels
