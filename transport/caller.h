// transport/caller.h — who sent a request, and what the tokens of a node grant.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

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

// The peer of a connection, as far as it has proved who it is. Cheap to copy.
class Caller {
 public:
  Caller() = default;  // may use everything: no token is in force
  explicit Caller(const TokenGrant& grant);

  bool may_use(std::string_view name_space) const;

 private:
  std::shared_ptr<const std::vector<std::string>> namespaces_;  // null: every one
};

}  // namespace icefield
