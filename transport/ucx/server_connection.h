// transport/ucx/server_connection.h — the service's side of a connection.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <optional>
#include <unordered_map>

#include "transport/transport.h"
#include "transport/ucx/assembly.h"
#include "transport/ucx/endpoint.h"
#include "transport/ucx/lanes_log.h"

namespace icefield::proto {
class ConnectRequest;
class Hello;
}  // namespace icefield::proto

namespace icefield::ucx {

// Puts requests together, has them served side by side and sends the replies. A client that holds
// more than it was granted, or sends what makes no sense, is cut off.
//
// Threads  The shard's, which is also the service's. Dropped after run() only.
class ServerConnection final : public FragmentSink,
                               public std::enable_shared_from_this<ServerConnection> {
 public:
  ServerConnection(UcxWorker& worker, asio::ip::tcp::socket control, Service& service,
                   const UcxOptions& options, std::uint64_t incarnation, LanesLog& lanes_log);
  ~ServerConnection() override;

  // From the handshake to the end, which the client, a fault or stop() brings about. On return
  // nothing of the connection is under way any more.
  asio::awaitable<void> run();
  // Takes no more requests and drops those that are not whole; run() returns when the others are
  // answered, and the answers have left or nobody has taken them for the time of closing.
  void stop();

  // Ends it at once: calls under way are not answered any more.
  void end(Status why);
  // After run(): the client shares memory with us and went without saying goodbye.
  bool abrupt() const { return abrupt_; }

  // What the client holds of what it was granted.
  std::int64_t calls_held() const { return calls_held_; }
  std::int64_t bytes_held() const { return bytes_held_; }

  bool on_fragment(const FragmentHeader& header, ConstByteSpan bytes) override;

 private:
  Task<> shake_hands();
  // Who that is; what is wrong with the request otherwise.
  Result<Caller> check(const proto::Hello& hello, const proto::ConnectRequest& request);
  asio::awaitable<void> watch();
  // The client may have been killed.
  void lost(Status why);
  using Incoming = std::unordered_map<std::uint64_t, Assembly>;  // by the client's number
  bool accept(const FragmentHeader& header);
  Payload place(const FragmentHeader& request, std::string_view header);
  asio::awaitable<void> serve(FragmentHeader request, Assembly message);
  asio::awaitable<void> refuse(FragmentHeader request, Status why);
  asio::awaitable<void> answer(const FragmentHeader& request, Result<ServiceReply> reply);
  // Answers a request that is not whole.
  void drop(Incoming::iterator found, Status why);
  void release(const FragmentHeader& request);

  UcxWorker& worker_;
  asio::ip::tcp::socket control_;
  Service& service_;
  const UcxOptions options_;
  const std::uint64_t incarnation_;
  LanesLog& lanes_log_;
  const std::uint64_t id_;
  std::uint64_t remote_id_ = 0;
  Caller caller_;
  std::unique_ptr<Endpoint> endpoint_;
  Incoming incoming_;
  std::int64_t calls_held_ = 0;  // from the first fragment to the reply
  std::int64_t bytes_held_ = 0;
  std::int64_t replies_unsent_ = 0;  // which the client has not taken yet
  std::int64_t unsent_bytes_ = 0;    // of those
  HandshakeFailure handshake_failure_ = HandshakeFailure::kBrokenOff;  // what it would be now
  Status ended_;
  bool stopping_ = false;
  bool abrupt_ = false;
  Waiters changed_;
  TaskScope scope_;
};

}  // namespace icefield::ucx
