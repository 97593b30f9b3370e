// kernels/emulation/words.h — kernels/device.h as C++: what the words mean on the emulated GPU.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "common/float_bits.h"
#include "kernels/emulation/emulation.h"
#include "kernels/emulation/runtime.h"

#define ICE_KERNEL void
#define ICE_DEVICE inline
#define ICE_UNROLL
#define __launch_bounds__(...)
#define threadIdx ::icefield::emulation::thread_index
#define blockIdx ::icefield::emulation::block_index
#define blockDim ::icefield::emulation::block_size
#define gridDim ::icefield::emulation::grid_size

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace icefield::gpu {

ICE_DEVICE std::byte* shared_memory() { return emulation::shared_memory(); }
ICE_DEVICE void sync_threads() { emulation::wait_for_block(); }
ICE_DEVICE void sync_warp() { emulation::wait_for_warp(); }
ICE_DEVICE bool any_thread(bool value) { return emulation::any_thread_of_block(value); }
ICE_DEVICE void fence() {}

inline unsigned emulated_lane() { return threadIdx.x % 32; }

template <class T>
ICE_DEVICE T shuffle(T value, int lane) {
  return emulation::exchange(value)[static_cast<unsigned>(lane) % 32];
}
template <class T>
ICE_DEVICE T shuffle_xor(T value, int lanes) {
  return emulation::exchange(value)[emulated_lane() ^ static_cast<unsigned>(lanes)];
}
template <class T>
ICE_DEVICE T shuffle_up(T value, int lanes) {
  const auto all = emulation::exchange(value);
  const unsigned lane = emulated_lane();
  return lane < static_cast<unsigned>(lanes) ? value : all[lane - static_cast<unsigned>(lanes)];
}
ICE_DEVICE unsigned ballot(bool value) {
  const auto all = emulation::exchange(value);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; ++lane) bits |= all[lane] ? 1u << lane : 0u;
  return bits;
}

ICE_DEVICE int dot4(int a, int b, int sum) {
  for (unsigned shift = 0; shift < 32; shift += 8) {
    sum += static_cast<std::int8_t>(static_cast<unsigned>(a) >> shift) *
           static_cast<std::int8_t>(static_cast<unsigned>(b) >> shift);
  }
  return sum;
}
ICE_DEVICE int count_bits(std::uint64_t bits) { return std::popcount(bits); }
ICE_DEVICE int lowest_bit(std::uint32_t bits) { return std::countr_zero(bits); }

ICE_DEVICE float fp16_value(Fp16 bits) { return fp16_to_float(bits); }
ICE_DEVICE float bf16_value(Bf16 bits) { return bf16_to_float(bits); }
ICE_DEVICE unsigned pack_bf16(float low, float high) {
  return static_cast<unsigned>(float_to_bf16(low)) | static_cast<unsigned>(float_to_bf16(high))
                                                         << 16;
}
ICE_DEVICE float exponential(float x) { return std::exp(x); }
ICE_DEVICE float logarithm(float x) { return std::log(x); }
ICE_DEVICE float square_root(float x) { return std::sqrt(x); }
ICE_DEVICE float exact_product(float a, float b) { return a * b; }
ICE_DEVICE float exact_quotient(float a, float b) { return a / b; }
ICE_DEVICE int round_to_even(float x) { return static_cast<int>(std::nearbyint(x)); }

template <class T>
ICE_DEVICE T read(const T* at) {
  ICE_CHECK(reinterpret_cast<std::uintptr_t>(at) % sizeof(T) == 0);  // as the hardware demands
  return *at;
}
template <class T>
ICE_DEVICE T atomic_add(T* at, T value) {
  const T before = *at;
  *at = static_cast<T>(before + value);
  return before;
}
ICE_DEVICE void atomic_or(unsigned* at, unsigned bits) { *at |= bits; }

ICE_DEVICE void copy_async16(void* shared, const void* global) {
  emulation::copy_later(shared, global);
}
ICE_DEVICE void copy_commit() { emulation::close_copy_group(); }
template <int kLeftOpen>
ICE_DEVICE void copy_wait() {
  emulation::finish_copy_groups(kLeftOpen);
}

inline void emulated_load_matrices(unsigned r[4], const void* row, bool transposed) {
  ICE_CHECK(reinterpret_cast<std::uintptr_t>(row) % 16 == 0);
  const auto rows = emulation::exchange(row);
  const unsigned lane = emulated_lane();
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    unsigned packed = 0;
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned near = lane / 4;
      const unsigned far = lane % 4 * 2 + half;
      const unsigned i = transposed ? far : near;
      const unsigned j = transposed ? near : far;
      const void* at = rows[matrix * 8 + i];
      packed |= static_cast<unsigned>(static_cast<const std::uint16_t*>(at)[j]) << (16 * half);
    }
    r[matrix] = packed;
  }
  sync_warp();  // no lane writes to the rows before all have read
}
ICE_DEVICE void load_matrices(unsigned r[4], const void* row) {
  emulated_load_matrices(r, row, false);
}
ICE_DEVICE void load_matrices_transposed(unsigned r[4], const void* row) {
  emulated_load_matrices(r, row, true);
}

// The fragments of mma.m16n8k16 as the PTX manual lays them out over the lanes.
ICE_DEVICE void multiply_add(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
  struct Operands {
    unsigned a[4], b[2];
  };
  const auto all = emulation::exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const auto half_of = [](unsigned word, unsigned half) {
    return bf16_to_float(static_cast<Bf16>(word >> (16 * half)));
  };
  const unsigned lane = emulated_lane();
  for (unsigned e = 0; e < 4; ++e) {
    const unsigned column = lane % 4 * 2 + e % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned from_a = lane / 4 * 4 + k % 8 / 2;  // row e / 2 * 8 + lane / 4
      const unsigned from_b = column * 4 + k % 8 / 2;
      const float x = half_of(all[from_a].a[e / 2 + k / 8 * 2], k % 2);
      const float y = half_of(all[from_b].b[k / 8], k % 2);
      c[e] += x * y;
    }
  }
}

}  // namespace icefield::gpu
