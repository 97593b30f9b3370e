// What every Transport promises (transport/transport.h). A new transport adds one line at the end.
#include <gtest/gtest.h>

#include <boost/asio/io_context.hpp>
#include <thread>

#include "tests/support/objects.h"
#include "tests/support/run_task.h"
#include "transport/loopback/loopback_transport.h"

namespace icefield {
namespace {

using namespace std::chrono_literals;

// Echoes the payload; method 1 in two pieces, 2 never answers until told, 3 refuses.
class EchoService final : public Service {
 public:
  Task<ServiceReply> handle(MethodId method, std::string header, Buffer payload) override {
    ++calls;
    if (method == 3) co_return Status(Code::kInvalidArgument, "method 3");
    if (method == 2) {
      asio::steady_timer forever(co_await asio::this_coro::executor,
                                 asio::steady_timer::time_point::max());
      stuck = &forever;
      boost::system::error_code ignored;
      co_await forever.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
      stuck = nullptr;
    }
    auto kept = std::make_shared<Buffer>(std::move(payload));
    ServiceReply reply;
    reply.header = "re: " + header;
    const ConstByteSpan bytes = std::as_const(*kept).bytes();
    reply.payload = {bytes.first(bytes.size() / 2), bytes.subspan(bytes.size() / 2)};
    reply.keep_alive = kept;
    co_return reply;
  }

  std::atomic<int> calls{0};
  asio::steady_timer* stuck = nullptr;  // the service's thread
};

using MakeTransport = std::unique_ptr<Transport> (*)();

class TransportConformance : public testing::TestWithParam<MakeTransport> {
 protected:
  void SetUp() override {
    transport_ = GetParam()();
    server_thread_ = std::thread([this] { server_.run(); });
    ASSERT_TRUE(transport_->listen("node", server_.get_executor(), echo_).ok());
  }
  void TearDown() override {
    EXPECT_TRUE(sync_wait(server_.get_executor(), transport_->stop("node")).ok());
    work_.reset();
    server_thread_.join();
  }
  Result<Reply> call(const Address& peer, MethodId method, std::vector<ConstByteSpan> payload,
                     std::int64_t capacity, Deadline deadline = Deadline::never()) {
    Request request(method, "hello");
    request.payload = std::move(payload);
    return run_task(client_,
                    transport_->call(peer, std::move(request), Buffer(capacity), deadline));
  }

  EchoService echo_;
  asio::io_context client_;
  asio::io_context server_;
  asio::executor_work_guard<asio::io_context::executor_type> work_ = asio::make_work_guard(server_);
  std::thread server_thread_;
  std::unique_ptr<Transport> transport_;
  SystemClock clock_;
  SeededRng rng_{1};
};

TEST_P(TransportConformance, HeaderAndGatheredPayloadArrive) {
  for (const std::size_t size : {0u, 1u, 1000u, 1000000u}) {
    const Bytes bytes = random_bytes(rng_, size);
    const ConstByteSpan whole = bytes;
    const Result<Reply> reply =
        call("node", 1, {whole.first(size / 3), {}, whole.subspan(size / 3)},
             static_cast<std::int64_t>(size));
    ASSERT_TRUE(reply.has_value()) << reply.error().to_string();
    EXPECT_EQ(reply->header, "re: hello");
    EXPECT_TRUE(std::ranges::equal(reply->payload.bytes(), bytes));
  }
}

TEST_P(TransportConformance, ReplyLargerThanTheBufferIsRefused) {
  const Bytes bytes = random_bytes(rng_, 1000);
  EXPECT_EQ(call("node", 1, {bytes}, 999).error().code(), Code::kResourceExhausted);
}

TEST_P(TransportConformance, UnknownPeerIsUnavailable) {
  EXPECT_EQ(call("nobody", 1, {}, 0).error().code(), Code::kUnavailable);
}

TEST_P(TransportConformance, RequestThatIsNotUnderstoodComesBackAsItsStatus) {
  EXPECT_EQ(call("node", 3, {}, 0).error().code(), Code::kInvalidArgument);
}

TEST_P(TransportConformance, CallReturnsByItsDeadlineWhenThePeerIsStuck) {
  const auto begin = clock_.now();
  const Result<Reply> reply = call("node", 2, {}, 100, Deadline::after(clock_, 20ms));
  EXPECT_EQ(reply.error().code(), Code::kDeadlineExceeded);
  EXPECT_GE(clock_.now() - begin, 20ms);
  // The server is still at it and may write to the buffer; letting it go must be harmless.
  asio::post(server_, [this] { echo_.stuck->cancel(); });
}

TEST_P(TransportConformance, CallsOfOneClientRunSideBySide) {
  std::optional<Result<Reply>> slow;
  asio::co_spawn(
      client_,
      transport_->call("node", Request(2, "slow"), Buffer(10), Deadline::after(clock_, 10s)),
      [&slow](std::exception_ptr, Result<Reply> reply) { slow = std::move(reply); });
  EXPECT_EQ(call("node", 1, {}, 10).value().header, "re: hello");
  EXPECT_FALSE(slow.has_value());
  asio::post(server_, [this] { echo_.stuck->cancel(); });
  const auto work = asio::make_work_guard(client_);
  while (!slow.has_value()) client_.run_one();
  EXPECT_EQ(slow->value().header, "re: slow");
}

TEST_P(TransportConformance, StoppedServiceIsUnavailable) {
  EXPECT_TRUE(sync_wait(server_.get_executor(), transport_->stop("node")).ok());
  EXPECT_EQ(call("node", 1, {}, 0).error().code(), Code::kUnavailable);
}

TEST_P(TransportConformance, AddressInUseIsRefused) {
  EXPECT_EQ(transport_->listen("node", server_.get_executor(), echo_).code(), Code::kAlreadyExists);
}

std::unique_ptr<Transport> make_loopback() { return std::make_unique<LoopbackTransport>(); }
INSTANTIATE_TEST_SUITE_P(Transports, TransportConformance, testing::Values(make_loopback),
                         [](const auto&) { return std::string("loopback"); });

}  // namespace
}  // namespace icefield
