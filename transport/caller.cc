#include "transport/caller.h"

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

namespace icefield {
namespace {

constexpr std::string_view kEveryNamespace = "*";
constexpr std::size_t kMinTokenBytes = 16;  // what can be guessed is no secret
constexpr std::string_view kBlank = " \t\r";

// The next word of `line`, which loses it.
std::string_view take_word(std::string_view& line) {
  line.remove_prefix(std::min(line.find_first_not_of(kBlank), line.size()));
  const std::string_view word = line.substr(0, line.find_first_of(kBlank));
  line.remove_prefix(word.size());
  return word;
}

Result<TokenGrant> parse_grant(std::string_view line) {
  TokenGrant grant;
  grant.token = take_word(line);
  std::string_view names = take_word(line);
  if (names.empty() || !take_word(line).empty()) {
    return Status(Code::kInvalidArgument, "write `token namespace[,namespace]`");
  }
  if (grant.token.size() < kMinTokenBytes) {
    return Status(Code::kInvalidArgument, "token of " + std::to_string(grant.token.size()) +
                                              " bytes, at least " + std::to_string(kMinTokenBytes));
  }
  while (true) {
    const std::size_t comma = names.find(',');
    grant.namespaces.emplace_back(names.substr(0, comma));
    if (grant.namespaces.back().empty()) {
      return Status(Code::kInvalidArgument, "a namespace without a name");
    }
    if (comma == names.npos) return grant;
    names.remove_prefix(comma + 1);
  }
}

}  // namespace

Result<std::vector<TokenGrant>> parse_token_file(std::string_view text) {
  std::vector<TokenGrant> grants;
  std::set<std::string> seen;
  for (int number = 1; !text.empty(); ++number) {
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    line = line.substr(0, line.find('#'));
    if (line.find_first_not_of(kBlank) == line.npos) continue;
    const std::string where = "token file, line " + std::to_string(number);
    Result<TokenGrant> grant = parse_grant(line);
    if (!grant.has_value()) return grant.error().with_context(where);
    if (!seen.insert(grant->token).second) {
      return Status(Code::kInvalidArgument, where + ": token given twice");
    }
    grants.push_back(std::move(*grant));
  }
  if (grants.empty()) return Status(Code::kInvalidArgument, "token file without a token");
  return grants;
}

Result<std::vector<TokenGrant>> read_token_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return Status(Code::kNotFound, "token file " + path + " cannot be read");
  std::ostringstream text;
  text << file.rdbuf();
  return parse_token_file(std::move(text).str());
}

Caller::Caller(const TokenGrant& grant) {
  if (std::ranges::find(grant.namespaces, kEveryNamespace) != grant.namespaces.end()) return;
  Grants grants{.namespaces = grant.namespaces, .ids = {}};
  for (const std::string& name : grants.namespaces) grants.ids.push_back(namespace_id(name));
  grants_ = std::make_shared<const Grants>(std::move(grants));
}

Caller Caller::over(ConnectionFacts connection) const {
  Caller caller = *this;
  caller.connection_ = connection;
  return caller;
}

bool Caller::may_use(std::string_view name_space) const {
  return may_use_all() ||
         std::ranges::find(grants_->namespaces, name_space) != grants_->namespaces.end();
}

bool Caller::may_use(const NamespaceId& name_space) const {
  return may_use_all() || std::ranges::find(grants_->ids, name_space) != grants_->ids.end();
}

}  // namespace icefield
