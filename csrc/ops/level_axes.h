// The windows of three axes in tables, for the CPU kernels of level_resample and pyramid_sum.
#pragma once

#include <vector>

#include "kernels/level_resample.h"

namespace pyramid::ops {

class LevelAxes {
 public:
  // Forward: from the grid `source` to `target`. Adjoint: from a gradient on the grid `source` of the result to the
  // grid `target` of what was resampled.
  LevelAxes(const int64_t (&source)[3], const int64_t (&target)[3], bool adjoint) {
    for (int axis = 0; axis < 3; ++axis) {
      const int64_t from = source[axis], to = target[axis];
      std::vector<kernels::Window>& windows = windows_[axis];
      std::vector<double>& weights = weights_[axis];
      int64_t divisor = 0;
      for (int64_t i = 0; i < to; ++i)
        windows.push_back(adjoint ? kernels::target_window(i, to, from) : kernels::source_window(i, from, to));
      if (adjoint && kernels::is_even(to, from)) {
        divisor = from < to ? to / from : 1;
      } else if (adjoint) {
        divisor = 1;
        for (int64_t i = 0; i < from; ++i)
          weights.push_back(1.0 / static_cast<double>(kernels::source_count(i, to, from)));
      }
      int64_t length = windows[0].end - windows[0].begin;
      for (const kernels::Window& window : windows)
        if (window.end - window.begin != length) length = 0;
      axes_[axis] = {windows.data(), weights.empty() ? nullptr : weights.data(), divisor, length};
    }
  }
  LevelAxes(const LevelAxes&) = delete;  // axes_ points into the vectors
  LevelAxes& operator=(const LevelAxes&) = delete;

  const kernels::LevelAxis* data() const { return axes_; }

 private:
  std::vector<kernels::Window> windows_[3];
  std::vector<double> weights_[3];
  kernels::LevelAxis axes_[3];
};

}  // namespace pyramid::ops
