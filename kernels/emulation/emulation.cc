#include "kernels/emulation/emulation.h"

#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "common/bytes.h"
#include "kernels/emulation/runtime.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

namespace icefield::emulation {
namespace {

constexpr std::size_t kStackBytes = 128 << 10;
constexpr unsigned kWarpSize = 32;

enum class State { kReady, kAtWarp, kAtBlock, kDone };

struct Copy {
  void* to;
  const void* from;
};
struct Fiber {
  ucontext_t context;
  std::unique_ptr<std::byte[]> stack{new std::byte[kStackBytes]};
  State state = State::kDone;
  unsigned exchanges = 0;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  void* sanitizer_stack = nullptr;
};

struct Warp {
  alignas(16) std::byte slots[2][kWarpSize][kSlotBytes];
};

struct Machine {
  Order order = Order::kForward;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  AlignedBytes shared;
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler;
  unsigned current = 0;
  bool any = false;         // of any_thread_of_block, being gathered
  bool any_before = false;  // and its last result
  const void* main_stack = nullptr;
  std::size_t main_stack_bytes = 0;
  void* sanitizer_stack = nullptr;
  std::vector<std::function<void()>>* recording = nullptr;
  std::vector<std::function<void()>> submitted;  // and not done: nobody has waited
};
Machine machine;

Fiber& current() { return *machine.fibers[machine.current]; }

// The address sanitizer must know about every change of stacks.
void before_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack,
                   [[maybe_unused]] std::size_t bytes) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(save, stack, bytes);
#endif
}
void after_switch([[maybe_unused]] void* saved, [[maybe_unused]] bool from_main) {
#ifdef __SANITIZE_ADDRESS__
  const void* stack = nullptr;
  std::size_t bytes = 0;
  __sanitizer_finish_switch_fiber(saved, &stack, &bytes);
  if (from_main) {
    machine.main_stack = stack;
    machine.main_stack_bytes = bytes;
  }
#endif
}

void run_body() {
  after_switch(nullptr, true);
  (*machine.body)();
  Fiber& fiber = current();
  fiber.state = State::kDone;
  before_switch(nullptr, machine.main_stack, machine.main_stack_bytes);
  swapcontext(&fiber.context, &machine.scheduler);
}

void wait(State state) {
  Fiber& fiber = current();
  fiber.state = state;
  before_switch(&fiber.sanitizer_stack, machine.main_stack, machine.main_stack_bytes);
  swapcontext(&fiber.context, &machine.scheduler);
  after_switch(fiber.sanitizer_stack, true);
}

void resume(unsigned thread) {
  machine.current = thread;
  thread_index = {.x = thread};
  Fiber& fiber = current();
  before_switch(&machine.sanitizer_stack, fiber.stack.get(), kStackBytes);
  swapcontext(&machine.scheduler, &fiber.context);
  after_switch(machine.sanitizer_stack, false);
}

void start(unsigned thread) {
  Fiber& fiber = *machine.fibers[thread];
  ICE_CHECK(getcontext(&fiber.context) == 0);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, run_body, 0);
  fiber.state = State::kReady;
  fiber.exchanges = 0;
  fiber.open.clear();
  fiber.groups.clear();
}

unsigned in_order(unsigned i, unsigned count) {
  return machine.order == Order::kForward ? i : count - 1 - i;
}

unsigned count_threads(unsigned begin, unsigned end, State state) {
  unsigned count = 0;
  for (unsigned t = begin; t < end; ++t) count += machine.fibers[t]->state == state ? 1u : 0u;
  return count;
}

void release(unsigned begin, unsigned end, State state) {
  for (unsigned t = begin; t < end; ++t) {
    if (machine.fibers[t]->state == state) machine.fibers[t]->state = State::kReady;
  }
}

// Runs a warp until its threads are done or wait for the block.
void run_warp(unsigned begin, unsigned end) {
  while (true) {
    for (unsigned i = 0; i < end - begin; ++i) {
      const unsigned t = begin + in_order(i, end - begin);
      if (machine.fibers[t]->state == State::kReady) resume(t);
    }
    const unsigned waiting = count_threads(begin, end, State::kAtWarp);
    if (waiting == 0) return;
    ICE_CHECK(waiting == end - begin);  // else some lanes left before a collective operation
    release(begin, end, State::kAtWarp);
  }
}

void run_block(unsigned threads) {
  for (unsigned t = 0; t < threads; ++t) start(t);
  const unsigned warps = (threads + kWarpSize - 1) / kWarpSize;
  while (true) {
    for (unsigned i = 0; i < warps; ++i) {
      const unsigned begin = in_order(i, warps) * kWarpSize;
      run_warp(begin, std::min(begin + kWarpSize, threads));
    }
    if (count_threads(0, threads, State::kDone) == threads) return;
    machine.any_before = std::exchange(machine.any, false);
    release(0, threads, State::kAtBlock);
  }
}

void run_grid(Index3 grid, unsigned threads, std::size_t shared_bytes,
              const std::function<void()>& body) {
  while (machine.fibers.size() < threads) machine.fibers.push_back(std::make_unique<Fiber>());
  machine.warps.resize((threads + kWarpSize - 1) / kWarpSize);
  machine.body = &body;
  block_size = {.x = threads, .y = 1, .z = 1};
  grid_size = grid;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = {.x = x, .y = y, .z = z};
        // New memory each time, so that the address sanitizer sees what goes beyond its end.
        machine.shared = AlignedBytes(shared_bytes, std::byte{0xff});
        run_block(threads);
      }
    }
  }
}

}  // namespace

void set_order(Order order) { machine.order = order; }

void submit(std::function<void()> work) {
  if (machine.recording != nullptr) {
    machine.recording->push_back(std::move(work));
  } else {
    machine.submitted.push_back(std::move(work));
  }
}

void finish_submitted() {
  ICE_CHECK(machine.recording == nullptr);  // a capture must not wait
  for (const auto& work : std::exchange(machine.submitted, {})) work();
}

void launch(Index3 grid, unsigned threads, std::size_t shared_bytes, std::function<void()> body) {
  submit([=, body = std::move(body)] { run_grid(grid, threads, shared_bytes, body); });
}

std::byte* shared_memory() { return machine.shared.data(); }
void wait_for_block() { wait(State::kAtBlock); }
void wait_for_warp() { wait(State::kAtWarp); }

bool any_thread_of_block(bool value) {
  machine.any |= value;
  wait(State::kAtBlock);
  return machine.any_before;
}

const std::byte* exchange(const void* bytes, std::size_t size) {
  Fiber& fiber = current();
  auto& slots = machine.warps[machine.current / kWarpSize].slots[fiber.exchanges++ & 1u];
  std::memcpy(slots[machine.current % kWarpSize], bytes, size);
  wait(State::kAtWarp);
  return &slots[0][0];
}

void copy_later(void* to, const void* from) {
  ICE_CHECK(reinterpret_cast<std::uintptr_t>(to) % 16 == 0);
  ICE_CHECK(reinterpret_cast<std::uintptr_t>(from) % 16 == 0);
  current().open.push_back({to, from});
}
void close_copy_group() {
  Fiber& fiber = current();
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}
void finish_copy_groups(int left_open) {
  Fiber& fiber = current();
  while (fiber.groups.size() > static_cast<std::size_t>(left_open)) {
    for (const Copy& copy : fiber.groups.front()) std::memcpy(copy.to, copy.from, 16);
    fiber.groups.pop_front();
  }
}

}  // namespace icefield::emulation

// ------------------------------------------------------------------------------------ runtime

using icefield::emulation::machine;

struct CUgraph_st {
  std::vector<std::function<void()>> work;
};
struct CUgraphExec_st {
  std::vector<std::function<void()>> work;
};

cudaError_t cudaMalloc(void** at, std::size_t bytes) {
  ICE_CHECK(machine.recording == nullptr);  // a capture must not allocate
  *at = ::operator new (bytes, std::align_val_t{256});
  return cudaSuccess;
}
cudaError_t cudaFree(void* at) {
  icefield::emulation::finish_submitted();
  ::operator delete (at, std::align_val_t{256});
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  icefield::emulation::finish_submitted();
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** at, std::size_t bytes) { return cudaMalloc(at, bytes); }
cudaError_t cudaFreeHost(void* at) { return cudaFree(at); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, cudaStream_t) {
  icefield::emulation::submit([=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* at, int value, std::size_t bytes, cudaStream_t) {
  icefield::emulation::submit([=] { std::memset(at, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t, int) {
  machine.recording = new std::vector<std::function<void()>>;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = new CUgraph_st{std::move(*machine.recording)};
  delete std::exchange(machine.recording, nullptr);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = new CUgraphExec_st{graph->work};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& work : exec->work) icefield::emulation::submit(work);
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
