#include "storage/value_places.h"

#include <rocksdb/table_properties.h>

#include "common/ids.h"

namespace icefield {
namespace {

void put_varint(std::string& text, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7) text.push_back(static_cast<char>(value | 0x80));
  text.push_back(static_cast<char>(value));
}

std::optional<std::uint64_t> take_varint(std::string_view& text) {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 64 && !text.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(text.front());
    text.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// A reference to a value in a blob file, as RocksDB's tables hold it: a type, the numbers of the
// file, offset and size, and how it is compressed.
std::optional<ValuePlace> place_of(std::string_view key, std::string_view reference) {
  constexpr char kInBlobFile = 1;
  constexpr char kNotCompressed = 0;
  if (key.size() != sizeof(std::uint64_t)) return std::nullopt;
  if (reference.empty() || reference.front() != kInBlobFile) return std::nullopt;
  reference.remove_prefix(1);
  const auto file = take_varint(reference);
  const auto offset = take_varint(reference);
  const auto size = take_varint(reference);
  if (!size.has_value() || reference != std::string_view(&kNotCompressed, 1)) return std::nullopt;
  if (*file > UINT32_MAX || *offset > UINT32_MAX) return std::nullopt;
  const auto number = load<std::uint64_t>(reinterpret_cast<const std::byte*>(key.data()));
  return ValuePlace{.number = __builtin_bswap64(number),
                    .file = static_cast<std::uint32_t>(*file),
                    .offset = static_cast<std::uint32_t>(*offset)};
}

class Collector final : public rocksdb::TablePropertiesCollector {
 public:
  explicit Collector(ValuePlaces& places) : places_(places) {}

  rocksdb::Status AddUserKey(const rocksdb::Slice& key, const rocksdb::Slice& value,
                             rocksdb::EntryType type, rocksdb::SequenceNumber,
                             std::uint64_t) override {
    if (type != rocksdb::kEntryBlobIndex) return rocksdb::Status::OK();
    const auto place = place_of(key.ToStringView(), value.ToStringView());
    if (place.has_value()) found_.push_back(*place);
    return rocksdb::Status::OK();
  }
  // The values may still be on their way to the file: until then a read by their place finds less
  // than it wants, and asks RocksDB.
  rocksdb::Status Finish(rocksdb::UserCollectedProperties* properties) override {
    places_.set(found_);
    if (!found_.empty()) (*properties)[std::string(kPlacesProperty)] = write_places(found_);
    return rocksdb::Status::OK();
  }
  rocksdb::UserCollectedProperties GetReadableProperties() const override { return {}; }
  const char* Name() const override { return "icefield.places"; }

 private:
  ValuePlaces& places_;
  std::vector<ValuePlace> found_;
};

class CollectorFactory final : public rocksdb::TablePropertiesCollectorFactory {
 public:
  explicit CollectorFactory(ValuePlaces& places) : places_(places) {}

  rocksdb::TablePropertiesCollector* CreateTablePropertiesCollector(Context) override {
    return std::make_unique<Collector>(places_).release();  // RocksDB's from here on
  }
  const char* Name() const override { return "icefield.places"; }

 private:
  ValuePlaces& places_;
};

}  // namespace

std::optional<ValuePlaces::Id> ValuePlaces::id_of(std::uint64_t number) const {
  return ids_.find(number, [&](Id id) { return places_[id].number == number; });
}

void ValuePlaces::add(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  Id id = end_;
  if (free_.empty()) {
    places_.reach(end_++);
  } else {
    id = free_.back();
    free_.pop_back();
  }
  places_[id] = {.number = number};
  ids_.insert(number, id);
}

void ValuePlaces::remove(std::uint64_t number) {
  const std::lock_guard lock(mutex_);
  const std::optional<Id> id = id_of(number);
  if (!id.has_value()) return;
  ids_.erase(number, *id);
  free_.push_back(*id);
}

std::optional<ValuePlace> ValuePlaces::find(std::uint64_t number) const {
  const std::lock_guard lock(mutex_);
  const std::optional<Id> id = id_of(number);
  if (!id.has_value() || places_[*id].file == 0) return std::nullopt;
  return places_[*id];
}

void ValuePlaces::set(std::span<const ValuePlace> places) {
  const std::lock_guard lock(mutex_);
  for (const ValuePlace& place : places) {
    if (const std::optional<Id> id = id_of(place.number); id.has_value()) places_[*id] = place;
  }
}

std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> collect_places(ValuePlaces& places) {
  return std::make_shared<CollectorFactory>(places);
}

// Differences, in wrapping arithmetic: of neighbours they are small.
std::string write_places(std::span<const ValuePlace> places) {
  std::string text;
  put_varint(text, places.size());
  ValuePlace last;
  for (const ValuePlace& place : places) {
    put_varint(text, place.number - last.number);
    put_varint(text, place.file - last.file);
    put_varint(text, place.offset - last.offset);
    last = place;
  }
  return text;
}

Result<std::vector<ValuePlace>> read_places(std::string_view property) {
  const Status damaged(Code::kDataLoss, "places of values in a table are damaged");
  const auto count = take_varint(property);
  if (!count.has_value() || *count > property.size() / 3) return damaged;
  std::vector<ValuePlace> places;
  places.reserve(*count);
  ValuePlace last;
  for (std::uint64_t i = 0; i < *count; ++i) {
    const auto number = take_varint(property);
    const auto file = take_varint(property);
    const auto offset = take_varint(property);
    if (!offset.has_value()) return damaged;
    last.number += *number;
    last.file += static_cast<std::uint32_t>(*file);
    last.offset += static_cast<std::uint32_t>(*offset);
    places.push_back(last);
  }
  if (!property.empty()) return damaged;
  return places;
}

}  // namespace icefield
