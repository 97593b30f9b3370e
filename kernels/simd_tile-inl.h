// kernels/simd_tile-inl.h — AMX: eight tile registers of 16 rows of up to 64 bytes, and products
// of tiles of bf16. Included once per instruction set, after simd-inl.h; in the namespace of the
// target. Highway knows nothing of tiles, nor does the compiler: it keeps nothing in them.
#if defined(ICEFIELD_KERNELS_SIMD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ICEFIELD_KERNELS_SIMD_TILE_INL_H_
#undef ICEFIELD_KERNELS_SIMD_TILE_INL_H_
#else
#define ICEFIELD_KERNELS_SIMD_TILE_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET <= HWY_AVX3_DL  // of x86
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {

constexpr int kTileHeight = 16;
constexpr int kTileDims = 32;  // bf16 values of a tile's row

using WordTag = hn::Repartition<std::uint16_t, FloatTag>;

// While it lives this thread has the tiles, all of 16 rows; those with numbers 2, 3 and 5 have 32
// bytes to a row. Afterwards they are as if never used, so that Linux does not keep 8 KB for the
// thread when it switches. Requires tiles_usable().
class TileUse {
 public:
  HWY_INLINE TileUse() {
    alignas(64) static constexpr Config kConfig;
    asm volatile("ldtilecfg %0" : : "m"(kConfig));
  }
  HWY_INLINE ~TileUse() { asm volatile("tilerelease"); }
  TileUse(const TileUse&) = delete;
  TileUse& operator=(const TileUse&) = delete;

 private:
  struct Config {
    std::uint8_t palette = 1;
    std::uint8_t start_row = 0;
    std::uint8_t reserved[14] = {};
    std::uint16_t row_bytes[16] = {64, 64, 32, 32, 64, 32, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
};

// Tile kTile from or to 16 rows that are `stride` bytes apart.
template <int kTile>
HWY_INLINE void load_tile(const void* from, std::int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
HWY_INLINE void store_tile(void* to, std::int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
HWY_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}

// sum[i][n] += Σ_p a[i][2p] b[p][2n] + a[i][2p + 1] b[p][2n + 1]: fp32 [16, 16] from bf16 [16, 32];
// denormals count as zero.
template <int kSum, int kA, int kB>
HWY_INLINE void add_tile_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSum), "i"(kA), "i"(kB));
}

// bf16 of `low`, then of `high`, rounded to nearest even; denormals become zero.
HWY_INLINE hn::Vec<WordTag> pack_bf16(FloatVec low, FloatVec high) {
  hn::Vec<WordTag> packed;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(packed.raw) : "v"(low.raw), "v"(high.raw));
  return packed;
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#endif  // include guard, toggled per target
