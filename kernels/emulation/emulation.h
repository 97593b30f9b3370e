// kernels/emulation/emulation.h — runs CUDA kernels on the CPU, for tests where there is no GPU.
//
// Blocks run one after the other; the threads of a block are fibers that run until they wait at a
// barrier, so a missing barrier shows: it makes the result depend on the order, which tests turn
// round. Shared memory is poisoned before every block; asynchronous copies happen as late as they
// may; a barrier that not all threads reach stops the program. Slow, and says nothing about speed.
//
// Threads: one host thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

#include "common/check.h"

namespace icefield::emulation {

struct Index3 {
  unsigned x = 0, y = 0, z = 0;
};
inline Index3 thread_index, block_index, block_size, grid_size;

enum class Order { kForward, kBackward };  // of the threads between two barriers
void set_order(Order order);

// Runs `body` in every thread of every block; while a capture is on, records it instead.
void launch(Index3 grid, unsigned threads, std::size_t shared_bytes, std::function<void()> body);

// The stream: work is done when somebody waits, not before, or recorded for a graph. So a caller
// shows that changes memory too early.
void submit(std::function<void()> work);
void finish_submitted();

std::byte* shared_memory();
void wait_for_block();
void wait_for_warp();
bool any_thread_of_block(bool value);

// The bytes that every lane of the warp gave, [32] slots of kSlotBytes. All 32 lanes must call.
constexpr std::size_t kSlotBytes = 64;
const std::byte* exchange(const void* bytes, std::size_t size);
template <class T>
struct Lanes {
  const std::byte* slots;
  T operator[](unsigned lane) const {
    T value;
    std::memcpy(&value, slots + lane * kSlotBytes, sizeof value);
    return value;
  }
};
template <class T>
Lanes<T> exchange(const T& value) {
  static_assert(sizeof(T) <= kSlotBytes);
  return {exchange(&value, sizeof value)};
}

// Copies of 16 bytes that happen when they are waited for.
void copy_later(void* to, const void* from);
void close_copy_group();
void finish_copy_groups(int left_open);  // all but the last `left_open` groups

}  // namespace icefield::emulation
