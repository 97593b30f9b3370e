#include "transport/ucx/proof.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <array>

#include "common/bytes.h"

namespace icefield::ucx {
namespace {

constexpr std::string_view kPurpose = "icefield connection 1";
constexpr int kChallengeWords = 4;

template <class T>
void append(std::string& text, const T& value) {
  text.append(as_text(std::as_bytes(std::span(&value, 1))));
}

}  // namespace

std::string make_challenge(Rng& rng) {
  std::string challenge;
  for (int i = 0; i < kChallengeWords; ++i) append(challenge, rng.next());
  return challenge;
}

std::string make_proof(const std::string& token, const ProofSubject& subject) {
  std::string message(kPurpose);
  message += subject.challenge;  // fixed lengths up to the last field: nothing can be shifted
  append(message, subject.incarnation);
  append(message, subject.connection);
  message += subject.worker_address;
  std::array<unsigned char, 32> mac{};
  unsigned bytes = 0;
  ICE_CHECK(HMAC(EVP_sha256(), token.data(), static_cast<int>(token.size()),
                 reinterpret_cast<const unsigned char*>(message.data()), message.size(), mac.data(),
                 &bytes) != nullptr &&
            bytes == mac.size());
  return std::string(as_text(std::as_bytes(std::span(mac))));
}

const TokenGrant* find_grant(std::span<const TokenGrant> grants, const ProofSubject& subject,
                             const std::string& proof) {
  const TokenGrant* found = nullptr;
  for (const TokenGrant& grant : grants) {
    const std::string expected = make_proof(grant.token, subject);
    const bool equal = proof.size() == expected.size() &&
                       CRYPTO_memcmp(proof.data(), expected.data(), expected.size()) == 0;
    if (equal) found = &grant;
  }
  return found;
}

}  // namespace icefield::ucx
