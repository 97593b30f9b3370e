#include "transport/ucx/ucx_context.h"

#include <sys/mman.h>

#include <array>
#include <filesystem>
#include <span>
#include <string_view>

#include "transport/ucx/region_key.h"

namespace icefield::ucx {
namespace {

// Runs before the C library and the sanitizers are ready.
#define ICE_BARE __attribute__((no_sanitize("address", "thread", "undefined")))

ICE_BARE bool starts_with(const char* text, const char* start) {
  while (*start != '\0' && *text == *start) ++text, ++start;
  return *start == '\0';
}

// UCX takes UCX_* variables when its library is loaded, before main() and whatever is constructed,
// and again with everything it makes; a prefix of our own comes on top of them, not in their place.
// So they go before any library is initialised: the C library hands on this very array. Where this
// cannot be linked, in a shared library, the linker says so.
//
// One stays. It says how UCX watches mmap, and the thread sanitizer does not survive how it does.
ICE_BARE void drop_ucx_variables(int, char**, char** environment) {
  char** kept = environment;
  for (char** variable = environment; *variable != nullptr; ++variable) {
    const bool ucx = starts_with(*variable, "UCX_");
    if (!ucx || starts_with(*variable, "UCX_MEM_MMAP_HOOK_MODE=")) *kept++ = *variable;
  }
  *kept = nullptr;
}
__attribute__((section(".preinit_array"),
               used)) void (*drop_at_start)(int, char**, char**) = &drop_ucx_variables;

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

Result<std::shared_ptr<UcxContext>> UcxContext::create(const UcxOptions& options) {
  const std::shared_ptr<UcxContext> context(new UcxContext(options));
  ucp_config_t* config = nullptr;
  ucs_status_t status = ucp_config_read(nullptr, nullptr, &config);
  if (status != UCS_OK) return ucx_error("configuration", status);
  const Status configured = configure(config, options);
  ucp_params_t params{};
  params.field_mask = UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED;
  params.features = UCP_FEATURE_AM | UCP_FEATURE_RMA | UCP_FEATURE_WAKEUP;
  params.mt_workers_shared = 1;  // allocate_region() uses it from another thread
  status = configured.ok() ? ucp_init(&params, config, &context->context_) : UCS_OK;
  ucp_config_release(config);
  ICE_TRY(configured);
  if (status != UCS_OK) return ucx_error("context", status);
  return context;
}

UcxContext::~UcxContext() {
  for (ucp_mem_h region : regions_) ucp_mem_unmap(context_, region);
  if (context_ != nullptr) ucp_cleanup(context_);
}

Task<Region> UcxContext::allocate_region(std::int64_t bytes) {
  if (bytes <= 0) co_return Status(Code::kInvalidArgument, "region of no bytes");
  if (shares_memory()) ICE_CO_TRY(check_room(bytes));
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
  const RegionKey key{.address = reinterpret_cast<std::uint64_t>(attributes.address),
                      .bytes = bytes,
                      .packed = {static_cast<const char*>(packed), packed_bytes}};
  ucp_rkey_buffer_release(packed);
  co_return Region{.bytes = region, .key = key.to_string()};
}

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

Status ucx_error(std::string_view what, ucs_status_t status) {
  return Status(Code::kInternal, "UCX " + std::string(what) + ": " + describe(status));
}

}  // namespace icefield::ucx
