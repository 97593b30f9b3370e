#include "bench/support/recorded_keys.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "proto/layout.h"

namespace icefield {
namespace {

Status bad_file(const std::string& path, const std::string& what) {
  return Status(Code::kInvalidArgument, path + ": " + what);
}

bool plausible(const RecordedKeysHeader& h) {
  const auto extent = static_cast<std::uint32_t>(kExtentRows);
  const auto sink = static_cast<std::uint32_t>(kSinkTokens);
  const bool dims =
      h.d_k % 16 == 0 && h.d_k > 0 && h.d_k <= 256 && h.d_v % 16 == 0 && h.d_v > 0 && h.d_v <= 256;
  const bool counts = h.layers > 0 && h.layers <= 1024 && h.kv_heads > 0 && h.kv_heads <= 1024 &&
                      h.group > 0 && h.group <= 256 && h.steps > 0 && h.steps <= (1u << 20) &&
                      h.tokens <= (1u << 24);
  const bool range = (h.sink_tokens == 0 || h.sink_tokens == sink) && h.window_first > 0 &&
                     h.window_first % extent == 0 && h.window_first <= h.tokens;
  return dims && counts && range && h.beta > 0;
}

}  // namespace

Result<RecordedKeys> RecordedKeys::open(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return bad_file(path, "cannot be read");
  RecordedKeysHeader header;
  file.read(reinterpret_cast<char*>(&header), sizeof(header));
  const RecordedKeysHeader expected;
  if (!file || std::memcmp(header.magic, expected.magic, sizeof(header.magic)) != 0) {
    return bad_file(path, "not a file of recorded keys");
  }
  if (!plausible(header)) return bad_file(path, "a shape that cannot be");
  RecordedKeys keys(path, header);
  const std::int64_t bytes =
      static_cast<std::int64_t>(sizeof(header)) + keys.heads() * keys.head_bytes();
  std::error_code error;
  const auto found = static_cast<std::int64_t>(std::filesystem::file_size(path, error));
  if (error || found != bytes) {
    return bad_file(path,
                    std::to_string(found) + " bytes, its header says " + std::to_string(bytes));
  }
  return keys;
}

std::int64_t RecordedKeys::row_values() const {
  return static_cast<std::int64_t>(header_.tokens) * (header_.d_k + header_.d_v);
}

std::int64_t RecordedKeys::query_values() const {
  return static_cast<std::int64_t>(header_.steps) * header_.group * header_.d_k;
}

std::int64_t RecordedKeys::head_bytes() const {
  return row_values() * static_cast<std::int64_t>(sizeof(Bf16)) +
         query_values() * static_cast<std::int64_t>(sizeof(float));
}

Result<KeySet> RecordedKeys::read(std::int32_t index) const {
  KeySet set{.d_k = static_cast<std::int32_t>(header_.d_k),
             .d_v = static_cast<std::int32_t>(header_.d_v),
             .group = static_cast<std::int32_t>(header_.group),
             .beta = header_.beta,
             .first_indexed = static_cast<std::int32_t>(header_.sink_tokens),
             .end_indexed = static_cast<std::int32_t>(header_.window_first)};
  set.rows.resize(static_cast<std::size_t>(row_values()));
  set.queries.resize(static_cast<std::size_t>(query_values()));
  std::ifstream file(path_, std::ios::binary);
  file.seekg(static_cast<std::streamoff>(sizeof(header_)) + index * head_bytes());
  file.read(reinterpret_cast<char*>(set.rows.data()),
            static_cast<std::streamsize>(set.rows.size() * sizeof(Bf16)));
  file.read(reinterpret_cast<char*>(set.queries.data()),
            static_cast<std::streamsize>(set.queries.size() * sizeof(float)));
  if (!file) return bad_file(path_, "ends early");
  return set;
}

}  // namespace icefield
