#include <openssl/rand.h>

#include "common/check.h"
#include "common/rng.h"

namespace icefield {

std::uint64_t SystemRng::next() {
  std::uint64_t word = 0;
  ICE_CHECK(RAND_bytes(reinterpret_cast<unsigned char*>(&word), sizeof word) == 1);
  return word;
}

}  // namespace icefield
