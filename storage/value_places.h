// storage/value_places.h — where in which blob file a value stands, learned as RocksDB writes it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/status.h"
#include "storage/id_table.h"
#include "storage/paged_vector.h"

namespace rocksdb {
class TablePropertiesCollectorFactory;
}  // namespace rocksdb

namespace icefield {

struct ValuePlace {
  std::uint64_t number = 0;  // of the value
  std::uint32_t file = 0;    // 0: not known
  std::uint32_t offset = 0;
  friend bool operator==(const ValuePlace&, const ValuePlace&) = default;
};

// A hint, never the truth: RocksDB may have moved the value or dropped the file since, so whoever
// reads by a place verifies what comes, and asks RocksDB when it is wrong. What it buys: a Get
// checks a CRC of its own and copies twice, 55 µs of a core for 16 KiB where a pread is 17.
//
// Only numbers that were added are kept, 26 to 29 bytes each.
//
// Threads  Safe from any thread.
class ValuePlaces {
 public:
  void add(std::uint64_t number);
  void remove(std::uint64_t number);
  std::optional<ValuePlace> find(std::uint64_t number) const;
  // Of numbers that are not there nothing is kept.
  void set(std::span<const ValuePlace> places);

 private:
  using Id = IdTable::Id;

  std::optional<Id> id_of(std::uint64_t number) const;  // under mutex_

  mutable std::mutex mutex_;  // guards all below
  PagedVector<ValuePlace> places_;
  std::vector<Id> free_;
  IdTable ids_;
  Id end_ = 0;
};

// Tells `places` of every value that a table of references comes to refer to, in flushes and in
// compactions, and keeps them as a property of the table, for read_places() after a restart.
std::shared_ptr<rocksdb::TablePropertiesCollectorFactory> collect_places(ValuePlaces& places);
inline constexpr std::string_view kPlacesProperty = "icefield.places";
// kDataLoss when `property` is none.
Result<std::vector<ValuePlace>> read_places(std::string_view property);
// As it stands in the property.
std::string write_places(std::span<const ValuePlace> places);

}  // namespace icefield
