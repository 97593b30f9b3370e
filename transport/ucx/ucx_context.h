// transport/ucx/ucx_context.h — UCX as this process sets it up, and the memory it lends to peers.
#pragma once

#include <ucp/api/ucp.h>

#include <boost/asio/any_io_executor.hpp>
#include <memory>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "transport/transport.h"
#include "transport/ucx/ucx_counters.h"
#include "transport/ucx/ucx_options.h"

namespace icefield::ucx {

// A UCX context: its workers, one after the other or side by side, share its settings, which come
// from here and not from the environment, and its regions.
//
// Ownership  Shared by its workers.
// Threads    One shard's.
class UcxContext {
 public:
  static Result<std::shared_ptr<UcxContext>> create(const UcxOptions& options);
  ~UcxContext();
  UcxContext(const UcxContext&) = delete;
  UcxContext& operator=(const UcxContext&) = delete;

  ucp_context_h handle() const { return context_; }
  const UcxOptions& options() const { return options_; }
  // Whether shared memory may carry bytes; then regions are there.
  bool shares_memory() const { return options_.lanes != UcxLanes::kTcp; }

  // Of all its workers and their connections.
  UcxCounters& counters() { return counters_; }

  // As Transport::allocate_region(); the memory stays as long as the context, which stays until
  // this is done.
  Task<Region> allocate_region(std::int64_t bytes);

 private:
  explicit UcxContext(const UcxOptions& options) : options_(options) {}

  const UcxOptions options_;
  UcxCounters counters_;
  ucp_context_h context_ = nullptr;
  std::vector<ucp_mem_h> regions_;
};

// Makes the page table entries of memory that is there, in steps of 40 µs that others may wait for,
// 40 ms a GB: else the first touch of a page costs half as much as reading it. Ends early once
// `stop` is true: then the memory may go.
asio::awaitable<void> populate(asio::any_io_executor shard, ConstByteSpan memory, int advice,
                               const bool& stop);

// "connection reset by peer": what UCX calls a status.
std::string describe(ucs_status_t status);

// kInternal: what UCX cannot do.
Status ucx_error(std::string_view what, ucs_status_t status);

}  // namespace icefield::ucx
