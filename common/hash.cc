// The low-level calls keep their state on the stack: OpenSSL 3's EVP interface looks its algorithm
// up and allocates for every hash, which takes five times as long as hashing a key.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "common/hash.h"

#include <openssl/sha.h>

#include <algorithm>

#include "common/check.h"
#include "common/xxh3_kernels.h"
#include "common/xxh3_stream.h"

namespace icefield {
namespace {

const internal::Xxh3Kernel& pick_xxh3() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return internal::kXxh3Avx512;
  if (__builtin_cpu_supports("avx2")) return internal::kXxh3Avx2;
#endif
  return internal::kXxh3Baseline;
}

const internal::Xxh3Kernel& xxh3_kernel() {
  static const internal::Xxh3Kernel& kernel = pick_xxh3();
  return kernel;
}

Hash128 first128(const std::array<std::byte, 32>& digest) {
  Hash128 hash;
  std::copy_n(digest.begin(), hash.bytes.size(), hash.bytes.begin());
  return hash;
}

}  // namespace

struct Sha256::State {
  SHA256_CTX context;

  State() { ICE_CHECK(SHA256_Init(&context) == 1); }
  void update(ConstByteSpan bytes) {
    ICE_CHECK(SHA256_Update(&context, bytes.data(), bytes.size()) == 1);
  }
  std::array<std::byte, 32> finish() {
    std::array<std::byte, 32> digest;
    ICE_CHECK(SHA256_Final(reinterpret_cast<unsigned char*>(digest.data()), &context) == 1);
    return digest;
  }
};

Sha256::Sha256() : state_(std::make_unique<State>()) {}
Sha256::~Sha256() = default;
void Sha256::update(ConstByteSpan bytes) { state_->update(bytes); }
std::array<std::byte, 32> Sha256::finish() { return state_->finish(); }

std::string to_string(const Hash128& hash) { return to_hex(hash.span()); }

Hash128 hash_fields(std::span<const ConstByteSpan> fields) {
  Sha256::State sha;
  for (const ConstByteSpan field : fields) {
    std::array<std::byte, 4> length;
    store(length.data(), static_cast<std::uint32_t>(field.size()));
    sha.update(length);
    sha.update(field);
  }
  return first128(sha.finish());
}

Hash128 hash_fields(std::initializer_list<ConstByteSpan> fields) {
  return hash_fields(std::span<const ConstByteSpan>(fields.begin(), fields.size()));
}

Hash128 sha256_prefix(ConstByteSpan bytes) {
  Sha256::State sha;
  sha.update(bytes);
  return first128(sha.finish());
}

std::uint64_t xxh3(ConstByteSpan bytes, std::uint64_t seed) {
  return xxh3_kernel().whole(bytes.data(), bytes.size(), seed);
}

std::uint64_t xxh3(std::span<const ConstByteSpan> pieces, std::uint64_t seed) {
  if (pieces.size() == 1) return xxh3(pieces[0], seed);
  return xxh3_kernel().pieces(pieces, seed);
}

void Xxh3Stream::reset(std::uint64_t seed) {
  static_assert(sizeof state_ == internal::kXxh3StateBytes);
  xxh3_kernel().reset(state_.data(), seed);
}

void Xxh3Stream::update(ConstByteSpan bytes) {
  xxh3_kernel().update(state_.data(), bytes.data(), bytes.size());
}

std::uint64_t Xxh3Stream::digest() const { return xxh3_kernel().digest(state_.data()); }

}  // namespace icefield
