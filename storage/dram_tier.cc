#include "storage/dram_tier.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "common/run_writer.h"

namespace icefield {
namespace {

// Of the tier, for all reservations together: what is on its way must not drive out what is there.
constexpr std::int64_t kReservedShare = 4;

}  // namespace

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
  ICE_CHECK(leases_ == 0 && reserved_count_ == 0);
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

template <class Span>
void DramTier::append_runs(std::uint32_t first_slot, std::int64_t bytes,
                           std::vector<Span>& runs) const {
  const std::size_t begin = runs.size();
  auto left = static_cast<std::size_t>(bytes);
  for (std::uint32_t index = first_slot; left > 0; index = next_slot_[index]) {
    const ByteSpan part = slot(index).first(std::min(left, slot(index).size()));
    if (runs.size() > begin && runs.back().data() + runs.back().size() == part.data()) {
      runs.back() = {runs.back().data(), runs.back().size() + part.size()};
    } else {
      runs.push_back(part);
    }
    left -= part.size();
  }
}

void DramTier::Reservation::append_runs(std::vector<ByteSpan>& runs) const {
  tier_->append_runs(first_slot_, bytes_, runs);
}

std::vector<ConstByteSpan> DramTier::pieces_of(const Entry& entry) const {
  std::vector<ConstByteSpan> pieces;
  append_runs(entry.first_slot, entry.bytes, pieces);
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
    release(*id);
    if (on_evict_) on_evict_(key);
  }
  return Status();
}

std::uint32_t DramTier::take_slots(std::int64_t count) {
  std::uint32_t first = kNoSlot;
  std::uint32_t last = kNoSlot;
  for (; count > 0; --count, --free_count_) {
    std::uint32_t index = first_free_;
    if (index == kNoSlot) {
      index = static_cast<std::uint32_t>(next_slot_.size());
      next_slot_.push_back(kNoSlot);
    } else {
      first_free_ = next_slot_[index];
    }
    (last == kNoSlot ? first : next_slot_[last]) = index;
    last = index;
  }
  next_slot_[last] = kNoSlot;
  return first;
}

void DramTier::give_slots_back(std::uint32_t first, std::int64_t count) {
  free_count_ += count;
  (first_free_ == kNoSlot ? first_free_ : next_slot_[last_free_]) = first;
  last_free_ = first;
  for (; count > 1; --count) last_free_ = next_slot_[last_free_];
  next_slot_[last_free_] = kNoSlot;
}

void DramTier::release(Id id) {
  give_slots_back(objects_[id].first_slot, slots_of(objects_[id].bytes));
  objects_.reuse(id);
}

void DramTier::drop(Id id) {
  objects_.hide(id, objects_.name_of(objects_[id].key));
  if (evictor_.in_use(id)) {
    doomed_.insert(id);
    return;
  }
  evictor_.erase(id);
  release(id);
}

void DramTier::end_lease(Id id) {
  --leases_;
  evictor_.end_use(id);
  if (doomed_.empty() || evictor_.in_use(id) || doomed_.erase(id) == 0) return;
  evictor_.erase(id);
  release(id);
}

// Whether the object is there; if its time is over, it is not.
bool DramTier::drop_expired(const ObjectKey& key, std::uint64_t name) {
  const std::optional<Id> old = objects_.find(key, name);
  if (!old.has_value()) return false;
  if (alive(*old)) return true;
  expired.add();
  drop(*old);
  return false;
}

Result<DramTier::Reservation> DramTier::take(const ObjectKey& key, std::int64_t bytes) {
  ICE_TRY(check_info({.bytes = bytes}));
  const std::int64_t slots = slots_of(bytes);
  if (slots > slot_count_) {
    return Status(Code::kResourceExhausted, "object of " + std::to_string(bytes) +
                                                " bytes, DRAM tier of " +
                                                std::to_string(slab_.size()));
  }
  evictor_.expect({.name = objects_.name_of(key), .weight = static_cast<std::uint32_t>(slots)});
  ICE_TRY(make_room(slots));
  reserved_count_ += slots;
  return Reservation(*this, key, bytes, take_slots(slots));
}

DramTier::Reservation::~Reservation() {
  if (tier_ == nullptr) return;
  tier_->reserved_count_ -= tier_->slots_of(bytes_);
  tier_->give_slots_back(first_slot_, tier_->slots_of(bytes_));
}

Status DramTier::check_share(std::int64_t slots) const {
  if (reserved_count_ + slots <= slot_count_ / kReservedShare) return Status();
  return Status(Code::kResourceExhausted, std::to_string(reserved_count_) + " of " +
                                              std::to_string(slot_count_) +
                                              " slots of the DRAM tier are reserved");
}

Result<DramTier::Reservation> DramTier::reserve(const ObjectKey& key, std::int64_t bytes) {
  ICE_TRY(check_share(slots_of(bytes)));
  return take(key, bytes);
}

Result<DramTier::Reservation> DramTier::reserve_slots(std::int64_t slots) {
  ICE_CHECK(slots > 0);
  ICE_TRY(check_share(slots));
  ICE_TRY(make_room(slots));
  reserved_count_ += slots;
  return Reservation(*this, ObjectKey(), slots * options_.slot_bytes, take_slots(slots));
}

std::optional<DramTier::Reservation> DramTier::Reservation::split(const ObjectKey& key,
                                                                  std::int64_t bytes) {
  if (tier_ == nullptr || bytes > bytes_) return std::nullopt;
  DramTier& tier = *tier_;
  const std::int64_t slots = tier.slots_of(bytes);
  tier.evictor_.expect(
      {.name = tier.objects_.name_of(key), .weight = static_cast<std::uint32_t>(slots)});
  Reservation front(tier, key, bytes, first_slot_);
  bytes_ -= slots * tier.options_.slot_bytes;
  if (bytes_ <= 0) {
    tier_ = nullptr;
    return front;
  }
  std::uint32_t last = first_slot_;
  for (std::int64_t left = slots; left > 1; --left) last = tier.next_slot_[last];
  first_slot_ = std::exchange(tier.next_slot_[last], kNoSlot);
  return front;
}

Result<PutOutcome> DramTier::store(Reservation reserved, const ObjectInfo& info) {
  ICE_CHECK(reserved.tier_ == this && reserved.bytes_ == info.bytes);
  const std::uint64_t name = objects_.name_of(reserved.key_);
  if (drop_expired(reserved.key_, name)) return PutOutcome::kAlreadyThere;
  const std::int64_t slots = slots_of(info.bytes);
  const Entry entry{.key = reserved.key_,
                    .bytes = static_cast<std::uint32_t>(info.bytes),
                    .first_slot = reserved.first_slot_,
                    .checksum = info.checksum};
  reserved.tier_ = nullptr;
  reserved_count_ -= slots;
  evictor_.insert(objects_.insert(entry, name),
                  {.name = name, .weight = static_cast<std::uint32_t>(slots)}, info.retention);
  return PutOutcome::kStored;
}

Task<PutOutcome> DramTier::put(ObjectKey key, std::span<const ConstByteSpan> pieces,
                               ObjectInfo info) {
  if (drop_expired(key, objects_.name_of(key))) co_return PutOutcome::kAlreadyThere;
  ICE_CO_TRY(Reservation reserved, take(key, info.bytes));
  std::vector<ByteSpan> runs;
  reserved.append_runs(runs);
  RunWriter writer(runs);
  for (const ConstByteSpan piece : pieces) writer.put(piece);
  ICE_CHECK(writer.full());  // else the slots' old bytes would be the rest of the object
  co_return store(std::move(reserved), info);
}

Result<ObjectBytes> DramTier::read(const ObjectKey& key, Verify verify) {
  const std::uint64_t name = objects_.name_of(key);
  const std::optional<Id> found = objects_.find(key, name);
  if (!found.has_value()) {
    const bool evicted_lately = evictor_.remembers(name);
    return Status::miss(evicted_lately ? MissReason::kEvicted : MissReason::kNeverStored,
                        "object " + to_string(key));
  }
  const Id id = *found;
  if (!alive(id)) {
    return Status::miss(MissReason::kExpired, "object " + to_string(key));
  }
  if (verify == Verify::kByTier) {
    Status status = verify_object(key, info_of(id), pieces_of(objects_[id]));
    if (!status.ok()) {
      damaged.add();
      drop(id);
      return status;
    }
  }
  evictor_.touch(id);
  return lease(id);
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

bool DramTier::erase(const ObjectKey& key) {
  const std::optional<Id> id = objects_.find(key, objects_.name_of(key));
  if (id.has_value()) drop(*id);
  return id.has_value();
}

Task<> DramTier::remove(ObjectKey key) {
  erase(key);
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
