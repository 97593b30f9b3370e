// cache_node/stub_call.h — how stubs call a node.
#pragma once

#include "cache_node/messages.h"
#include "transport/transport.h"

namespace icefield {

// Sends `message` with `payload` beside it.
template <class Message>
Task<Reply> call_node(Transport& transport, Address node, NodeMethod method, const Message& message,
                      std::vector<ConstByteSpan> payload, Buffer into, Deadline deadline,
                      Arrival* arrival = nullptr) {
  Request request(static_cast<MethodId>(method), message.SerializeAsString());
  request.payload = std::move(payload);
  request.arrival = arrival;
  co_return co_await transport.call(std::move(node), std::move(request), std::move(into), deadline);
}

}  // namespace icefield
