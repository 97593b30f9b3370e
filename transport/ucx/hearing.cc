#include "transport/ucx/hearing.h"

#include "common/shard.h"
#include "common/waiters.h"
#include "transport/ucx/endpoint.h"

namespace icefield::ucx {
namespace {

// What a busy machine may take to let a peer that lives finish its entry.
constexpr std::chrono::milliseconds kPatience{250};

class Ear final : public FragmentSink {
 public:
  explicit Ear(UcxWorker& worker) : worker_(worker), id_(worker.add_sink(*this)) {}
  ~Ear() override { worker_.remove_sink(id_); }
  bool on_fragment(const FragmentHeader&, ConstByteSpan) override {
    heard_ = true;
    changed_.notify_all();
    return true;
  }
  asio::awaitable<bool> listen(Deadline deadline) {
    bool in_time = true;
    while (!heard_ && in_time) in_time = co_await changed_.wait(deadline);
    worker_.take_in();  // the shard may have been busy with other things all the time
    co_return heard_;
  }
  std::uint64_t id() const { return id_; }

 private:
  UcxWorker& worker_;
  const std::uint64_t id_;
  bool heard_ = false;
  Waiters changed_;
};

// Sends a fragment to `to`, with all that this takes.
Task<> speak(asio::any_io_executor shard, std::string to, FragmentHeader fragment) {
  UcxOptions options;
  options.lanes = UcxLanes::kSharedMemory;
  ICE_CO_TRY(auto context, UcxContext::create(options));
  ICE_CO_TRY(auto mouth, UcxWorker::create(shard, std::move(context)));
  auto endpoint = Endpoint::create(*mouth, to, [](const Status&) {});
  if (endpoint.has_value()) {
    Message message(fragment, "do you hear me?");
    (void)(*endpoint)->try_send_copy(message);
    co_await (*endpoint)->close(Deadline::after(SystemClock(), kPatience));
  }
  co_await mouth->stop();
  co_return endpoint.status();
}

}  // namespace

asio::awaitable<bool> hears(UcxWorker& worker) {
  Ear ear(worker);
  FragmentHeader fragment;
  fragment.connection = ear.id();
  Shard mouth;  // UCX takes tens of milliseconds to get ready and to clean up
  auto speaking = asio::co_spawn(
      mouth.executor(), speak(mouth.executor(), worker.address(), fragment), asio::use_awaitable);
  const Status spoken = co_await std::move(speaking);
  const bool heard = !spoken.ok() || co_await ear.listen(Deadline::after(SystemClock(), kPatience));
  mouth.stop();
  co_return heard;
}

}  // namespace icefield::ucx
