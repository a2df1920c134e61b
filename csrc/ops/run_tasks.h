// Tasks of a CPU kernel that needs memory of its own, shared out among torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>

#include "check.h"

namespace pyramid::ops {

// kernel(begin, end) does the tasks [begin, end) and returns false where there was no memory for them.
template <class Kernel>
void run_tasks(const char* op, int64_t num_tasks, const Kernel& kernel) {
  std::atomic<bool> enough_memory{true};
  torch::stable::parallel_for(0, num_tasks, 1, [&](int64_t begin, int64_t end) {
    if (!kernel(begin, end)) enough_memory = false;
  });
  PYRAMID_CHECK(enough_memory, op, ": out of memory for the workspace of a thread");
}

}  // namespace pyramid::ops
