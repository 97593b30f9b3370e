#include "transport/ucx/endpoint.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <set>

namespace icefield::ucx {
namespace {

// Fragments of one message that are posted before the first has gone: enough to keep a lane busy,
// few enough that a small message is not stuck behind a large one.
constexpr std::size_t kMessageWindow = 8;
// Copied fragments of all messages together.
constexpr int kCopyWindow = 16;
// Of a one-sided read: what is seen at a time, and how much is under way where that takes time.
constexpr std::size_t kReadSliceBytes = 64 << 10;
constexpr int kReadWindow = 16;
// Keys kept unpacked.
constexpr std::size_t kMaxRegions = 256;

// Whether there is anything at the end of what should be `memory`.
bool is_mapped(ByteSpan memory) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto last = reinterpret_cast<std::uintptr_t>(memory.data()) + memory.size() - 1;
  unsigned char ignored = 0;
  return ::mincore(reinterpret_cast<void*>(last / page * page), 1, &ignored) == 0;
}

bool protect(ByteSpan memory, int protection) {
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(memory.data()) / page * page;
  const auto end = reinterpret_cast<std::uintptr_t>(memory.data()) + memory.size();
  return ::mprotect(reinterpret_cast<void*>(begin), end - begin, protection) == 0;
}

// The completion of a flush or close.
struct Completion {
  explicit Completion(Waiters& waiters_in) : waiters(waiters_in) {}
  static void done(void* request, ucs_status_t, void* self) {
    auto& completion = *static_cast<Completion*>(self);
    completion.pending = false;
    completion.waiters.notify_all();
    ucp_request_free(request);
  }
  ucp_request_param_t param() {
    ucp_request_param_t param{};
    param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
    param.cb.send = &Completion::done;
    param.user_data = this;
    return param;
  }
  Waiters& waiters;
  bool pending = false;
};

std::string joined(const std::set<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ",") + name;
  return text;
}

}  // namespace

// What UCX needs until a fragment has gone.
struct Endpoint::Slot {
  explicit Slot(Endpoint& endpoint_in) : endpoint(endpoint_in) {}
  Endpoint& endpoint;
  FragmentHeader header;
  std::vector<ConstByteSpan> pieces;  // empty: the loan has ended
  std::size_t bytes = 0;              // of all pieces, as long as there was a loan
  std::vector<ucp_dt_iov_t> iov;      // the pieces of a firm loan
  Buffer copy;                        // one of free_copies_ until it comes back
  Loan* loan = nullptr;               // null: a copy, or the loan has ended
};

void Endpoint::Loan::end() {
  ended_ = true;
  for (Slot* slot : slots_) {
    slot->header.kind = FragmentKind::kAbort;
    slot->pieces.clear();
    slot->loan = nullptr;
    ++slot->endpoint.copies_in_flight_;
  }
  slots_.clear();
}

// Cuts a message into fragments.
class Endpoint::Cursor {
 public:
  explicit Cursor(Message& message) : message_(message), piece_(as_bytes(message.header)) {
    message.fragment.header_bytes = static_cast<std::uint32_t>(message.header.size());
    message.fragment.payload_bytes = 0;
    for (const ConstByteSpan bytes : message.payload) {
      message.fragment.payload_bytes += bytes.size();
    }
  }

  bool begun() const { return begun_; }
  bool done() const { return begun_ && offset_ == message_.fragment.message_bytes(); }
  std::uint64_t left() const { return message_.fragment.message_bytes() - offset_; }

  // Fills header and pieces of `slot` with the next fragment, of at most so many bytes.
  void next(Slot& slot, std::int64_t most) {
    slot.header = message_.fragment;
    slot.header.offset = offset_;
    slot.pieces.clear();
    std::uint64_t room = std::min(left(), static_cast<std::uint64_t>(most));
    slot.bytes = static_cast<std::size_t>(room);
    offset_ += room;
    begun_ = true;
    if (message_.departure != nullptr && offset_ > message_.header.size()) {
      message_.departure->leaving(static_cast<std::int64_t>(offset_ - message_.header.size()));
    }
    while (room > 0) {
      if (piece_.empty()) piece_ = message_.payload[next_piece_++];
      const std::size_t part = std::min<std::size_t>(room, piece_.size());
      if (part > 0) add_piece(slot.pieces, piece_.first(part));
      piece_ = piece_.subspan(part);
      room -= part;
    }
  }

 private:
  // Neighbours in memory are one piece: UCX copies what has many.
  static void add_piece(std::vector<ConstByteSpan>& pieces, ConstByteSpan piece) {
    if (!pieces.empty() && pieces.back().data() + pieces.back().size() == piece.data()) {
      pieces.back() = {pieces.back().data(), pieces.back().size() + piece.size()};
    } else {
      pieces.push_back(piece);
    }
  }

  Message& message_;
  ConstByteSpan piece_;  // what is left of the piece at hand; the header comes first
  std::size_t next_piece_ = 0;
  std::uint64_t offset_ = 0;
  bool begun_ = false;
};

Endpoint::Endpoint(UcxWorker& worker, std::function<void(Status)> on_failure)
    : worker_(worker), on_failure_(std::move(on_failure)) {}

Endpoint::~Endpoint() {
  ICE_CHECK(endpoint_ == nullptr && in_flight_ == 0);
  if (packed_slot_ != 0) ucp_dt_destroy(packed_slot_);
}

Result<std::unique_ptr<Endpoint>> Endpoint::create(UcxWorker& worker, const std::string& remote,
                                                   std::function<void(Status)> on_failure) {
  std::unique_ptr<Endpoint> endpoint(new Endpoint(worker, std::move(on_failure)));
  const ucp_generic_dt_ops_t slots{
      .start_pack = [](void*, const void* slot, std::size_t) { return const_cast<void*>(slot); },
      .start_unpack = nullptr,
      .packed_size = [](void* slot) { return static_cast<Slot*>(slot)->bytes; },
      .pack = &Endpoint::pack,
      .unpack = nullptr,
      .finish = [](void*) {}};
  if (ucp_dt_create_generic(&slots, nullptr, &endpoint->packed_slot_) != UCS_OK) {
    return Status(Code::kResourceExhausted, "no memory for a UCX datatype");
  }
  ucp_ep_params_t params{};
  params.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE |
                      UCP_EP_PARAM_FIELD_ERR_HANDLER;
  params.address = reinterpret_cast<const ucp_address_t*>(remote.data());
  params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
  params.err_handler.cb = &Endpoint::on_error;
  params.err_handler.arg = endpoint.get();
  const ucs_status_t status = ucp_ep_create(worker.handle(), &params, &endpoint->endpoint_);
  if (status != UCS_OK) {
    return Status(Code::kUnavailable, "no lane to the peer: " + describe(status));
  }
  endpoint->find_lanes();
  if (endpoint->lanes_ == "tcp") {
    endpoint->fragment_bytes_ = kTcpFragmentBytes;
    endpoint->copy_bytes_ = kTcpFragmentBytes;
  }
  worker.wake();
  return endpoint;
}

Task<> Endpoint::send(Message& message) {
  Loan loan(Loan::Kind::kFirm);
  co_return co_await send_lent(message, loan);
}

// Where the loan may end, the first fragment is copied: a peer that has seen it knows what an abort
// is about.
Task<> Endpoint::send_lent(Message& message, Loan& loan) {
  Cursor cursor(message);
  const bool small = cursor.left() <= static_cast<std::uint64_t>(kSmallBytes);
  const bool may_end = loan.kind_ == Loan::Kind::kMayEnd;
  while (!cursor.done() && failure_.ok() && !loan.ended()) {
    const bool copy = small || (may_end && !cursor.begun());
    if (copy ? copies_in_flight_ >= kCopyWindow : loan.slots_.size() == kMessageWindow) {
      co_await sent_.wait(Deadline::never());
      continue;
    }
    Slot* slot = take_slot(copy ? nullptr : &loan);
    cursor.next(*slot, copy ? copy_bytes_ : fragment_bytes_);
    loan.begun_ = true;
    post(slot);
  }
  while (!loan.slots_.empty()) co_await sent_.wait(Deadline::never());
  ICE_CO_TRY(failure_);
  if (!cursor.done()) co_return Status(Code::kCancelled, "call abandoned");
  co_return Status();
}

bool Endpoint::try_send_copy(Message& message) {
  Cursor cursor(message);
  if (cursor.left() > static_cast<std::uint64_t>(fragment_bytes_) ||
      copies_in_flight_ >= kCopyWindow)
    return false;
  Slot* slot = take_slot(nullptr);
  cursor.next(*slot, fragment_bytes_);
  post(slot);
  return true;
}

Endpoint::Slot* Endpoint::take_slot(Loan* loan) {
  std::unique_ptr<Slot> slot;
  if (free_.empty()) {
    slot = std::make_unique<Slot>(*this);
  } else {
    slot = std::move(free_.back());
    free_.pop_back();
  }
  slot->loan = loan;
  if (loan == nullptr) {
    ++copies_in_flight_;
  } else {
    loan->slots_.push_back(slot.get());
  }
  ++in_flight_;
  return slot.release();
}

Buffer Endpoint::take_copy() {
  if (free_copies_.empty()) return Buffer(fragment_bytes_);
  Buffer copy = std::move(free_copies_.back());
  free_copies_.pop_back();
  return copy;
}

void Endpoint::give_back(Slot* slot) {
  --in_flight_;
  if (slot->loan == nullptr) {
    --copies_in_flight_;
  } else {
    std::erase(slot->loan->slots_, slot);
  }
  if (slot->copy.capacity() > 0) free_copies_.push_back(std::exchange(slot->copy, Buffer()));
  free_.emplace_back(slot);
  sent_.notify_all();
}

// UCX asks for the bytes of a lent fragment when there is room for them on the way, by then the
// loan may have ended.
std::size_t Endpoint::pack(void* state, std::size_t offset, void* to, std::size_t room) {
  const Slot& slot = *static_cast<Slot*>(state);
  const std::size_t count = std::min(room, slot.bytes - offset);
  auto* at = static_cast<std::byte*>(to);
  std::size_t left = count;
  for (ConstByteSpan piece : slot.pieces) {
    const std::size_t skipped = std::min(offset, piece.size());
    offset -= skipped;
    piece = piece.subspan(skipped).first(std::min(left, piece.size() - skipped));
    if (piece.empty()) continue;
    std::memcpy(at, piece.data(), piece.size());
    at += piece.size();
    left -= piece.size();
  }
  if (left > 0) std::memset(at, 0, left);
  return count;
}

void Endpoint::post(Slot* slot) {
  if (!failure_.ok()) {
    give_back(slot);
    return;
  }
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA |
                       UCP_OP_ATTR_FIELD_FLAGS | UCP_OP_ATTR_FIELD_DATATYPE;
  param.cb.send = &Endpoint::on_sent;
  param.user_data = slot;
  param.flags = UCP_AM_SEND_FLAG_EAGER;
  const void* buffer = slot;
  std::size_t count = 1;
  if (slot->loan == nullptr) {
    slot->copy = take_copy();
    slot->copy.resize(fragment_bytes_);
    count = pack(slot, 0, slot->copy.bytes().data(), slot->bytes);
    buffer = slot->copy.bytes().data();
    param.datatype = ucp_dt_make_contig(1);
  } else if (slot->loan->kind_ == Loan::Kind::kMayEnd) {
    param.datatype = packed_slot_;
  } else {
    slot->iov.clear();
    for (const ConstByteSpan piece : slot->pieces) {
      slot->iov.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
    }
    const bool one = slot->iov.size() == 1;
    param.datatype = one ? ucp_dt_make_contig(1) : ucp_dt_make_iov();
    buffer = one ? slot->iov.front().buffer : slot->iov.data();
    count = one ? slot->iov.front().length : slot->iov.size();
  }
  const ucs_status_ptr_t request = ucp_am_send_nbx(endpoint_, kActiveMessage, &slot->header,
                                                   sizeof slot->header, buffer, count, &param);
  worker_.sent();
  if (request != nullptr && !UCS_PTR_IS_ERR(request)) {
    worker_.wake();
    return;
  }
  if (request != nullptr) fail(Status(Code::kUnavailable, describe(UCS_PTR_STATUS(request))));
  give_back(slot);
}

void Endpoint::on_sent(void* request, ucs_status_t status, void* slot) {
  Slot* const sent = static_cast<Slot*>(slot);
  Endpoint& self = sent->endpoint;
  if (status != UCS_OK) self.fail(Status(Code::kUnavailable, describe(status)));
  self.give_back(sent);
  ucp_request_free(request);
}

Result<Endpoint::Remote> Endpoint::unpack(const RegionKey& key) {
  ICE_TRY(failure_);
  const auto found = regions_.find(key.packed);
  if (found != regions_.end()) return found->second;
  if (regions_.size() == kMaxRegions) {
    return Status(Code::kResourceExhausted,
                  "more than " + std::to_string(kMaxRegions) + " regions of one peer");
  }
  Remote region{.address = key.address};
  ucs_status_t status = ucp_ep_rkey_unpack(endpoint_, key.packed.data(), &region.key);
  if (status == UCS_OK) {
    void* mapped = nullptr;
    status = ucp_rkey_ptr(region.key, region.address, &mapped);
    const ByteSpan memory(static_cast<std::byte*>(mapped), static_cast<std::size_t>(key.bytes));
    if (status == UCS_OK && !is_mapped(memory)) status = UCS_ERR_INVALID_ADDR;
    if (status == UCS_OK) {
      region.mapped = memory.data();
      // What writes there by mistake is stopped, until somebody does so on purpose. Where the owner
      // is another process: in its own, UCX may give the region itself.
      region.writable =
          reinterpret_cast<std::uint64_t>(mapped) == region.address || !protect(memory, PROT_READ);
    } else if (!shares_memory()) {
      status = UCS_OK;  // between machines it is nobody's memory here, and lanes read it
    } else {
      ucp_rkey_destroy(region.key);
    }
  }
  if (status != UCS_OK) {
    return Status(Code::kFailedPrecondition, "the region cannot be reached: " + describe(status));
  }
  regions_.emplace(key.packed, region);
  return region;
}

Result<ByteSpan> Endpoint::unpack_writable(const RegionKey& key) {
  ICE_TRY(const Remote region, unpack(key));
  const ByteSpan memory(region.mapped, static_cast<std::size_t>(key.bytes));
  if (region.mapped == nullptr || !(region.writable || protect(memory, PROT_READ | PROT_WRITE))) {
    return Status(Code::kFailedPrecondition, "the region cannot be written");
  }
  regions_.at(key.packed).writable = true;
  return memory;
}

bool Endpoint::Read::start() {
  if (into_.empty()) seen_(0);
  while (posted_ < into_.size() && endpoint_.failure_.ok()) {
    if (!post_slice()) return false;
    if (endpoint_.failure_.ok()) seen_(posted_);
  }
  return endpoint_.failure_.ok();
}

Task<> Endpoint::Read::finish(const bool& abandoned) {
  while (posted_ < into_.size() && endpoint_.failure_.ok() && !abandoned) {
    if (in_flight_ == kReadWindow) {
      co_await endpoint_.sent_.wait(Deadline::never());
      continue;
    }
    post_slice();
  }
  while (in_flight_ > 0) co_await endpoint_.sent_.wait(Deadline::never());
  ICE_CO_TRY(endpoint_.failure_);
  if (posted_ < into_.size()) co_return Status(Code::kCancelled, "read abandoned");
  seen_(posted_);
  co_return Status();
}

// False when it is under way still.
bool Endpoint::Read::post_slice() {
  while (run_done_ == runs_[run_].bytes) {
    ++run_;
    run_done_ = 0;
  }
  const auto left = static_cast<std::size_t>(runs_[run_].bytes - run_done_);
  const ByteSpan slice = into_.subspan(posted_, std::min(kReadSliceBytes, left));
  const auto at = static_cast<std::uint64_t>(runs_[run_].offset + run_done_);
  posted_ += slice.size();
  run_done_ += std::ssize(slice);
  ucp_request_param_t param{};
  param.op_attr_mask = UCP_OP_ATTR_FIELD_CALLBACK | UCP_OP_ATTR_FIELD_USER_DATA;
  param.cb.send = &Read::on_slice;
  param.user_data = this;
  const ucs_status_ptr_t request = ucp_get_nbx(endpoint_.endpoint_, slice.data(), slice.size(),
                                               region_.address + at, region_.key, &param);
  if (request == nullptr) return true;
  if (UCS_PTR_IS_ERR(request)) {
    endpoint_.fail(Status(Code::kUnavailable, describe(UCS_PTR_STATUS(request))));
    return true;
  }
  ++in_flight_;
  ++endpoint_.in_flight_;
  endpoint_.worker_.wake();
  return false;
}

void Endpoint::Read::on_slice(void* request, ucs_status_t status, void* self) {
  Read& read = *static_cast<Read*>(self);
  Endpoint& endpoint = read.endpoint_;
  if (status != UCS_OK) endpoint.fail(Status(Code::kUnavailable, describe(status)));
  --read.in_flight_;
  --endpoint.in_flight_;
  endpoint.sent_.notify_all();
  ucp_request_free(request);
}

void Endpoint::on_error(void* self, ucp_ep_h, ucs_status_t status) {
  static_cast<Endpoint*>(self)->fail(Status(Code::kUnavailable, describe(status)));
}

void Endpoint::fail(Status status) {
  if (!failure_.ok()) return;
  failure_ = std::move(status);
  sent_.notify_all();
  asio::post(worker_.shard(), [notify = on_failure_, why = failure_] { notify(why); });
}

asio::awaitable<void> Endpoint::close(Deadline flush) {
  Completion flushed(sent_);
  if (failure_.ok() && !flush.is_never()) {
    const ucp_request_param_t param = flushed.param();
    const ucs_status_ptr_t request = ucp_ep_flush_nbx(endpoint_, &param);
    flushed.pending = request != nullptr && !UCS_PTR_IS_ERR(request);
    worker_.wake();
    bool in_time = true;
    while (flushed.pending && in_time) in_time = co_await sent_.wait(flush);
  }
  fail(Status(Code::kUnavailable, "connection closed"));
  Completion closed(sent_);
  ucp_request_param_t param = closed.param();
  param.op_attr_mask |= UCP_OP_ATTR_FIELD_FLAGS;
  param.flags = UCP_EP_CLOSE_FLAG_FORCE;
  const ucs_status_ptr_t request = ucp_ep_close_nbx(endpoint_, &param);
  closed.pending = request != nullptr && !UCS_PTR_IS_ERR(request);
  worker_.wake();
  while (closed.pending || flushed.pending || in_flight_ > 0) {
    co_await sent_.wait(Deadline::never());
  }
  for (const auto& [packed, region] : regions_) ucp_rkey_destroy(region.key);
  regions_.clear();
  endpoint_ = nullptr;
}

void Endpoint::find_lanes() {
  lanes_ = "unknown";
  char* text = nullptr;
  std::size_t bytes = 0;
  std::FILE* stream = open_memstream(&text, &bytes);
  if (stream == nullptr) return;
  ucp_ep_print_info(endpoint_, stream);
  std::fclose(stream);
  // Lines such as "#  lane[0]:  4:posix/memory.0 md[3]  -> md[2]/posix/sysdev[255] rma_bw#0 am".
  std::set<std::string> names;
  std::set<std::string> devices;
  std::string_view rest(text, bytes);
  for (std::size_t at = rest.find("lane["); at != rest.npos; at = rest.find("lane[")) {
    rest.remove_prefix(at + 5);
    const std::string_view line = rest.substr(0, rest.find('\n'));
    const std::size_t colon = line.find(':', line.find(':') + 1);
    const std::size_t slash = line.find('/');
    if (colon != line.npos && slash != line.npos && colon < slash) {
      names.emplace(line.substr(colon + 1, slash - colon - 1));
      const std::string_view device = line.substr(slash + 1, line.find(' ', slash) - slash - 1);
      devices.emplace(device.substr(0, device.rfind('.')));  // less the number of its memory
    }
  }
  std::free(text);
  lanes_ = joined(names);
  devices_ = joined(devices);
}

}  // namespace icefield::ucx
