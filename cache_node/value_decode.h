// cache_node/value_decode.h — what requests about values have in common, from their Protobuf form.
// For the node's server only.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cache_node/value_messages.h"
#include "proto/icefield.pb.h"

namespace icefield {

Status invalid(std::string what);

// Views into the message.
ValueScope scope_of(const proto::ValueScope& scope);
Result<std::vector<std::string_view>> keys_of(const proto::ValueKeys& keys);

}  // namespace icefield
