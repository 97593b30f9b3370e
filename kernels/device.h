// kernels/device.h — the words that device code is written in. The .cu files are compiled by nvcc,
// and as C++ for the emulation of tests: each word here has both meanings.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "common/float_bits.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define ICE_KERNEL __global__ void
#define ICE_DEVICE __device__ __forceinline__
#define ICE_UNROLL _Pragma("unroll")
#else
#include "kernels/emulation/words.h"
#endif

namespace icefield::gpu {

constexpr float kMinusInfinity = -__builtin_huge_valf();

#ifdef __CUDACC__
constexpr unsigned kAllLanes = 0xffffffffu;

ICE_DEVICE std::byte* shared_memory() {
  extern __shared__ uint4 icefield_shared[];
  return reinterpret_cast<std::byte*>(icefield_shared);
}

ICE_DEVICE void sync_threads() { __syncthreads(); }
ICE_DEVICE void sync_warp() { __syncwarp(); }
ICE_DEVICE bool any_thread(bool value) { return __syncthreads_or(value) != 0; }
// Writes before it are seen by other blocks before writes after it.
ICE_DEVICE void fence() { __threadfence(); }

template <class T>
ICE_DEVICE T shuffle(T value, int lane) {
  return __shfl_sync(kAllLanes, value, lane);
}
template <class T>
ICE_DEVICE T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(kAllLanes, value, lanes);
}
template <class T>
ICE_DEVICE T shuffle_up(T value, int lanes) {  // lanes below `lanes` get their own value
  return __shfl_up_sync(kAllLanes, value, static_cast<unsigned>(lanes));
}
ICE_DEVICE unsigned ballot(bool value) { return __ballot_sync(kAllLanes, value); }

ICE_DEVICE int dot4(int a, int b, int sum) { return __dp4a(a, b, sum); }
ICE_DEVICE int count_bits(std::uint32_t bits) { return __popc(bits); }
ICE_DEVICE int count_bits(std::uint64_t bits) { return __popcll(bits); }
ICE_DEVICE int lowest_bit(std::uint32_t bits) { return __ffs(static_cast<int>(bits)) - 1; }

ICE_DEVICE float fp16_value(Fp16 bits) { return __half2float(__ushort_as_half(bits)); }
ICE_DEVICE float bf16_value(Bf16 bits) {
  return __uint_as_float(static_cast<unsigned>(bits) << 16);
}
// Two floats as bf16, round to nearest even, the first in the low half.
ICE_DEVICE unsigned pack_bf16(float low, float high) {
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
ICE_DEVICE float exponential(float x) { return __expf(x); }
ICE_DEVICE float logarithm(float x) { return logf(x); }
ICE_DEVICE float square_root(float x) {  // within one unit in the last place
  float root;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
}
// Exactly these operations, never fused: the rounded queries must be those of every processor.
ICE_DEVICE float exact_product(float a, float b) { return __fmul_rn(a, b); }
ICE_DEVICE float exact_quotient(float a, float b) { return __fdiv_rn(a, b); }
ICE_DEVICE int round_to_even(float x) { return __float2int_rn(x); }

// Data that the kernel does not write.
template <class T>
ICE_DEVICE T read(const T* at) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(__ldg(reinterpret_cast<const unsigned long long*>(at)));
  } else {
    return __ldg(at);
  }
}
template <class T>
ICE_DEVICE T atomic_add(T* at, T value) {
  return atomicAdd(at, value);
}
ICE_DEVICE void atomic_or(unsigned* at, unsigned bits) { atomicOr(at, bits); }

ICE_DEVICE void copy_async16(void* shared, const void* global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(global)
               : "memory");
}
ICE_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeftOpen>
ICE_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeftOpen) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
ICE_DEVICE void load_matrices(unsigned r[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
ICE_DEVICE void load_matrices_transposed(unsigned r[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
               : "memory");
}
// c [16, 8] += a [16, 16] b [16, 8] in bf16, sums in float.
ICE_DEVICE void multiply_add(float c[4], const unsigned a[4], unsigned b0, unsigned b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif

// ---- made of the words above

ICE_DEVICE int lane_index() { return static_cast<int>(threadIdx.x) % 32; }
ICE_DEVICE int warp_index() { return static_cast<int>(threadIdx.x) / 32; }
ICE_DEVICE int warp_count() { return static_cast<int>(blockDim.x) / 32; }
ICE_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
ICE_DEVICE int thread() { return static_cast<int>(threadIdx.x); }

ICE_DEVICE float max_of(float a, float b) { return a > b ? a : b; }

ICE_DEVICE float warp_sum(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}
ICE_DEVICE int warp_sum(int value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}
ICE_DEVICE float warp_max(float value) {
  for (int lanes = 16; lanes > 0; lanes /= 2) value = max_of(value, shuffle_xor(value, lanes));
  return value;
}

// w = (β²/2) Σ_j q_j² γ_j of one query row, by a warp.
ICE_DEVICE float variance_weight(const float* q, const float* gamma, int d_k, float beta) {
  float sum = 0;
  for (int j = lane_index(); j < d_k; j += 32) {
    const float x = read(q + j);
    sum += x * x * read(gamma + j);
  }
  return beta * beta / 2 * warp_sum(sum);
}
// The same of every query row [row_count, d_k], by a block, to shared memory.
ICE_DEVICE void variance_weights(const float* q, int row_count, const float* gamma, int d_k,
                                 float beta, float* weight) {
  for (int h = warp_index(); h < row_count; h += warp_count()) {
    const float w = variance_weight(q + static_cast<std::int64_t>(h) * d_k, gamma, d_k, beta);
    if (lane_index() == 0) weight[h] = w;
  }
}

// The sum over the threads before this one, and in `total` over all. `scratch` has 33 places; the
// block must not use it between calls without a barrier of its own.
ICE_DEVICE unsigned block_exclusive_sum(unsigned value, unsigned* scratch, unsigned& total) {
  unsigned inclusive = value;
  for (int lanes = 1; lanes < 32; lanes *= 2) {
    const unsigned before = shuffle_up(inclusive, lanes);
    if (lane_index() >= lanes) inclusive += before;
  }
  sync_threads();
  if (lane_index() == 31) scratch[warp_index()] = inclusive;
  sync_threads();
  unsigned before_warp = 0;
  total = 0;
  for (int w = 0; w < warp_count(); ++w) {
    if (w == warp_index()) before_warp = total;
    total += scratch[w];
  }
  return before_warp + inclusive - value;
}

// True in every thread of the last of `blocks` blocks that come here with this counter, which is
// left at 0 for the next launch. What the other blocks wrote before is then visible.
ICE_DEVICE bool is_last_block(unsigned* counter, unsigned blocks) {
  fence();
  bool last = false;
  sync_threads();
  if (thread() == 0) {
    last = atomic_add(counter, 1u) == blocks - 1;
    if (last) *counter = 0;
  }
  last = any_thread(last);
  if (last) fence();
  return last;
}

}  // namespace icefield::gpu
