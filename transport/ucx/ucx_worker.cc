#include "transport/ucx/ucx_worker.h"

#include <optional>

namespace icefield::ucx {
namespace {

// Progress calls before other handlers of the shard get their turn.
constexpr int kProgressBurst = 64;

// When polling: looks in a row, because Asio's own look between two of them takes much longer.
constexpr int kPollTries = 8;

// A queue in shared memory towards a peer that does not read (it is frozen, or busy) has no event
// for room in it, and UCX does not sleep while something waits for that. So after this many bursts
// without progress we look again only now and then.
constexpr int kFruitlessBursts = 200;
constexpr std::chrono::microseconds kNap{500};

// In the middle of a message the next fragment is some microseconds away (a large one over TCP
// about 70), falling asleep and being woken costs as much: look that long before arming.
constexpr std::chrono::microseconds kPatience{100};

}  // namespace

UcxWorker::UcxWorker(asio::any_io_executor shard, std::shared_ptr<UcxContext> context)
    : shard_(std::move(shard)),
      context_(std::move(context)),
      poll_(context_->options().poll),
      event_(shard_),
      nap_(shard_),
      anchor_(shard_, asio::steady_timer::time_point::max()),
      scope_(shard_) {}

Result<std::unique_ptr<UcxWorker>> UcxWorker::create(asio::any_io_executor shard,
                                                     std::shared_ptr<UcxContext> context) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(shard), std::move(context)));
  ICE_TRY(worker->init());
  worker->scope_.spawn(worker->drive());
  worker->anchor_.async_wait([](const boost::system::error_code&) {});
  return worker;
}

Status UcxWorker::init() {
  ucp_worker_params_t worker_params{};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
  ucs_status_t status = ucp_worker_create(context_->handle(), &worker_params, &worker_);
  if (status != UCS_OK) return ucx_error("worker", status);

  ucp_am_handler_param_t handler{};
  handler.field_mask = UCP_AM_HANDLER_PARAM_FIELD_ID | UCP_AM_HANDLER_PARAM_FIELD_CB |
                       UCP_AM_HANDLER_PARAM_FIELD_ARG;
  handler.id = kActiveMessage;
  handler.cb = &UcxWorker::on_message;
  handler.arg = this;
  status = ucp_worker_set_am_recv_handler(worker_, &handler);
  if (status != UCS_OK) return ucx_error("message handler", status);

  int descriptor = -1;
  status = ucp_worker_get_efd(worker_, &descriptor);
  if (status != UCS_OK) return ucx_error("event descriptor", status);
  event_.assign(descriptor);
  return read_address();
}

Status UcxWorker::read_address() {
  ucp_address_t* address = nullptr;
  std::size_t bytes = 0;
  const ucs_status_t status = ucp_worker_get_address(worker_, &address, &bytes);
  if (status != UCS_OK) return ucx_error("worker address", status);
  address_.assign(reinterpret_cast<const char*>(address), bytes);
  ucp_worker_release_address(worker_, address);
  return Status();
}

UcxWorker::~UcxWorker() {
  if (event_.is_open()) event_.release();  // the worker owns the descriptor
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
}

std::uint64_t UcxWorker::add_sink(FragmentSink& sink) {
  std::uint64_t id = rng_.next();
  while (id == 0 || sinks_.contains(id)) id = rng_.next();
  sinks_.emplace(id, &sink);
  return id;
}

void UcxWorker::wake() {
  if (sleeping_) event_.cancel();
  nap_.cancel();
}

void UcxWorker::sent() {
  if (poll_) return;
  const auto now = Patience::TimePoint::clock::now();
  patience_.expect(now);
  if (sleeping_ && patience_.look(now)) event_.cancel();
}

asio::awaitable<void> UcxWorker::stop() {
  stopping_ = true;
  anchor_.cancel();
  wake();
  co_await scope_.join();
}

UcxWorker::Progress UcxWorker::progress() {
  using Clock = std::chrono::steady_clock;
  int steps = 0;
  int tries = poll_ ? kPollTries : 1;
  std::optional<Clock::time_point> patience;
  while (steps < kProgressBurst) {
    if (ucp_worker_progress(worker_) != 0) {
      ++steps;
      patience.reset();
      continue;
    }
    if (!message_open_) {
      if (steps > 0 || --tries == 0) break;
      continue;
    }
    const auto now = Clock::now();
    if (!patience.has_value()) patience = now + kPatience;
    if (now >= *patience) {
      message_open_ = false;  // once for each fragment: its sender may have stopped
      break;
    }
  }
  if (steps == kProgressBurst) return Progress::kMore;
  return steps > 0 ? Progress::kSome : Progress::kNone;
}

asio::awaitable<void> UcxWorker::drive() {
  int fruitless = 0;  // bursts in a row in which nothing moved, though UCX would not sleep
  while (!stopping_) {
    const Progress made = progress();
    if (made != Progress::kNone) fruitless = 0;
    const bool look_again = poll_ || made == Progress::kMore || look(made);
    if (!look_again && ucp_worker_arm(worker_) == UCS_OK) {
      fruitless = 0;
      co_await wait_for_event();
    } else if (!look_again && ++fruitless > kFruitlessBursts) {
      co_await nap();
    } else {
      co_await asio::post(shard_, asio::use_awaitable);
    }
  }
}

bool UcxWorker::look(Progress made) {
  const auto now = Patience::TimePoint::clock::now();
  if (made != Progress::kNone) patience_.arrived(now);
  return patience_.look(now);
}

asio::awaitable<void> UcxWorker::wait_for_event() {
  const auto begin = Patience::TimePoint::clock::now();
  boost::system::error_code error;
  sleeping_ = true;
  co_await event_.async_wait(asio::posix::descriptor_base::wait_read,
                             asio::redirect_error(asio::use_awaitable, error));
  sleeping_ = false;
  if (!error) patience_.slept(Patience::TimePoint::clock::now() - begin);
}

asio::awaitable<void> UcxWorker::nap() {
  nap_.expires_after(kNap);
  boost::system::error_code ignored;
  co_await nap_.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
}

void UcxWorker::deliver(const FragmentHeader& fragment, ConstByteSpan bytes) {
  const auto found = sinks_.find(fragment.connection);
  if (found == sinks_.end()) {
    counters().stray_fragments.add();
    return;
  }
  message_open_ = !found->second->on_fragment(fragment, bytes);
}

ucs_status_t UcxWorker::on_message(void* self, const void* header, std::size_t header_bytes,
                                   void* data, std::size_t bytes,
                                   const ucp_am_recv_param_t* param) {
  auto& worker = *static_cast<UcxWorker*>(self);
  const bool rendezvous = (param->recv_attr & UCP_AM_RECV_ATTR_FLAG_RNDV) != 0;
  if (header_bytes != sizeof(FragmentHeader) || rendezvous) {
    worker.counters().stray_fragments.add();
    return UCS_OK;
  }
  const auto fragment = load<FragmentHeader>(static_cast<const std::byte*>(header));
  worker.deliver(fragment, {static_cast<const std::byte*>(data), bytes});
  return UCS_OK;
}

}  // namespace icefield::ucx
