// transport/ucx/region_key.h — what a caller needs to read a region by itself.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "common/status.h"

namespace icefield::ucx {

// Travels as address u64le ‖ bytes u64le ‖ XXH3 of all the rest u64le ‖ what UCX packed.
struct RegionKey {
  std::uint64_t address = 0;  // in the owner
  std::int64_t bytes = 0;
  std::string packed;  // ucp_rkey_pack()

  std::string to_string() const;
  // kInvalidArgument for what is no key; UCX trusts what it unpacks, so a damaged one must not get
  // there. Against a forged one there is no defence: who connects to a node trusts it so far.
  static Result<RegionKey> parse(std::string_view text);
};

}  // namespace icefield::ucx
