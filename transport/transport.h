// transport/transport.h — typed requests and bulk bytes between a client and a node.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "common/clock.h"
#include "common/task.h"
#include "transport/buffer.h"
#include "transport/caller.h"

namespace icefield {

using Address = std::string;     // "host:port", or a name in loopback
using MethodId = std::uint16_t;  // of the service behind the address

// Sees a successful reply while it arrives, so that its bytes are worked on while a cache has them.
class Arrival {
 public:
  virtual ~Arrival() = default;
  // `header` is complete; of the payload this much is in place. Called at least once, with more
  // each time, at last with all of it; never after the call has returned. Runs on a thread of the
  // transport that others wait for: a few microseconds of work.
  virtual void arrived(std::string_view header, ConstByteSpan payload) = 0;
};

// Sees the payload of a request while it leaves, and may fill in what is behind it: checksums of
// what was sent, computed while a cache has it and the receiver works on it.
class Departure {
 public:
  virtual ~Departure() = default;
  // The first `bytes` of the payload are about to be read, never again those told of before. More
  // each time, at last all; never after the call has returned. Runs as Arrival::arrived().
  virtual void leaving(std::int64_t bytes) = 0;
};

// Runs of bytes in a peer's region, read or written back to back.
struct RegionRun {
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
};
struct RegionRuns {
  std::string key;
  std::vector<RegionRun> runs;
};

// Room in a region of the peer for the front of a request's payload, written one-sided. A ticket
// lies in the room until its owner takes it back or somebody writes there, whoever takes it first
// (take_ticket()).
struct RegionRoom {
  RegionRuns to;
  std::int64_t ticket_offset = 0;  // in the region, a multiple of 8
  std::uint64_t ticket = 0;
};

// A request: a small header and bulk bytes gathered from the caller's memory, which must stay in
// place until the call returns.
struct Request {
  Request(MethodId method_in, std::string header_in)
      : method(method_in), header(std::move(header_in)) {}

  MethodId method;
  std::string header;
  std::vector<ConstByteSpan> payload;
  // None: all of the payload comes with the request. Else its front, as many bytes as the room has,
  // is written there before, and what is left comes with the request.
  std::optional<RegionRoom> room;
  Departure* departure = nullptr;  // null: the payload is as it is
  Arrival* arrival = nullptr;      // null: nobody looks before the call returns
};

struct Reply {
  Reply(std::string header_in, Buffer payload_in)
      : header(std::move(header_in)), payload(std::move(payload_in)) {}
  explicit Reply(Status unplaced_in) : unplaced(std::move(unplaced_in)) {}

  std::string header;
  Buffer payload;  // the buffer that the call was given, filled
  // Not ok: the room of the request is not there or out of reach, so nothing has left, and nobody
  // has replied.
  Status unplaced;
};

// Takes the payload of one request while it arrives, in the place of a buffer of the transport's.
// It ends with the request: when that is answered, or breaks off before it is whole.
//
// Threads  The service's executor.
class Landing {
 public:
  virtual ~Landing() = default;
  // Of the whole payload.
  virtual std::int64_t size() const = 0;
  // The next bytes of the payload, to be copied: the memory is the transport's. Others wait
  // meanwhile: a few microseconds of work.
  virtual void add(ConstByteSpan bytes) = 0;
};

// The bulk bytes of a request as the service gets them: in its landing, else in a buffer.
struct Payload {
  Payload() = default;
  Payload(Buffer buffer_in) : buffer(std::move(buffer_in)) {}
  explicit Payload(std::unique_ptr<Landing> landing_in) : landing(std::move(landing_in)) {}

  std::int64_t size() const { return landing == nullptr ? buffer.size() : landing->size(); }

  Buffer buffer;
  std::unique_ptr<Landing> landing;  // then the buffer is empty
};

// What a service sends back. The transport holds `keep_alive` until it has read the payload, and
// gives it up on the service's executor.
struct ServiceReply {
  std::string header;
  std::vector<ConstByteSpan> payload;
  std::shared_ptr<const void> keep_alive;
};

// The bytes of a gathered payload, and a copy of it: `into` must have the capacity.
std::int64_t payload_bytes(std::span<const ConstByteSpan> pieces);
void gather(std::span<const ConstByteSpan> pieces, Buffer& into);

// Memory that callers of this process may read and write by themselves, one-sided. It stays as long
// as the transport.
struct Region {
  ByteSpan bytes;
  std::string key;  // what a caller needs, opaque; whoever knows it may reach all of the region
};

// The bytes of all runs. kInvalidArgument when one of them does not lie in a region of that many
// bytes, kResourceExhausted when together they are more than `most`.
Result<std::int64_t> check_runs(std::span<const RegionRun> runs, std::int64_t region_bytes,
                                std::int64_t most);

// Of room in a region, at a multiple of eight bytes. take_ticket() is true once: for who of the
// owner and the writer, in whichever process, comes first.
void put_ticket(std::byte* at, std::uint64_t ticket);
bool take_ticket(std::byte* at, std::uint64_t ticket);

// How a peer is doing, as the calling side knows.
enum class PeerState {
  kClosed,  // never called, or its connection ended: the next call connects
  kConnecting,
  kUp,
  kFailing,  // connecting failed: calls fail at once until the next attempt is due
};
struct PeerHealth {
  PeerState state = PeerState::kClosed;
  int failures = 0;          // to connect, in a row
  std::string lanes;         // what carries the bytes while it is up: "posix", "tcp", "loopback"
  bool local = false;        // while it is up: the peer is on this machine
  std::string last_failure;  // "" when there was none
  // Of connections like it, as measured at the first one; 0: not yet, or not at all.
  std::int64_t bytes_per_second = 0;
  std::string concern;  // why it may be slower than it should be, in words; "" when all is well
};
std::string_view to_string(PeerState state);

// The server side. Errors of an operation travel in the header; a Status from handle() means that
// the request could not be understood.
//
// Threads  The service's executor.
class Service {
 public:
  virtual ~Service() = default;
  // The header of a request is here, and so many bytes of payload are to come: who takes them, or
  // null for a buffer. What handle() will say of a bad request, it says; this one says null.
  virtual std::unique_ptr<Landing> land(const Caller& caller, MethodId method,
                                        std::string_view header, std::int64_t payload_bytes) {
    (void)caller, (void)method, (void)header, (void)payload_bytes;
    return nullptr;
  }
  // `caller` stays until the task is done.
  virtual Task<ServiceReply> handle(const Caller& caller, MethodId method, std::string header,
                                    Payload payload) = 0;
  // The connection of `caller` has ended, every request of it is answered: the last that is heard
  // of it.
  virtual void closed(const Caller& caller) { (void)caller; }
};

// Errors  call: kUnavailable (nobody listens there, connection lost), kDeadlineExceeded,
//         kInvalidArgument (request not understood), kResourceExhausted (reply larger than the
//         buffer), kFailedPrecondition (the peer wants a token, or speaks another version).
//         Reply::unplaced: kAborted (the ticket is not there any more), kFailedPrecondition,
//         kInvalidArgument (as for read), kResourceExhausted (many regions).
//         listen: kAlreadyExists (somebody listens there), kInvalidArgument (not an address that
//         this process can have, or one beyond this machine without a token).
//         read: as call; kFailedPrecondition (the lanes to the peer have no one-sided reads),
//         kInvalidArgument (no such region, or beyond its end).
//         allocate_region: kResourceExhausted, kInvalidArgument (no bytes).
class Transport {
 public:
  virtual ~Transport() = default;

  // Sends `request` and waits for the reply, whose payload lands in `into`. Returns by `deadline`,
  // whatever the peer does; a call that fails does not give `into` back, and may have written to
  // its room, but does so no more. The caller's executor must live until the service has stopped:
  // a late reply still goes there.
  virtual Task<Reply> call(Address peer, Request request, Buffer into, Deadline deadline) = 0;

  // Reads what is in a region of `peer`, which takes no part and may be writing there meanwhile:
  // the reader holds the bytes against their checksums, and asks by call() when they are others.
  // Lands in `into`, is seen by `arrival` (null: nobody, as in Request; the header is empty) and
  // returns by `deadline` as call() does.
  virtual Task<Buffer> read(Address peer, RegionRuns from, Buffer into, Arrival* arrival,
                            Deadline deadline) = 0;

  // Not initialised. Takes as long as the operating system for all of its pages; the shard is free
  // meanwhile. The transport must not be shut down before it is done.
  virtual Task<Region> allocate_region(std::int64_t bytes) = 0;

  // A snapshot. Of a peer that was never called, kClosed.
  virtual Task<PeerHealth> health(Address peer) = 0;

  // Nobody has anything to ask `peer` for now: the connection to it is closed, and made again when
  // somebody has. Calls under way end with kUnavailable. Does not wait; does nothing once the
  // transport is shut down.
  virtual void disconnect(const Address& peer) = 0;

  // Serves `service` at `self` on `executor`, which is the shard of a transport that has one; both
  // must live until stop() is done. Gives back the address to call.
  virtual Task<Address> listen(Address self, asio::any_io_executor executor, Service& service) = 0;

  // Takes no more requests for `self` (as listen() gave it back) and waits for those it has whole.
  // Runs on the service's executor.
  virtual Task<> stop(Address self) = 0;

  // Stops every service and closes every connection. Nothing else may be called afterwards.
  virtual Task<> shutdown() = 0;
};

}  // namespace icefield
