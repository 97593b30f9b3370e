#include "transport/ucx/ucx_worker.h"

#include <sys/mman.h>

#include <array>
#include <filesystem>
#include <optional>
#include <string_view>

#include "transport/ucx/region_key.h"

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

struct Setting {
  const char* name;
  const char* value;
};
constexpr std::array kAlways{
    Setting{"RNDV_THRESH", "inf"},
    Setting{"KEEPALIVE_INTERVAL", "2s"},
};
// A fragment with UCX's and our headers fits one segment.
constexpr std::array kSharedMemory{
    Setting{"MM_ERROR_HANDLING", "y"},  // else a lane with error handling falls back to TCP
    Setting{"MM_SEG_SIZE", "33k"},
    // Regions: else memory that no peer can map takes the place of memory that is not there.
    Setting{"ALLOC_PRIO", "md:posix"},
};
constexpr std::array kTcp{
    Setting{"RX_SEG_SIZE", "520k"}, Setting{"TX_SEG_SIZE", "520k"},
    Setting{"MAX_IOV", "16"},  // pieces that go out without a copy; UCX takes no more
};

const char* tls_of(UcxLanes lanes) {
  switch (lanes) {
    case UcxLanes::kTcp: return "tcp";
    case UcxLanes::kSharedMemory: return "posix,self";
    case UcxLanes::kAuto: break;
  }
  std::error_code none;
  const bool rdma = std::filesystem::exists("/sys/class/infiniband", none);
  return rdma ? "posix,self,ib,tcp" : "posix,self,tcp";
}

Status ucx_error(std::string_view what, ucs_status_t status) {
  return Status(Code::kInternal, "UCX " + std::string(what) + ": " + describe(status));
}

Status modify(ucp_config_t* config, std::span<const Setting> settings) {
  for (const Setting& setting : settings) {
    const ucs_status_t status = ucp_config_modify(config, setting.name, setting.value);
    if (status != UCS_OK) return ucx_error(std::string("setting ") + setting.name, status);
  }
  return Status();
}

Status configure(ucp_config_t* config, const UcxOptions& options) {
  const UcxLanes lanes = options.lanes;
  const std::array chosen{Setting{"TLS", tls_of(lanes)},
                          Setting{"NET_DEVICES", options.network.c_str()}};
  ICE_TRY(modify(config, chosen));
  ICE_TRY(modify(config, kAlways));
  if (lanes != UcxLanes::kTcp) ICE_TRY(modify(config, kSharedMemory));
  if (lanes != UcxLanes::kSharedMemory) ICE_TRY(modify(config, kTcp));
  return Status();
}

// UCX fills what it allocates, and would find out when there is nothing left for anybody.
Status check_room(std::int64_t bytes) {
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space("/dev/shm", error);
  const bool unlimited = !error && space.capacity == 0;
  const std::uintmax_t room = unlimited ? UINTMAX_MAX : error ? 0 : space.available;
  if (static_cast<std::uintmax_t>(bytes) <= room) return Status();
  return Status(Code::kResourceExhausted, "region of " + std::to_string(bytes) + " bytes, " +
                                              std::to_string(room) + " are free in /dev/shm");
}

Result<ucp_mem_h> map_memory(ucp_context_h context, std::int64_t bytes) {
  ucp_mem_map_params_t params{};
  params.field_mask = UCP_MEM_MAP_PARAM_FIELD_LENGTH | UCP_MEM_MAP_PARAM_FIELD_FLAGS;
  params.length = static_cast<std::size_t>(bytes);
  params.flags = UCP_MEM_MAP_ALLOCATE;
  ucp_mem_h memory = nullptr;
  const ucs_status_t status = ucp_mem_map(context, &params, &memory);
  if (status == UCS_OK) return memory;
  return Status(Code::kResourceExhausted,
                "region of " + std::to_string(bytes) + " bytes: " + describe(status));
}

}  // namespace

asio::awaitable<void> populate(asio::any_io_executor shard, ConstByteSpan memory, int advice,
                               const bool& stop) {
  constexpr std::size_t kStepBytes = 1 << 20;
  while (!memory.empty()) {
    co_await asio::post(shard, asio::use_awaitable);
    if (stop) co_return;
    const ConstByteSpan step = memory.first(std::min(memory.size(), kStepBytes));
    void* const from = const_cast<std::byte*>(step.data());
    if (::madvise(from, step.size(), advice) != 0) co_return;  // Linux before 5.14
    memory = memory.subspan(step.size());
  }
}

std::string describe(ucs_status_t status) {
  std::string text = ucs_status_string(status);
  for (char& c : text) c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return text;
}

UcxWorker::UcxWorker(asio::any_io_executor shard, const UcxOptions& options)
    : shard_(std::move(shard)),
      poll_(options.poll),
      shared_memory_(options.lanes != UcxLanes::kTcp),
      event_(shard_),
      nap_(shard_),
      anchor_(shard_, asio::steady_timer::time_point::max()),
      scope_(shard_) {}

Result<std::unique_ptr<UcxWorker>> UcxWorker::create(asio::any_io_executor shard,
                                                     const UcxOptions& options) {
  std::unique_ptr<UcxWorker> worker(new UcxWorker(std::move(shard), options));
  ICE_TRY(worker->init(options));
  worker->scope_.spawn(worker->drive());
  worker->anchor_.async_wait([](const boost::system::error_code&) {});
  return worker;
}

Status UcxWorker::init(const UcxOptions& options) {
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return ucx_error("configuration", status);
  const Status configured = configure(config, options);
  ucp_params_t context_params{};
  context_params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  context_params.features = UCP_FEATURE_AM | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
  context_params.mt_workers_shared = 1;  // allocate_region() uses it from another thread
  status = configured.ok() ? ucp_init(&context_params, config, &context_) : UCS_OK;
  ucp_config_release(config);
  ICE_TRY(configured);
  if (status != UCS_OK) return ucx_error("context", status);

  ucp_worker_params_t worker_params{};
  worker_params.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE;
  worker_params.thread_mode = UCS_THREAD_MODE_SINGLE;
  status = ucp_worker_create(context_, &worker_params, &worker_);
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
  for (ucp_mem_h region : regions_) ucp_mem_unmap(context_, region);
  if (worker_ != nullptr) ucp_worker_destroy(worker_);
  if (context_ != nullptr) ucp_cleanup(context_);
}

Task<Region> UcxWorker::allocate_region(std::int64_t bytes) {
  if (bytes <= 0) co_return Status(Code::kInvalidArgument, "region of no bytes");
  if (shared_memory_) ICE_CO_TRY(check_room(bytes));
  // UCX makes all pages at once, half a second and more for a GB.
  asio::thread_pool thread(1);
  auto allocate = [context = context_, bytes] { return map_memory(context, bytes); };
  ICE_CO_TRY(const ucp_mem_h memory, co_await offload(thread, std::move(allocate)));
  ucp_mem_attr_t attributes{};
  attributes.field_mask = UCP_MEM_ATTR_FIELD_ADDRESS;
  ucs_status_t status = ucp_mem_query(memory, &attributes);
  void* packed = nullptr;
  std::size_t packed_bytes = 0;
  if (status == UCS_OK) status = ucp_rkey_pack(context_, memory, &packed, &packed_bytes);
  if (status != UCS_OK) {
    ucp_mem_unmap(context_, memory);
    co_return ucx_error("region", status);
  }
  regions_.push_back(memory);
  const ByteSpan region(static_cast<std::byte*>(attributes.address),
                        static_cast<std::size_t>(bytes));
  // UCX has made the pages.
  if (shared_memory_) scope_.spawn(populate(shard_, region, MADV_POPULATE_WRITE, stopping_));
  const RegionKey key{.address = reinterpret_cast<std::uint64_t>(attributes.address),
                      .bytes = bytes,
                      .packed = {static_cast<const char*>(packed), packed_bytes}};
  ucp_rkey_buffer_release(packed);
  co_return Region{.bytes = region, .key = key.to_string()};
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
    stray_fragments.add();
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
    worker.stray_fragments.add();
    return UCS_OK;
  }
  const auto fragment = load<FragmentHeader>(static_cast<const std::byte*>(header));
  worker.deliver(fragment, {static_cast<const std::byte*>(data), bytes});
  return UCS_OK;
}

}  // namespace icefield::ucx
