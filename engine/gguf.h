// engine/gguf.h — reads GGUF files: metadata and tensors, mapped into memory, checked before use.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "common/bytes.h"
#include "common/status.h"

namespace icefield {

// The tensor types that the engine computes with. The numbers are the file format's.
enum class TensorType : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,  // blocks of 32: fp16 scale, 4-bit codes - 8
  kQ4_1 = 3,  // blocks of 32: fp16 scale, fp16 minimum, 4-bit codes
  kQ8_0 = 8,  // blocks of 32: fp16 scale, int8
  kBF16 = 30,
};
// The name that GGUF tools print for type number `type`: "Q4_1"; "type 99" when it has none.
std::string tensor_type_name(std::uint32_t type);

// A matrix of `rows` outputs by `cols` inputs (a vector has one row), rows one after the other.
struct Tensor {
  TensorType type = TensorType::kF32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  const std::byte* data = nullptr;  // borrowed from the file

  std::int64_t row_bytes() const;
};

// Ownership  The file owns the mapping; tensors and strings borrow from it.
// Threads    Const after open().
// Errors     kInvalidArgument names the file and what is wrong with it.
class GgufFile {
 public:
  using Value =
      std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view,
                   std::vector<std::string_view>, std::vector<std::int64_t>, std::vector<double>>;

  static Result<std::unique_ptr<GgufFile>> open(const std::string& path);
  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  const std::string& path() const { return path_; }
  ConstByteSpan bytes() const { return bytes_; }

  bool has(std::string_view key) const { return metadata_.contains(key); }
  bool has_tensor(std::string_view name) const { return tensors_.contains(name); }
  std::vector<std::string_view> tensor_names() const;  // sorted
  // kInvalidArgument when the key is missing or of another type.
  Result<std::int64_t> integer(std::string_view key) const;
  Result<double> number(std::string_view key) const;
  Result<std::string_view> text(std::string_view key) const;
  Result<std::span<const std::string_view>> texts(std::string_view key) const;
  Result<std::span<const std::int64_t>> integers(std::string_view key) const;

  // A tensor that must have this shape. kInvalidArgument when it is missing or has another shape,
  // kUnimplemented when the engine does not know its type.
  Result<Tensor> tensor(std::string_view name, std::int64_t rows, std::int64_t cols) const;

 private:
  struct RawTensor {
    std::uint32_t type = 0;
    std::vector<std::uint64_t> dims;  // the fastest first
    std::uint64_t offset = 0;         // from the start of the data
  };

  GgufFile(std::string path, ConstByteSpan bytes) : path_(std::move(path)), bytes_(bytes) {}
  Status parse();
  Status error(const std::string& what) const;
  template <class T>
  Result<T> get(std::string_view key, const char* type) const;

  const std::string path_;
  const ConstByteSpan bytes_;
  std::map<std::string_view, Value> metadata_;
  std::map<std::string_view, RawTensor> tensors_;
  std::uint64_t data_begin_ = 0;
};

}  // namespace icefield
