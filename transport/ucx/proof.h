// transport/ucx/proof.h — how a client shows that it knows a token without sending it.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "common/rng.h"
#include "transport/caller.h"

namespace icefield::ucx {

// What a proof is about: it serves for this connection of these two processes and no other.
struct ProofSubject {
  std::string challenge;          // random, the server's
  std::uint64_t incarnation = 0;  // the server's
  std::uint64_t connection = 0;   // the client's
  std::string worker_address;     // the client's
};

std::string make_challenge(Rng& rng);  // 32 bytes

// HMAC-SHA256 of the subject under `token`.
std::string make_proof(const std::string& token, const ProofSubject& subject);

// Whose token made `proof`; null when it is nobody's. Takes as long for every proof.
const TokenGrant* find_grant(std::span<const TokenGrant> grants, const ProofSubject& subject,
                             const std::string& proof);

}  // namespace icefield::ucx
