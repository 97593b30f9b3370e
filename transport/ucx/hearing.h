// transport/ucx/hearing.h — whether messages still come through to a worker.
#pragma once

#include "transport/ucx/ucx_worker.h"

namespace icefield::ucx {

// False when what peers write into the worker's queue in shared memory does not come out again.
//
// A peer that is killed (SIGKILL) while it writes there leaves an entry that is taken and never
// filled. UCX waits for that one for ever, and everything of everybody stays behind it; no error
// says so. Found out by a message to ourselves, which gets a quarter of a second: a peer that lives
// may be in the middle of its entry. True when that cannot be tried.
//
// Threads  The worker's shard.
asio::awaitable<bool> hears(UcxWorker& worker);

}  // namespace icefield::ucx
