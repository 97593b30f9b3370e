// transport/caller.h — who sent a request, and what the tokens of a node grant.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "common/ids.h"
#include "common/status.h"

namespace icefield {

// A secret and the namespaces that whoever knows it may use.
struct TokenGrant {
  std::string token;
  std::vector<std::string> namespaces;  // "*": every one
};

// A token file: a line for each token, `token namespace[,namespace…]`, where `*` stands for every
// namespace; `#` begins a comment. kInvalidArgument names the line, never the token.
Result<std::vector<TokenGrant>> parse_token_file(std::string_view text);
// kNotFound when there is no such file, else as parse_token_file().
Result<std::vector<TokenGrant>> read_token_file(const std::string& path);

// Tells connections of one process apart, and says what can be done over this one.
struct ConnectionFacts {
  std::uint64_t number = 0;
  bool one_sided = false;  // the peer's Transport::read() copies from our regions as from memory
};

// The peer of a connection, as far as it has proved who it is. Cheap to copy.
class Caller {
 public:
  Caller() = default;  // may use everything: no token is in force
  explicit Caller(const TokenGrant& grant);
  // The same, over that connection.
  Caller over(ConnectionFacts connection) const;

  bool may_use(std::string_view name_space) const;
  bool may_use(const NamespaceId& name_space) const;
  bool may_use_all() const { return grants_ == nullptr; }
  const ConnectionFacts& connection() const { return connection_; }

 private:
  struct Grants {
    std::vector<std::string> namespaces;
    std::vector<NamespaceId> ids;  // of these
  };
  std::shared_ptr<const Grants> grants_;  // null: every namespace
  ConnectionFacts connection_;
};

}  // namespace icefield
