// common/hash.h — the two hashes of the project: SHA-256 names things, XXH3 checks them.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>

#include "common/bytes.h"

namespace icefield {

// 128 bits, compared and printed as a byte string.
struct Hash128 {
  std::array<std::byte, 16> bytes{};

  friend auto operator<=>(const Hash128&, const Hash128&) = default;
  ConstByteSpan span() const { return bytes; }
  // The first eight bytes, little-endian: the seed of checksums.
  std::uint64_t low64() const { return load<std::uint64_t>(bytes.data()); }
};
std::string to_string(const Hash128& hash);  // 32 hexadecimal digits

struct Hash128Hasher {
  std::size_t operator()(const Hash128& hash) const {
    return static_cast<std::size_t>(hash.low64());
  }
};

// H of docs/formats/ids.md: the first 128 bits of SHA-256 over the fields, each preceded by its
// length as u32le.
Hash128 hash_fields(std::span<const ConstByteSpan> fields);
Hash128 hash_fields(std::initializer_list<ConstByteSpan> fields);

// The first 128 bits of SHA-256 of the bytes themselves.
Hash128 sha256_prefix(ConstByteSpan bytes);

// SHA-256 of a long stream. Threads: one at a time.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;

  void update(ConstByteSpan bytes);
  std::array<std::byte, 32> finish();  // once

  struct State;

 private:
  std::unique_ptr<State> state_;
};

// XXH3-64 with a seed. Debian's library call is SSE2; this one uses AVX2 or AVX-512 where the
// machine has them (the values are the same).
std::uint64_t xxh3(ConstByteSpan bytes, std::uint64_t seed);
// The same over the pieces as if they were one run of bytes.
std::uint64_t xxh3(std::span<const ConstByteSpan> pieces, std::uint64_t seed);

}  // namespace icefield
