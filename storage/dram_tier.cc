#include "storage/dram_tier.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

namespace icefield {

Status DramTier::Options::validate() const {
  constexpr std::int64_t kPage = 4096;
  if (slot_bytes < kPage || slot_bytes % kPage != 0) {
    return Status(Code::kInvalidArgument, "DRAM slot of " + std::to_string(slot_bytes) +
                                              " bytes, expected a multiple of 4096");
  }
  if (capacity_bytes < slot_bytes) {
    return Status(Code::kInvalidArgument, "DRAM capacity of " + std::to_string(capacity_bytes) +
                                              " bytes, expected at least one slot of " +
                                              std::to_string(slot_bytes));
  }
  return Status();
}

Result<std::unique_ptr<DramTier>> DramTier::open(Options options) {
  ICE_TRY(options.validate());
  const auto bytes =
      static_cast<std::size_t>(options.capacity_bytes / options.slot_bytes * options.slot_bytes);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return Status(Code::kResourceExhausted,
                  "DRAM tier of " + std::to_string(bytes) + " bytes: " + std::strerror(errno));
  }
  return std::unique_ptr<DramTier>(
      new DramTier(std::move(options), {static_cast<std::byte*>(memory), bytes}));
}

DramTier::DramTier(Options options, ByteSpan slab) : options_(std::move(options)), slab_(slab) {
  slot_count_ = static_cast<std::int64_t>(slab_.size()) / options_.slot_bytes;
  for (std::int64_t i = slot_count_; i > 0; --i) free_.push_back(static_cast<std::uint32_t>(i - 1));
}

DramTier::~DramTier() {
  ICE_CHECK(leases_ == 0);
  ::munmap(slab_.data(), slab_.size());
}

ByteSpan DramTier::slot(std::uint32_t index) const {
  const auto bytes = static_cast<std::size_t>(options_.slot_bytes);
  return slab_.subspan(index * bytes, bytes);
}

std::vector<ConstByteSpan> DramTier::pieces_of(const Entry& entry) const {
  std::vector<ConstByteSpan> pieces;
  std::int64_t left = entry.info.bytes;
  for (const std::uint32_t index : entry.slots) {
    pieces.push_back(
        slot(index).first(static_cast<std::size_t>(std::min(left, options_.slot_bytes))));
    left -= options_.slot_bytes;
  }
  return pieces;
}

Status DramTier::make_room(std::size_t slots) {
  auto oldest = by_age_.begin();
  while (free_.size() < slots && oldest != by_age_.end()) {
    const ObjectKey key = *oldest++;
    if (entries_.at(key)->pins > 0) continue;
    drop(key);
    evicted.add();
    if (on_evict_) on_evict_(key);
  }
  if (free_.size() >= slots) return Status();
  return Status(Code::kResourceExhausted, "DRAM tier: " + std::to_string(slots) +
                                              " slots wanted, " + std::to_string(free_.size()) +
                                              " of " + std::to_string(slot_count_) +
                                              " free, the others are in use");
}

void DramTier::drop(const ObjectKey& key) {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return;
  const EntryPtr entry = found->second;
  by_age_.erase(entry->age);
  entries_.erase(found);
  if (entry->pins > 0) {
    entry->doomed = true;
  } else {
    release(*entry);
  }
}

void DramTier::release(Entry& entry) {
  free_.insert(free_.end(), entry.slots.begin(), entry.slots.end());
  entry.slots.clear();
}

Task<PutOutcome> DramTier::put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                               ObjectInfo info) {
  if (entries_.contains(key)) co_return PutOutcome::kAlreadyThere;
  const auto slots = static_cast<std::size_t>(ceil_div(info.bytes, options_.slot_bytes));
  if (static_cast<std::int64_t>(slots) > slot_count_) {
    co_return Status(Code::kResourceExhausted, "object of " + std::to_string(info.bytes) +
                                                   " bytes, DRAM tier of " +
                                                   std::to_string(slab_.size()));
  }
  ICE_CO_TRY(make_room(slots));
  auto entry = std::make_shared<Entry>();
  entry->info = info;
  entry->slots.assign(free_.end() - static_cast<std::ptrdiff_t>(slots), free_.end());
  free_.resize(free_.size() - slots);
  std::size_t at = 0;  // in the object
  for (const ConstByteSpan piece : pieces) {
    for (std::size_t done = 0; done < piece.size();) {
      const auto slot_bytes = static_cast<std::size_t>(options_.slot_bytes);
      const ByteSpan into = slot(entry->slots[at / slot_bytes]).subspan(at % slot_bytes);
      const std::size_t count = std::min(into.size(), piece.size() - done);
      std::memcpy(into.data(), piece.data() + done, count);
      done += count;
      at += count;
    }
  }
  ICE_CHECK(static_cast<std::int64_t>(at) == info.bytes);
  entry->age = by_age_.insert(by_age_.end(), key);
  entries_.emplace(key, std::move(entry));
  co_return PutOutcome::kStored;
}

Task<ObjectBytes> DramTier::get(ObjectKey key, Verify verify) {
  const auto found = entries_.find(key);
  if (found == entries_.end()) {
    co_return Status::miss(MissReason::kNeverStored, "object " + to_string(key));
  }
  const EntryPtr entry = found->second;
  std::vector<ConstByteSpan> pieces = pieces_of(*entry);
  if (verify == Verify::kByTier) {
    Status status = verify_object(key, entry->info, pieces);
    if (!status.ok()) {
      damaged.add();
      drop(key);
      co_return status;
    }
  }
  by_age_.splice(by_age_.end(), by_age_, entry->age);
  ++entry->pins;
  ++leases_;
  std::shared_ptr<const void> pin(entry.get(), [this, entry](const void*) {
    --leases_;
    if (--entry->pins == 0 && entry->doomed) release(*entry);
  });
  co_return ObjectBytes(std::move(pieces), std::move(pin));
}

Task<> DramTier::remove(ObjectKey key) {
  drop(key);
  co_return Status();
}

Task<> DramTier::flush() { co_return Status(); }

std::optional<ObjectInfo> DramTier::find(const ObjectKey& key) const {
  const auto found = entries_.find(key);
  if (found == entries_.end()) return std::nullopt;
  return found->second->info;
}

void DramTier::for_each(
    const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const {
  for (const auto& [key, entry] : entries_) visit(key, entry->info);
}

TierUsage DramTier::usage() const {
  const auto free_slots = static_cast<std::int64_t>(free_.size());
  return {.name = "dram",
          .object_count = static_cast<std::int64_t>(entries_.size()),
          .used_bytes = (slot_count_ - free_slots) * options_.slot_bytes,
          .capacity_bytes = slot_count_ * options_.slot_bytes};
}

}  // namespace icefield
