#include "tools/recorded_keys.h"

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>

namespace icefield {
namespace {

constexpr char kMagic[9] = "ICEKEYS1";
constexpr std::size_t kHeaderBytes = 64;

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

// A count of the header, and the most it may be: far beyond models, and such that bytes stay within
// 64 bits.
struct Count {
  const char* name;
  std::int32_t RecordedShape::*count;
  std::int32_t most;
};
constexpr Count kCounts[] = {{"layers", &RecordedShape::layers, 1 << 10},
                             {"KV heads", &RecordedShape::kv_heads, 1 << 10},
                             {"query heads per KV head", &RecordedShape::group, 1 << 8},
                             {"dimensions of keys", &RecordedShape::d_k, 1 << 10},
                             {"dimensions of values", &RecordedShape::d_v, 1 << 10},
                             {"tokens", &RecordedShape::tokens, 1 << 20},
                             {"steps", &RecordedShape::steps, 1 << 20}};

Bytes header_of(const RecordedShape& shape) {
  Bytes header;
  ByteWriter writer(header);
  writer.put_bytes(as_bytes(std::string_view(kMagic, 8)));
  for (const Count& field : kCounts) writer.put(shape.*field.count);
  writer.put(shape.beta);
  writer.put(shape.sink_tokens);
  writer.put(shape.window_first);
  header.resize(kHeaderBytes);
  return header;
}

Result<RecordedShape> shape_of(ConstByteSpan header) {
  ByteReader reader(header);
  if (as_text(reader.get_bytes(8)) != std::string_view(kMagic, 8)) {
    return Status(Code::kInvalidArgument, "not a recording of keys");
  }
  RecordedShape shape;
  for (const Count& field : kCounts) {
    const auto count = reader.get<std::int32_t>();
    if (count < 1 || count > field.most) {
      return Status(Code::kInvalidArgument,
                    "recording of " + std::to_string(count) + " " + field.name);
    }
    shape.*field.count = count;
  }
  shape.beta = reader.get<float>();
  if (!(shape.beta > 0) || !std::isfinite(shape.beta)) {
    return Status(Code::kInvalidArgument,
                  "recording with a softmax scale of " + std::to_string(shape.beta));
  }
  shape.sink_tokens = reader.get<std::int32_t>();
  shape.window_first = reader.get<std::int32_t>();
  if (shape.sink_tokens < 0 || shape.window_first < shape.sink_tokens ||
      shape.window_first > shape.tokens) {
    return Status(Code::kInvalidArgument, "recording whose window begins at " +
                                              std::to_string(shape.window_first) + " of " +
                                              std::to_string(shape.tokens) + " tokens");
  }
  return shape;
}

std::int64_t file_bytes(const RecordedShape& shape) {
  const std::int64_t queries = static_cast<std::int64_t>(shape.steps) * shape.group;
  const std::int64_t row_bytes = (shape.d_k + shape.d_v) * static_cast<std::int64_t>(sizeof(Bf16));
  const std::int64_t query_bytes =
      (shape.d_k + 1 + shape.d_v) * static_cast<std::int64_t>(sizeof(float));
  const std::int64_t head_bytes = shape.tokens * row_bytes + queries * query_bytes;
  return static_cast<std::int64_t>(kHeaderBytes) +
         static_cast<std::int64_t>(shape.layers) * shape.kv_heads * head_bytes +
         shape.steps * static_cast<std::int64_t>(sizeof(RecordedStep));
}

template <class Vector>
bool write_array(std::FILE* file, const Vector& values) {
  return std::fwrite(values.data(), sizeof values[0], values.size(), file) == values.size();
}

template <class Vector>
bool read_array(std::FILE* file, std::int64_t count, Vector& values) {
  values.resize(static_cast<std::size_t>(count));
  return std::fread(values.data(), sizeof values[0], values.size(), file) == values.size();
}

}  // namespace

Status write_recorded_keys(const RecordedKeys& keys, const std::string& path) {
  const File file(std::fopen(path.c_str(), "wb"), &std::fclose);
  bool ok = file != nullptr && write_array(file.get(), header_of(keys.shape));
  for (const RecordedHead& head : keys.heads) {
    ok = ok && write_array(file.get(), head.rows) && write_array(file.get(), head.q);
  }
  ok = ok && write_array(file.get(), keys.kinds);
  for (const RecordedHead& head : keys.heads) {
    ok = ok && write_array(file.get(), head.own_lse) && write_array(file.get(), head.own_out);
  }
  ok = ok && std::fflush(file.get()) == 0;
  return ok ? Status() : Status(Code::kUnavailable, "recording " + path + " not written");
}

Result<RecordedKeys> read_recorded_keys(const std::string& path) {
  const File file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (file == nullptr) return Status(Code::kInvalidArgument, "no recording at " + path);
  Bytes header;
  if (!read_array(file.get(), kHeaderBytes, header)) {
    return Status(Code::kInvalidArgument, path + " is shorter than a recording's header");
  }
  RecordedKeys keys;
  ICE_TRY(keys.shape, shape_of(header));
  const RecordedShape& shape = keys.shape;
  const std::int64_t queries = static_cast<std::int64_t>(shape.steps) * shape.group;
  // Before any memory is asked for.
  std::error_code error;
  const auto bytes = static_cast<std::int64_t>(std::filesystem::file_size(path, error));
  if (error || bytes != file_bytes(shape)) {
    return Status(Code::kInvalidArgument, "recording " + path + " has " + std::to_string(bytes) +
                                              " bytes, by its header it has " +
                                              std::to_string(file_bytes(shape)));
  }
  const Status unread(Code::kInvalidArgument, "recording " + path + " cannot be read");
  keys.heads.resize(static_cast<std::size_t>(shape.layers) *
                    static_cast<std::size_t>(shape.kv_heads));
  for (RecordedHead& head : keys.heads) {
    const std::int64_t numbers = static_cast<std::int64_t>(shape.tokens) * (shape.d_k + shape.d_v);
    if (!read_array(file.get(), numbers, head.rows) ||
        !read_array(file.get(), queries * shape.d_k, head.q)) {
      return unread;
    }
  }
  if (!read_array(file.get(), shape.steps, keys.kinds)) return unread;
  for (RecordedHead& head : keys.heads) {
    if (!read_array(file.get(), queries, head.own_lse) ||
        !read_array(file.get(), queries * shape.d_v, head.own_out)) {
      return unread;
    }
  }
  return keys;
}

}  // namespace icefield
