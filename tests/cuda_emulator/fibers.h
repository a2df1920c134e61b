// The machine of the emulator: the threads of a block as fibers, their meetings, blocks in an order drawn by chance. See
// cuda_runtime.h.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

extern char __start_emulated_shared[] __attribute__((weak, visibility("hidden")));
extern char __stop_emulated_shared[] __attribute__((weak, visibility("hidden")));

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr size_t count() const { return static_cast<size_t>(x) * y * z; }
};

enum cudaError_t { cudaSuccess, cudaErrorInvalidValue, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kMostShared = 99 << 10;  // of a block on every architecture from sm_80 on
constexpr size_t kStack = 256 << 10, kGuard = 4096;
constexpr unsigned char kNan = 0xff;  // NaN in all four floating types

struct Copy {
  void* target;
  const void* source;  // null: zeros
  int size, group;
};

struct Warp;
struct Thread {
  dim3 index;
  int number;
  bool done;
  const char* waits_for;  // null: it runs
  unsigned mask;
  void* data;  // what it brings to the collective
  int line;    // of a __syncthreads
  int groups;  // of asynchronous copies committed so far
  std::vector<Copy> copies;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
};

inline std::vector<std::unique_ptr<Thread>> threads;
inline std::vector<Thread*> runnable;
inline Thread* current;
inline size_t num_threads, num_done, num_at_barrier;
inline dim3 block_index, block_size, grid_size;
inline char* dynamic_memory;
inline std::function<void()> body;
inline ucontext_t home;
inline std::mt19937 chance;
inline std::string message;
inline cudaError_t last_error = cudaSuccess;

inline std::string name(const Thread& t) {
  char text[160];
  std::snprintf(text, sizeof text, "block (%u, %u, %u) thread %d (warp %d lane %d)", block_index.x, block_index.y,
                block_index.z, t.number, t.number / kWarp, t.number % kWarp);
  return text;
}

// The launch ends here; the other fibers are left where they stand.
[[noreturn]] inline void fail(const std::string& what) {
  if (message.empty()) message = what;
  last_error = cudaErrorLaunchFailure;
  setcontext(&home);
  std::abort();
}

// The next fiber, by chance; back home where there is none.
inline void leave() {
  Thread* const self = current;
  ucontext_t* next = &home;
  if (!runnable.empty()) {
    std::swap(runnable[chance() % runnable.size()], runnable.back());
    current = runnable.back();
    runnable.pop_back();
    if (current == self) return;
    next = &current->context;
  }
  swapcontext(&self->context, next);
}

inline void wake(Thread& thread) {
  thread.waits_for = nullptr;
  runnable.push_back(&thread);
}

// All lanes of the mask meet; the last of them calls finish(data of 32 lanes, null where not in the mask).
template <class Finish>
void meet(const char* what, unsigned mask, void* data, const Finish& finish) {
  Thread& self = *current;
  const int first = self.number / kWarp * kWarp, lane = self.number % kWarp;
  if (!(mask >> lane & 1)) fail(name(self) + ": " + what + ": the mask does not name this lane");
  void* all[kWarp] = {};
  bool complete = true;
  for (int i = 0; i < kWarp; ++i) {
    if (i == lane) all[i] = data;
    if (i == lane || !(mask >> i & 1)) continue;
    if (first + i >= static_cast<int>(num_threads) || threads[first + i]->done)
      fail(name(self) + ": " + what + ": lane " + std::to_string(i) + " of the mask has returned or does not exist");
    Thread& other = *threads[first + i];
    if (!other.waits_for) {
      complete = false;
    } else if (std::strcmp(other.waits_for, what) != 0 || other.mask != mask) {
      fail(name(self) + " is at " + what + ", but lane " + std::to_string(i) + " at " + other.waits_for);
    }
    all[i] = other.data;
  }
  if (complete) {
    finish(all);
    for (int i = 0; i < kWarp; ++i)
      if (i != lane && (mask >> i & 1)) wake(*threads[first + i]);
    runnable.push_back(&self);
  } else {
    self.waits_for = what;
    self.mask = mask;
    self.data = data;
  }
  leave();
}

inline void barrier(int line) {
  Thread& self = *current;
  self.line = line;
  self.waits_for = "__syncthreads";
  self.mask = 0;
  if (++num_at_barrier == num_threads) {
    for (size_t i = 0; i < num_threads; ++i) {
      if (threads[i]->line != line)
        fail(name(self) + " is at the __syncthreads of line " + std::to_string(line) + ", but thread " +
             std::to_string(i) + " at that of line " + std::to_string(threads[i]->line));
      wake(*threads[i]);
    }
    num_at_barrier = 0;
  }
  leave();
}

inline void enter() {
  body();
  current->done = true;
  ++num_done;
  leave();
  std::abort();  // nobody comes back
}

inline void run_block() {
  for (char* p = __start_emulated_shared; p != __stop_emulated_shared; ++p) *p = static_cast<char>(kNan);
  runnable.clear();
  num_done = num_at_barrier = 0;
  for (size_t i = 0; i < num_threads; ++i) {
    if (threads.size() <= i) {
      threads.push_back(std::make_unique<Thread>());
      threads[i]->stack.reset(new char[kStack]);
    }
    Thread& t = *threads[i];
    t.index = dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
    t.number = static_cast<int>(i);
    t.done = false;
    t.waits_for = nullptr;
    t.groups = 0;
    t.copies.clear();
    getcontext(&t.context);
    t.context.uc_stack.ss_sp = t.stack.get();
    t.context.uc_stack.ss_size = kStack;
    makecontext(&t.context, enter, 0);
    runnable.push_back(&t);
  }
  std::swap(runnable[chance() % runnable.size()], runnable.back());
  current = runnable.back();
  runnable.pop_back();
  swapcontext(&home, &current->context);
  if (last_error != cudaSuccess || num_done == num_threads) return;
  for (size_t i = 0; i < num_threads; ++i)
    if (threads[i]->waits_for)
      message = name(*threads[i]) + " waits at " + threads[i]->waits_for + " for threads that never come";
  last_error = cudaErrorLaunchFailure;
}

inline void run_grid(dim3 grid, dim3 block, size_t shared, std::function<void()> kernel) {
  if (last_error != cudaSuccess) return;
  const size_t threads_wanted = block.count();
  if (grid.count() == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || threads_wanted == 0 ||
      threads_wanted > 1024 || block.z > 64 || shared > kMostShared) {
    message = "a grid, block or shared memory beyond the limits of the device";
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  body = std::move(kernel);
  grid_size = grid;
  block_size = block;
  num_threads = threads_wanted;
  std::vector<size_t> order(grid.count());
  for (size_t i = 0; i < order.size(); ++i) std::swap(order[i] = i, order[chance() % (i + 1)]);
  const std::unique_ptr<char[]> memory(new char[shared + kGuard + 128]);
  dynamic_memory = memory.get() + (128 - reinterpret_cast<uintptr_t>(memory.get()) % 128);
  for (const size_t i : order) {
    block_index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    std::memset(dynamic_memory, kNan, shared + kGuard);
    run_block();
    for (size_t k = shared; k < shared + kGuard && last_error == cudaSuccess; ++k)
      if (static_cast<unsigned char>(dynamic_memory[k]) != kNan) {
        message = "a write " + std::to_string(k - shared) + " bytes behind dynamic shared memory";
        last_error = cudaErrorLaunchFailure;
      }
    if (last_error != cudaSuccess) return;
  }
}

// A value of each lane for a value of each lane, by choose(lane): -1 keeps its own.
template <class T, class Choose>
T shuffle(const char* what, unsigned mask, T value, const Choose& choose) {
  struct Exchange {
    T in, out;
    int from;
  } mine{value, value, choose(current->number % kWarp)};
  meet(what, mask, &mine, [&](void** all) {
    for (int i = 0; i < kWarp; ++i) {
      if (!all[i]) continue;
      Exchange& e = *static_cast<Exchange*>(all[i]);
      if (e.from < 0 || e.from >= kWarp) continue;
      if (!all[e.from]) fail(std::string(what) + ": lane " + std::to_string(i) + " reads a lane outside the mask");
      e.out = static_cast<Exchange*>(all[e.from])->in;
    }
  });
  return mine.out;
}

}  // namespace emulator
