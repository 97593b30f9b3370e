#include "engine/gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>

namespace icefield {
namespace {

constexpr std::uint32_t kMagic = 0x46554747;   // "GGUF"
constexpr std::uint64_t kMaxItems = 1u << 24;  // of an array; also metadata keys and tensors

enum class ValueType : std::uint32_t {
  kUint8 = 0,
  kInt8 = 1,
  kUint16 = 2,
  kInt16 = 3,
  kUint32 = 4,
  kInt32 = 5,
  kFloat32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kUint64 = 10,
  kInt64 = 11,
  kFloat64 = 12,
};

struct TypeInfo {
  const char* name;
  std::int64_t block;  // elements; 0: the engine does not compute with it
  std::int64_t block_bytes;
};

const std::map<std::uint32_t, TypeInfo>& type_table() {
  static const std::map<std::uint32_t, TypeInfo> table = {
      {0, {"F32", 1, 4}},     {1, {"F16", 1, 2}},      {2, {"Q4_0", 32, 18}},
      {3, {"Q4_1", 32, 20}},  {6, {"Q5_0", 0, 0}},     {7, {"Q5_1", 0, 0}},
      {8, {"Q8_0", 32, 34}},  {9, {"Q8_1", 0, 0}},     {10, {"Q2_K", 0, 0}},
      {11, {"Q3_K", 0, 0}},   {12, {"Q4_K", 0, 0}},    {13, {"Q5_K", 0, 0}},
      {14, {"Q6_K", 0, 0}},   {15, {"Q8_K", 0, 0}},    {16, {"IQ2_XXS", 0, 0}},
      {17, {"IQ2_XS", 0, 0}}, {18, {"IQ3_XXS", 0, 0}}, {19, {"IQ1_S", 0, 0}},
      {20, {"IQ4_NL", 0, 0}}, {21, {"IQ3_S", 0, 0}},   {22, {"IQ2_S", 0, 0}},
      {23, {"IQ4_XS", 0, 0}}, {29, {"IQ1_M", 0, 0}},   {30, {"BF16", 1, 2}},
      {34, {"TQ1_0", 0, 0}},  {35, {"TQ2_0", 0, 0}},   {39, {"MXFP4", 0, 0}},
  };
  return table;
}

std::string_view get_string(ByteReader& reader) {
  return as_text(reader.get_bytes(static_cast<std::size_t>(reader.get<std::uint64_t>())));
}

// One number of a scalar type. False when the type is none.
bool get_scalar(ByteReader& reader, ValueType type, GgufFile::Value& out) {
  switch (type) {
    case ValueType::kUint8: out = std::uint64_t{reader.get<std::uint8_t>()}; return true;
    case ValueType::kInt8: out = std::int64_t{reader.get<std::int8_t>()}; return true;
    case ValueType::kUint16: out = std::uint64_t{reader.get<std::uint16_t>()}; return true;
    case ValueType::kInt16: out = std::int64_t{reader.get<std::int16_t>()}; return true;
    case ValueType::kUint32: out = std::uint64_t{reader.get<std::uint32_t>()}; return true;
    case ValueType::kInt32: out = std::int64_t{reader.get<std::int32_t>()}; return true;
    case ValueType::kUint64: out = reader.get<std::uint64_t>(); return true;
    case ValueType::kInt64: out = reader.get<std::int64_t>(); return true;
    case ValueType::kFloat32: out = double{reader.get<float>()}; return true;
    case ValueType::kFloat64: out = reader.get<double>(); return true;
    case ValueType::kBool: out = reader.get<std::uint8_t>() != 0; return true;
    case ValueType::kString: out = get_string(reader); return true;
    default: return false;
  }
}

// Arrays of strings, integers or floats; an array of anything else is skipped when its size allows.
bool get_array(ByteReader& reader, GgufFile::Value& out) {
  const auto type = static_cast<ValueType>(reader.get<std::uint32_t>());
  const auto count = reader.get<std::uint64_t>();
  if (!reader.ok() || count > kMaxItems || count > reader.left()) return false;
  std::vector<std::string_view> texts;
  std::vector<std::int64_t> integers;
  std::vector<double> numbers;
  for (std::uint64_t i = 0; i < count; ++i) {
    GgufFile::Value item;
    if (!get_scalar(reader, type, item) || !reader.ok()) return false;
    if (const auto* text = std::get_if<std::string_view>(&item)) texts.push_back(*text);
    if (const auto* number = std::get_if<double>(&item)) numbers.push_back(*number);
    if (const auto* value = std::get_if<std::int64_t>(&item)) integers.push_back(*value);
    if (const auto* flag = std::get_if<bool>(&item)) integers.push_back(*flag ? 1 : 0);
    if (const auto* value = std::get_if<std::uint64_t>(&item)) {
      integers.push_back(static_cast<std::int64_t>(*value));
    }
  }
  if (type == ValueType::kString) {
    out = std::move(texts);
  } else if (type == ValueType::kFloat32 || type == ValueType::kFloat64) {
    out = std::move(numbers);
  } else {
    out = std::move(integers);
  }
  return true;
}

}  // namespace

std::string tensor_type_name(std::uint32_t type) {
  const auto found = type_table().find(type);
  return found == type_table().end() ? "type " + std::to_string(type) : found->second.name;
}

std::int64_t Tensor::row_bytes() const {
  const TypeInfo& info = type_table().at(static_cast<std::uint32_t>(type));
  return cols / info.block * info.block_bytes;
}

Result<std::unique_ptr<GgufFile>> GgufFile::open(const std::string& path) {
  const auto problem = [&path](const std::string& what) {
    return Status(Code::kInvalidArgument, "model " + path + ": " + what);
  };
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    return problem(errno == ENOENT ? "no such file; ./dev model fetches the default model"
                                   : std::string("cannot be opened: ") + std::strerror(errno));
  }
  struct stat info = {};
  const bool regular = ::fstat(file, &info) == 0 && S_ISREG(info.st_mode);
  void* mapped = MAP_FAILED;
  if (regular && info.st_size > 0) {
    mapped =
        ::mmap(nullptr, static_cast<std::size_t>(info.st_size), PROT_READ, MAP_PRIVATE, file, 0);
  }
  ::close(file);
  if (!regular) return problem("not a file");
  if (info.st_size == 0) return problem("empty file");
  if (mapped == MAP_FAILED)
    return problem(std::string("cannot be mapped: ") + std::strerror(errno));
  std::unique_ptr<GgufFile> gguf(new GgufFile(
      path, {static_cast<const std::byte*>(mapped), static_cast<std::size_t>(info.st_size)}));
  ICE_TRY(gguf->parse());
  return gguf;
}

GgufFile::~GgufFile() { ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

Status GgufFile::error(const std::string& what) const {
  return Status(Code::kInvalidArgument, "model " + path_ + ": " + what);
}

Status GgufFile::parse() {
  ByteReader reader(bytes_);
  if (reader.get<std::uint32_t>() != kMagic) {
    return error("not a GGUF file; convert the model to GGUF first");
  }
  const auto version = reader.get<std::uint32_t>();
  if (version != 2 && version != 3) {
    return error("GGUF version " + std::to_string(version) + ", versions 2 and 3 can be read");
  }
  const auto tensor_count = reader.get<std::uint64_t>();
  const auto key_count = reader.get<std::uint64_t>();
  if (!reader.ok() || tensor_count > kMaxItems || key_count > kMaxItems) {
    return error("truncated or damaged: its header does not fit");
  }
  for (std::uint64_t i = 0; i < key_count; ++i) {
    const std::string_view key = get_string(reader);
    const auto type = static_cast<ValueType>(reader.get<std::uint32_t>());
    Value value;
    const bool known =
        type == ValueType::kArray ? get_array(reader, value) : get_scalar(reader, type, value);
    if (!reader.ok() || !known) {
      return error("truncated or damaged: metadata entry " + std::to_string(i) + " of " +
                   std::to_string(key_count) + " cannot be read");
    }
    metadata_[key] = std::move(value);
  }
  for (std::uint64_t i = 0; i < tensor_count; ++i) {
    const std::string_view name = get_string(reader);
    RawTensor tensor;
    const auto dim_count = reader.get<std::uint32_t>();
    for (std::uint32_t d = 0; d < dim_count && d < 4; ++d) {
      tensor.dims.push_back(reader.get<std::uint64_t>());
    }
    tensor.type = reader.get<std::uint32_t>();
    tensor.offset = reader.get<std::uint64_t>();
    if (!reader.ok() || dim_count < 1 || dim_count > 4) {
      return error("truncated or damaged: tensor " + std::to_string(i) + " of " +
                   std::to_string(tensor_count) + " cannot be read");
    }
    tensors_[name] = std::move(tensor);
  }
  std::int64_t alignment = 32;
  if (has("general.alignment")) {
    ICE_TRY(alignment, integer("general.alignment"));
  }
  if (alignment < 1 || alignment > 65536) {
    return error("alignment " + std::to_string(alignment) + " is out of range");
  }
  const auto header_bytes = static_cast<std::int64_t>(bytes_.size() - reader.left());
  data_begin_ = static_cast<std::uint64_t>(round_up(header_bytes, alignment));
  return Status();
}

template <class T>
Result<T> GgufFile::get(std::string_view key, const char* type) const {
  const auto found = metadata_.find(key);
  if (found == metadata_.end()) return error("metadata \"" + std::string(key) + "\" is missing");
  const T* value = std::get_if<T>(&found->second);
  if (value == nullptr) return error("metadata \"" + std::string(key) + "\" is not " + type);
  return *value;
}

Result<std::int64_t> GgufFile::integer(std::string_view key) const {
  const auto found = metadata_.find(key);
  if (found != metadata_.end()) {
    if (const auto* value = std::get_if<std::uint64_t>(&found->second)) {
      return static_cast<std::int64_t>(*value);
    }
    if (const auto* flag = std::get_if<bool>(&found->second)) return *flag ? 1 : 0;
  }
  return get<std::int64_t>(key, "an integer");
}

Result<double> GgufFile::number(std::string_view key) const { return get<double>(key, "a number"); }

Result<std::string_view> GgufFile::text(std::string_view key) const {
  return get<std::string_view>(key, "a text");
}

Result<std::span<const std::string_view>> GgufFile::texts(std::string_view key) const {
  const auto found = metadata_.find(key);
  const auto* list = found == metadata_.end()
                         ? nullptr
                         : std::get_if<std::vector<std::string_view>>(&found->second);
  if (list == nullptr) {
    return error("metadata \"" + std::string(key) + "\" is missing or not a list of texts");
  }
  return std::span<const std::string_view>(*list);
}

Result<std::span<const std::int64_t>> GgufFile::integers(std::string_view key) const {
  const auto found = metadata_.find(key);
  const auto* list =
      found == metadata_.end() ? nullptr : std::get_if<std::vector<std::int64_t>>(&found->second);
  if (list == nullptr) {
    return error("metadata \"" + std::string(key) + "\" is missing or not a list of integers");
  }
  return std::span<const std::int64_t>(*list);
}

std::vector<std::string_view> GgufFile::tensor_names() const {
  std::vector<std::string_view> names;
  for (const auto& [name, tensor] : tensors_) names.push_back(name);
  return names;
}

Result<Tensor> GgufFile::tensor(std::string_view name, std::int64_t rows, std::int64_t cols) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) return error("tensor \"" + std::string(name) + "\" is missing");
  const RawTensor& raw = found->second;
  std::array<std::uint64_t, 4> dims = {1, 1, 1, 1};
  std::copy(raw.dims.begin(), raw.dims.end(), dims.begin());
  if (dims[0] != static_cast<std::uint64_t>(cols) || dims[1] != static_cast<std::uint64_t>(rows) ||
      dims[2] != 1 || dims[3] != 1) {
    return error("tensor \"" + std::string(name) + "\" is " + std::to_string(dims[1]) + " x " +
                 std::to_string(dims[0]) + ", expected " + std::to_string(rows) + " x " +
                 std::to_string(cols));
  }
  const auto info = type_table().find(raw.type);
  if (info == type_table().end() || info->second.block == 0) {
    return Status(Code::kUnimplemented,
                  "model " + path_ + ": tensor \"" + std::string(name) + "\" has type " +
                      tensor_type_name(raw.type) +
                      "; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 can be computed with");
  }
  if (cols % info->second.block != 0) {
    return error("tensor \"" + std::string(name) + "\" has rows of " + std::to_string(cols) +
                 " elements, not whole " + info->second.name + " blocks");
  }
  const auto size =
      static_cast<std::uint64_t>(rows * (cols / info->second.block) * info->second.block_bytes);
  if (raw.offset > bytes_.size() || data_begin_ + raw.offset + size > bytes_.size()) {
    return error("truncated: tensor \"" + std::string(name) + "\" ends at byte " +
                 std::to_string(data_begin_ + raw.offset + size) + " of " +
                 std::to_string(bytes_.size()));
  }
  return Tensor{.type = static_cast<TensorType>(raw.type),
                .rows = rows,
                .cols = cols,
                .data = bytes_.data() + data_begin_ + raw.offset};
}

}  // namespace icefield
