// transport/ucx/endpoint.h — the sending side of a connection.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "common/waiters.h"
#include "transport/transport.h"
#include "transport/ucx/region_key.h"
#include "transport/ucx/ucx_worker.h"
#include "transport/ucx/wire.h"

namespace icefield::ucx {

// header ‖ payload on its way out. The fragment header lacks the sizes and the offset only.
struct Message {
  Message(const FragmentHeader& fragment_in, std::string header_in)
      : fragment(fragment_in), header(std::move(header_in)) {}

  FragmentHeader fragment;
  std::string header;
  std::vector<ConstByteSpan> payload;
  Departure* departure = nullptr;  // not told any more once the loan of the payload has ended
};

// A UCX endpoint to a worker whose address came by the handshake. It fails as a whole, once: then
// `on_failure` is posted to the shard and every send returns its status.
//
// Threads  The shard's. close() before the destructor.
class Endpoint {
 public:
  struct Slot;
  // The memory of a message while fragments of it are under way. Whoever owns the memory may end
  // the loan at any time, unless it is a firm one (which UCX may hand to the kernel as it is).
  class Loan {
   public:
    enum class Kind { kFirm, kMayEnd };
    explicit Loan(Kind kind) : kind_(kind) {}
    // The memory is not looked at any more.
    void end();
    bool ended() const { return ended_; }
    // Whether the peer may have seen anything of the message.
    bool begun() const { return begun_; }

   private:
    friend class Endpoint;
    const Kind kind_;
    bool ended_ = false;
    bool begun_ = false;
    std::vector<Slot*> slots_;  // under way
  };

  static Result<std::unique_ptr<Endpoint>> create(UcxWorker& worker, const std::string& remote,
                                                  std::function<void(Status)> on_failure);
  ~Endpoint();
  Endpoint(const Endpoint&) = delete;
  Endpoint& operator=(const Endpoint&) = delete;

  // Sends from the message's memory and returns when UCX has let go of it.
  Task<> send(Message& message);

  // Sends from the message's memory as long as it is lent, and returns when UCX has let go of it.
  // kCancelled when the loan ended before: then the peer gets an abort in the place of what was
  // under way, and the caller must send one, too, unless nothing of the message was sent.
  Task<> send_lent(Message& message, Loan& loan);

  // Sends a copy of a message of one fragment and does not wait; false when it would have to.
  bool try_send_copy(Message& message);

  // A region of the peer that can be read.
  struct Remote {
    ucp_rkey_h key = nullptr;
    std::uint64_t address = 0;    // in the peer
    std::byte* mapped = nullptr;  // the same in this process; null: a Read reaches it
    bool writable = false;        // nothing stops who writes there
  };
  // Good until close(). kUnavailable when the peer has gone, kFailedPrecondition when no lane
  // reaches the region, kResourceExhausted when there are many.
  Result<Remote> unpack(const RegionKey& key);
  // The region as memory of this process, from now on to be written. As unpack(), and
  // kFailedPrecondition when it is not mapped.
  Result<ByteSpan> unpack_writable(const RegionKey& key);

  // A one-sided read of what is not mapped. It stays in place until it is done.
  class Read {
   public:
    // Fills `into` with the runs, which together are as long. `seen` gets the length of what is in
    // place, growing, and at last all.
    Read(Endpoint& endpoint, const Remote& region, std::vector<RegionRun> runs, ByteSpan into,
         std::function<void(std::size_t)> seen)
        : endpoint_(endpoint),
          region_(region),
          runs_(std::move(runs)),
          into_(into),
          seen_(std::move(seen)) {}

    // Reads as far as it goes without waiting. False when there is more to wait for.
    bool start();
    // The rest. Returns when UCX has let go of the memory; after `abandoned` turned true as soon
    // as what is under way has come (kCancelled).
    Task<> finish(const bool& abandoned);

   private:
    friend class Endpoint;
    bool post_slice();
    static void on_slice(void* request, ucs_status_t status, void* self);

    Endpoint& endpoint_;
    const Remote region_;
    const std::vector<RegionRun> runs_;
    const ByteSpan into_;
    const std::function<void(std::size_t)> seen_;
    std::size_t posted_ = 0;     // bytes
    std::size_t run_ = 0;        // the next one
    std::int64_t run_done_ = 0;  // bytes of it
    int in_flight_ = 0;
  };

  // Lets go of all memory. With a deadline, waits that long for what is under way to get there.
  asio::awaitable<void> close(Deadline flush);

  const Status& failure() const { return failure_; }
  // The transports that carry it, as UCX names them: "posix", "tcp".
  const std::string& lanes() const { return lanes_; }
  // What they run over, as UCX names it: "memory", "eth0", "mlx5_0:1".
  const std::string& devices() const { return devices_; }
  // Whether they have one-sided reads; TCP emulates them at a millisecond each.
  bool one_sided() const { return lanes_ != "tcp"; }
  // Whether the peer is on this machine and nothing but shared memory carries it.
  bool shares_memory() const { return lanes_ == "posix"; }

 private:
  class Cursor;

  Endpoint(UcxWorker& worker, std::function<void(Status)> on_failure);
  Slot* take_slot(Loan* loan);
  Buffer take_copy();
  void give_back(Slot* slot);
  void post(Slot* slot);
  void fail(Status status);
  static std::size_t pack(void* slot, std::size_t offset, void* to, std::size_t room);
  static void on_sent(void* request, ucs_status_t status, void* slot);
  static void on_error(void* self, ucp_ep_h endpoint, ucs_status_t status);
  // Sets lanes_ and devices_.
  void find_lanes();

  UcxWorker& worker_;
  std::function<void(Status)> on_failure_;
  ucp_ep_h endpoint_ = nullptr;
  std::string lanes_;
  std::string devices_;
  ucp_datatype_t packed_slot_ = 0;  // a Slot whose bytes UCX asks for
  // Messages up to this size are copied: cheaper than a gather list.
  static constexpr std::int64_t kSmallBytes = 4096;
  std::int64_t fragment_bytes_ = kFragmentBytes;
  // Of a copied fragment with more behind it. UCX copies a lent one itself where there is shared
  // memory, so the less the better; over TCP both ways are one copy more than the kernel's.
  std::int64_t copy_bytes_ = kSmallBytes;
  Status failure_;
  int in_flight_ = 0;
  int copies_in_flight_ = 0;
  Waiters sent_;
  std::unordered_map<std::string, Remote> regions_;  // by what was packed
  std::vector<std::unique_ptr<Slot>> free_;
  std::vector<Buffer> free_copies_;  // apart: there are many slots, few of them copies
};

}  // namespace icefield::ucx
