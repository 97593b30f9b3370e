#include "tools/recorded_keys.h"

#include <cstdio>
#include <memory>
#include <span>

namespace icefield {
namespace {

constexpr char kMagic[9] = "ICEKEYS1";
constexpr std::size_t kHeaderBytes = 64;
constexpr std::int32_t kMostOfAnything = 1 << 20;  // a corrupt count must not ask for all memory

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

Bytes header_of(const RecordedShape& shape) {
  Bytes header;
  ByteWriter writer(header);
  writer.put_bytes(as_bytes(std::string_view(kMagic, 8)));
  for (const std::int32_t number : {shape.layers, shape.kv_heads, shape.group, shape.d_k, shape.d_v,
                                    shape.tokens, shape.steps}) {
    writer.put(number);
  }
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
  for (std::int32_t* number : {&shape.layers, &shape.kv_heads, &shape.group, &shape.d_k, &shape.d_v,
                               &shape.tokens, &shape.steps}) {
    *number = reader.get<std::int32_t>();
    if (*number < 1 || *number > kMostOfAnything) {
      return Status(Code::kInvalidArgument,
                    "recording with a count of " + std::to_string(*number) + " in its header");
    }
  }
  shape.beta = reader.get<float>();
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
  const Status short_file(Code::kInvalidArgument, "recording " + path + " ends too early");
  keys.heads.resize(static_cast<std::size_t>(shape.layers) *
                    static_cast<std::size_t>(shape.kv_heads));
  for (RecordedHead& head : keys.heads) {
    const std::int64_t numbers = static_cast<std::int64_t>(shape.tokens) * (shape.d_k + shape.d_v);
    if (!read_array(file.get(), numbers, head.rows) ||
        !read_array(file.get(), queries * shape.d_k, head.q)) {
      return short_file;
    }
  }
  if (!read_array(file.get(), shape.steps, keys.kinds)) return short_file;
  for (RecordedHead& head : keys.heads) {
    if (!read_array(file.get(), queries, head.own_lse) ||
        !read_array(file.get(), queries * shape.d_v, head.own_out)) {
      return short_file;
    }
  }
  return keys;
}

}  // namespace icefield
