#include "common/hash.h"

#include <openssl/evp.h>

#include <algorithm>

#include "common/check.h"
#include "common/xxh3_kernels.h"

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
  EVP_MD_CTX* context = nullptr;
};

Sha256::Sha256() : state_(std::make_unique<State>()) {
  state_->context = EVP_MD_CTX_new();
  ICE_CHECK(state_->context != nullptr);
  ICE_CHECK(EVP_DigestInit_ex(state_->context, EVP_sha256(), nullptr) == 1);
}

Sha256::~Sha256() { EVP_MD_CTX_free(state_->context); }

void Sha256::update(ConstByteSpan bytes) {
  ICE_CHECK(EVP_DigestUpdate(state_->context, bytes.data(), bytes.size()) == 1);
}

std::array<std::byte, 32> Sha256::finish() {
  std::array<std::byte, 32> digest;
  ICE_CHECK(EVP_DigestFinal_ex(state_->context, reinterpret_cast<unsigned char*>(digest.data()),
                               nullptr) == 1);
  return digest;
}

std::string to_string(const Hash128& hash) { return to_hex(hash.span()); }

Hash128 hash_fields(std::span<const ConstByteSpan> fields) {
  Sha256 sha;
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
  Sha256 sha;
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

}  // namespace icefield
