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
  const auto bytes = memory.empty() ? capacity_bytes : static_cast<std::int64_t>(memory.size());
  if (bytes < slot_bytes) {
    return Status(Code::kInvalidArgument, "DRAM capacity of " + std::to_string(bytes) +
                                              " bytes, expected at least one slot of " +
                                              std::to_string(slot_bytes));
  }
  if (bytes / slot_bytes >= kNoSlot) {
    return Status(Code::kInvalidArgument, "DRAM capacity of " + std::to_string(bytes) +
                                              " bytes in slots of " + std::to_string(slot_bytes) +
                                              ", expected fewer than 2^32 slots");
  }
  return Status();
}

Result<std::unique_ptr<DramTier>> DramTier::open(Options options, const Clock& clock) {
  ICE_TRY(options.validate());
  if (!options.memory.empty()) {
    return std::unique_ptr<DramTier>(new DramTier(options, clock, options.memory));
  }
  const auto bytes =
      static_cast<std::size_t>(options.capacity_bytes / options.slot_bytes * options.slot_bytes);
  void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    return Status(Code::kResourceExhausted,
                  "DRAM tier of " + std::to_string(bytes) + " bytes: " + std::strerror(errno));
  }
  return std::unique_ptr<DramTier>(
      new DramTier(options, clock, {static_cast<std::byte*>(memory), bytes}));
}

DramTier::DramTier(Options options, const Clock& clock, ByteSpan slab)
    : options_(options),
      clock_(clock),
      slab_(slab),
      slot_count_(static_cast<std::int64_t>(slab.size()) / options.slot_bytes),
      evictor_(make_eviction_policy(options.eviction, slot_count_)) {
  // Slots are handed out from the front of the slab on, so memory is touched as it is needed; the
  // chain grows with it.
  next_slot_.reserve(static_cast<std::size_t>(slot_count_));
  free_count_ = slot_count_;
}

DramTier::~DramTier() {
  ICE_CHECK(leases_ == 0);
  if (options_.memory.empty()) ::munmap(slab_.data(), slab_.size());
}

ByteSpan DramTier::slot(std::uint32_t index) const {
  const auto bytes = static_cast<std::size_t>(options_.slot_bytes);
  return slab_.subspan(index * bytes, bytes);
}

std::int64_t DramTier::slots_of(std::int64_t bytes) const {
  return std::max<std::int64_t>(ceil_div(bytes, options_.slot_bytes), 1);
}

ObjectInfo DramTier::info_of(Id id) const {
  const Entry& entry = objects_[id];
  return {.bytes = entry.bytes, .checksum = entry.checksum, .retention = evictor_.retention(id)};
}

bool DramTier::alive(Id id) const {
  const std::int64_t end = evictor_.retention(id).expires_at_ms;
  return end == 0 || clock_.unix_ms() < end;
}

std::optional<DramTier::Id> DramTier::find_alive(const ObjectKey& key, std::uint64_t name) const {
  const std::optional<Id> id = objects_.find(key, name);
  if (!id.has_value() || !alive(*id)) return std::nullopt;
  return id;
}

std::vector<ConstByteSpan> DramTier::pieces_of(const Entry& entry) const {
  std::vector<ConstByteSpan> pieces;
  pieces.reserve(static_cast<std::size_t>(ceil_div(entry.bytes, options_.slot_bytes)));
  std::int64_t left = entry.bytes;
  for (std::uint32_t index = entry.first_slot; left > 0; index = next_slot_[index]) {
    pieces.push_back(
        slot(index).first(static_cast<std::size_t>(std::min(left, options_.slot_bytes))));
    left -= options_.slot_bytes;
  }
  return pieces;
}

Status DramTier::make_room(std::int64_t slots) {
  while (free_count_ < slots) {
    const std::int64_t now = clock_.unix_ms();
    const std::optional<Id> id = evictor_.evict(now);
    if (!id.has_value()) {
      return Status(Code::kResourceExhausted, "DRAM tier: " + std::to_string(slots) +
                                                  " slots wanted, " + std::to_string(free_count_) +
                                                  " of " + std::to_string(slot_count_) +
                                                  " free, the others are in use or pinned");
    }
    const ObjectKey key = objects_[*id].key;
    (alive(*id) ? evicted : expired).add();
    objects_.hide(*id, objects_.name_of(key));
    give_slots_back(*id);
    if (on_evict_) on_evict_(key);
  }
  return Status();
}

std::uint32_t DramTier::take_slots(std::int64_t count) {
  std::uint32_t first = kNoSlot;
  for (; count > 0; --count, --free_count_) {
    std::uint32_t index = first_free_;
    if (index == kNoSlot) {
      index = static_cast<std::uint32_t>(next_slot_.size());
      next_slot_.push_back(kNoSlot);
    } else {
      first_free_ = next_slot_[index];
    }
    next_slot_[index] = first;
    first = index;
  }
  return first;
}

void DramTier::give_slots_back(Id id) {
  const std::int64_t slots = slots_of(objects_[id].bytes);
  std::uint32_t index = objects_[id].first_slot;
  for (std::int64_t i = 0; i < slots; ++i, ++free_count_) {
    const std::uint32_t next = next_slot_[index];
    next_slot_[index] = first_free_;
    first_free_ = index;
    index = next;
  }
  objects_.reuse(id);
}

void DramTier::drop(Id id) {
  objects_.hide(id, objects_.name_of(objects_[id].key));
  if (evictor_.in_use(id)) {
    doomed_.insert(id);
    return;
  }
  evictor_.erase(id);
  give_slots_back(id);
}

void DramTier::end_lease(Id id) {
  --leases_;
  evictor_.end_use(id);
  if (doomed_.empty() || evictor_.in_use(id) || doomed_.erase(id) == 0) return;
  evictor_.erase(id);
  give_slots_back(id);
}

void DramTier::fill(const Entry& entry, std::span<const ConstByteSpan> pieces) {
  std::uint32_t index = entry.first_slot;
  std::size_t at = 0;  // in the slot
  std::int64_t total = 0;
  for (const ConstByteSpan piece : pieces) {
    for (std::size_t done = 0; done < piece.size();) {
      if (at == static_cast<std::size_t>(options_.slot_bytes)) {
        index = next_slot_[index];
        at = 0;
      }
      const ByteSpan into = slot(index).subspan(at);
      const std::size_t count = std::min(into.size(), piece.size() - done);
      std::memcpy(into.data(), piece.data() + done, count);
      done += count;
      at += count;
    }
    total += static_cast<std::int64_t>(piece.size());
    ICE_CHECK(total <= entry.bytes);
  }
  ICE_CHECK(total == entry.bytes);
}

Task<PutOutcome> DramTier::put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                               ObjectInfo info) {
  ICE_CO_TRY(check_info(info));
  const std::uint64_t name = objects_.name_of(key);
  const std::optional<Id> old = objects_.find(key, name);
  if (old.has_value()) {
    if (alive(*old)) co_return PutOutcome::kAlreadyThere;
    expired.add();
    drop(*old);
  }
  const std::int64_t slots = slots_of(info.bytes);
  if (slots > slot_count_) {
    co_return Status(Code::kResourceExhausted, "object of " + std::to_string(info.bytes) +
                                                   " bytes, DRAM tier of " +
                                                   std::to_string(slab_.size()));
  }
  const Evictor::Object object{.name = name, .weight = static_cast<std::uint32_t>(slots)};
  evictor_.expect(object);
  ICE_CO_TRY(make_room(slots));
  const Entry entry{.key = key,
                    .bytes = static_cast<std::uint32_t>(info.bytes),
                    .first_slot = take_slots(slots),
                    .checksum = info.checksum};
  fill(entry, pieces);
  evictor_.insert(objects_.insert(entry, name), object, info.retention);
  co_return PutOutcome::kStored;
}

Task<ObjectBytes> DramTier::get(ObjectKey key, Verify verify) {
  const std::uint64_t name = objects_.name_of(key);
  const std::optional<Id> found = objects_.find(key, name);
  if (!found.has_value()) {
    const bool evicted_lately = evictor_.remembers(name);
    co_return Status::miss(evicted_lately ? MissReason::kEvicted : MissReason::kNeverStored,
                           "object " + to_string(key));
  }
  const Id id = *found;
  if (!alive(id)) {
    co_return Status::miss(MissReason::kExpired, "object " + to_string(key));
  }
  if (verify == Verify::kByTier) {
    Status status = verify_object(key, info_of(id), pieces_of(objects_[id]));
    if (!status.ok()) {
      damaged.add();
      drop(id);
      co_return status;
    }
  }
  evictor_.touch(id);
  co_return lease(id);
}

ObjectBytes DramTier::lease(Id id) {
  const Entry& entry = objects_[id];
  std::vector<ConstByteSpan> pieces = pieces_of(entry);
  evictor_.begin_use(id);
  ++leases_;
  std::shared_ptr<const void> owner(&entry, [this, id](const void*) { end_lease(id); });
  return ObjectBytes(std::move(pieces), std::move(owner));
}

std::optional<ObjectBytes> DramTier::lease(const ObjectKey& key) {
  const std::optional<Id> id = find_alive(key, objects_.name_of(key));
  if (!id.has_value()) return std::nullopt;
  return lease(*id);
}

Task<> DramTier::remove(ObjectKey key) {
  const std::optional<Id> id = objects_.find(key, objects_.name_of(key));
  if (id.has_value()) drop(*id);
  co_return Status();
}

Task<> DramTier::flush() { co_return Status(); }

Task<> DramTier::retain(ObjectKey key, Retention retention) {
  const std::optional<Id> id = find_alive(key, objects_.name_of(key));
  if (!id.has_value()) {
    co_return Status::miss(MissReason::kNeverStored, "object " + to_string(key));
  }
  evictor_.retain(*id, retention);
  co_return Status();
}

std::optional<ObjectInfo> DramTier::find(const ObjectKey& key) const {
  const std::optional<Id> id = find_alive(key, objects_.name_of(key));
  if (!id.has_value()) return std::nullopt;
  return info_of(*id);
}

void DramTier::for_each(
    const std::function<void(const ObjectKey&, const ObjectInfo&)>& visit) const {
  objects_.for_each([&](Id id, const Entry& entry) {
    if (alive(id)) visit(entry.key, info_of(id));
  });
}

TierUsage DramTier::usage() const {
  return {.name = "dram",
          .object_count = objects_.count(),
          .used_bytes = (slot_count_ - free_count_) * options_.slot_bytes,
          .capacity_bytes = slot_count_ * options_.slot_bytes};
}

}  // namespace icefield
