#include "transport/ucx/region_key.h"

#include "common/bytes.h"
#include "common/hash.h"

namespace icefield::ucx {
namespace {

constexpr std::size_t kAddress = 0;
constexpr std::size_t kBytes = 8;
constexpr std::size_t kChecksum = 16;
constexpr std::size_t kPacked = 24;

std::uint64_t checksum_of(const RegionKey& key) {
  const std::uint64_t numbers[] = {key.address, static_cast<std::uint64_t>(key.bytes)};
  const ConstByteSpan parts[] = {std::as_bytes(std::span(numbers)), as_bytes(key.packed)};
  return xxh3(parts, 0);
}

}  // namespace

std::string RegionKey::to_string() const {
  std::string text(kPacked, '\0');
  auto* const at = reinterpret_cast<std::byte*>(text.data());
  store(at + kAddress, address);
  store(at + kBytes, static_cast<std::uint64_t>(bytes));
  store(at + kChecksum, checksum_of(*this));
  return text + packed;
}

Result<RegionKey> RegionKey::parse(std::string_view text) {
  const Status invalid(Code::kInvalidArgument, "no such region");
  if (text.size() <= kPacked) return invalid;
  const std::byte* const at = as_bytes(text).data();
  RegionKey key{.address = load<std::uint64_t>(at + kAddress),
                .bytes = static_cast<std::int64_t>(load<std::uint64_t>(at + kBytes)),
                .packed = std::string(text.substr(kPacked))};
  if (load<std::uint64_t>(at + kChecksum) != checksum_of(key) || key.bytes <= 0) return invalid;
  return key;
}

}  // namespace icefield::ucx
