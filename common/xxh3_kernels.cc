// Compiled several times (common/CMakeLists.txt): ICEFIELD_XXH3_KERNEL names the table, the
// compiler's target flags decide which vector code of xxhash.h is used.
#define XXH_INLINE_ALL
#include "common/xxh3_kernels.h"

#include <xxhash.h>

namespace icefield::internal {
namespace {

std::uint64_t whole(const std::byte* data, std::size_t size, std::uint64_t seed) {
  return XXH3_64bits_withSeed(data, size, seed);
}

std::uint64_t pieces(std::span<const ConstByteSpan> pieces, std::uint64_t seed) {
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSeed(&state, seed);
  for (const ConstByteSpan piece : pieces) {
    XXH3_64bits_update(&state, piece.data(), piece.size());
  }
  return XXH3_64bits_digest(&state);
}

static_assert(sizeof(XXH3_state_t) == kXxh3StateBytes);

void reset(void* state, std::uint64_t seed) {
  auto* const typed = static_cast<XXH3_state_t*>(state);
  XXH3_INITSTATE(typed);
  XXH3_64bits_reset_withSeed(typed, seed);
}

void update(void* state, const std::byte* data, std::size_t size) {
  XXH3_64bits_update(static_cast<XXH3_state_t*>(state), data, size);
}

std::uint64_t digest(const void* state) {
  return XXH3_64bits_digest(static_cast<const XXH3_state_t*>(state));
}

}  // namespace

const Xxh3Kernel ICEFIELD_XXH3_KERNEL{whole, pieces, reset, update, digest};

}  // namespace icefield::internal
