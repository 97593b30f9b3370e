#include "cache_node/value_decode.h"

#include "cache_node/messages.h"

namespace icefield {

Status invalid(std::string what) { return Status(Code::kInvalidArgument, std::move(what)); }

ValueScope scope_of(const proto::ValueScope& scope) {
  return {.name_space = scope.name_space(), .flush_number = scope.flush_number()};
}

Result<std::vector<std::string_view>> keys_of(const proto::ValueKeys& keys) {
  if (keys.lengths_size() > kMaxRequestItems) {
    return invalid(std::to_string(keys.lengths_size()) + " items in one request, at most " +
                   std::to_string(kMaxRequestItems));
  }
  std::vector<std::string_view> views;
  views.reserve(static_cast<std::size_t>(keys.lengths_size()));
  std::string_view text = keys.text();
  if (std::ssize(text) > kMaxRequestKeyBytes) {
    return invalid("keys of " + std::to_string(text.size()) + " bytes in one request, at most " +
                   std::to_string(kMaxRequestKeyBytes));
  }
  for (const std::uint32_t length : keys.lengths()) {
    if (length > text.size()) return invalid("keys are longer than their text");
    views.push_back(text.substr(0, length));
    ICE_TRY(validate_value_key(views.back()));
    text.remove_prefix(length);
  }
  return views;
}

}  // namespace icefield
