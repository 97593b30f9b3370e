#include "bench/support/key_recording.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "proto/layout.h"

namespace icefield {
namespace {

Status bad_file(const std::string& path, const std::string& what) {
  return Status(Code::kInvalidArgument, path + ": " + what);
}

template <class T>
void read_array(std::ifstream& file, std::vector<T>& values) {
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(T)));
}

bool plausible(const KeyRecordingHeader& h) {
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

Result<KeyRecording> KeyRecording::open(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return bad_file(path, "cannot be read");
  KeyRecordingHeader header;
  file.read(reinterpret_cast<char*>(&header), sizeof(header));
  const KeyRecordingHeader expected;
  if (!file || std::memcmp(header.magic, expected.magic, sizeof(header.magic)) != 0) {
    return bad_file(path, "not a file of recorded keys");
  }
  if (!plausible(header)) return bad_file(path, "a shape that cannot be");
  KeyRecording keys(path, header);
  std::error_code error;
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(path, error));
  const std::int64_t whole = keys.own_begin() + keys.heads() * keys.own_values() *
                                                    static_cast<std::int64_t>(sizeof(float));
  const std::int64_t rows_only =
      static_cast<std::int64_t>(sizeof(header)) + keys.heads() * keys.head_bytes();
  keys.has_own_ = bytes == whole;
  if (error || (bytes != whole && bytes != rows_only)) {
    return bad_file(path,
                    std::to_string(bytes) + " bytes, its header says " + std::to_string(whole));
  }
  return keys;
}

std::int64_t KeyRecording::own_values() const {
  return static_cast<std::int64_t>(header_.steps) * header_.group * (1 + header_.d_v);
}

std::int64_t KeyRecording::own_begin() const {
  return static_cast<std::int64_t>(sizeof(header_)) + heads() * head_bytes() +
         static_cast<std::int64_t>(header_.steps) * 4;
}

std::int64_t KeyRecording::row_values() const {
  return static_cast<std::int64_t>(header_.tokens) * (header_.d_k + header_.d_v);
}

std::int64_t KeyRecording::query_values() const {
  return static_cast<std::int64_t>(header_.steps) * header_.group * header_.d_k;
}

std::int64_t KeyRecording::head_bytes() const {
  return row_values() * static_cast<std::int64_t>(sizeof(Bf16)) +
         query_values() * static_cast<std::int64_t>(sizeof(float));
}

Result<KeySet> KeyRecording::read(std::int32_t index) const {
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
  read_array(file, set.rows);
  read_array(file, set.queries);
  if (has_own_) {
    const auto lse = static_cast<std::size_t>(header_.steps) * header_.group;
    set.own_lse.resize(lse);
    set.own_out.resize(lse * header_.d_v);
    file.seekg(own_begin() + index * own_values() * static_cast<std::int64_t>(sizeof(float)));
    read_array(file, set.own_lse);
    read_array(file, set.own_out);
  }
  if (!file) return bad_file(path_, "ends early");
  return set;
}

}  // namespace icefield
