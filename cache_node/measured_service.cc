#include "cache_node/measured_service.h"

#include "cache_node/metrics_page.h"

namespace icefield {
namespace {

// "resource exhausted" as a label: resource_exhausted.
std::string label_of(Code code) {
  std::string text(to_string(code));
  for (char& c : text) c = c == ' ' ? '_' : c;
  return text;
}

}  // namespace

Task<ServiceReply> MeasuredService::handle(const Caller& caller, MethodId method,
                                           std::string header, Payload payload) {
  Method& measured = methods_[method < kNodeMethodCount ? method : 0];
  measured.received.add(payload.size());
  ++running_;
  const Clock::TimePoint begin = clock_.now();
  Result<ServiceReply> reply =
      co_await service_.handle(caller, method, std::move(header), std::move(payload));
  measured.latency.observe(clock_.now() - begin);
  --running_;
  measured.requests[static_cast<std::size_t>(reply.status().code())].add();
  if (reply.has_value()) measured.sent.add(payload_bytes(reply->payload));
  co_return reply;
}

void MeasuredService::collect(MetricsPage& page) const {
  for (std::size_t i = 0; i < methods_.size(); ++i) {
    const Method& method = methods_[i];
    const std::string op(to_string(static_cast<NodeMethod>(i)));
    for (int code = 0; code < kCodeCount; ++code) {
      const Counter& requests = method.requests[static_cast<std::size_t>(code)];
      if (code > 0 && requests.value() == 0) continue;
      page.add(requests, {{"op", op}, {"code", label_of(static_cast<Code>(code))}});
    }
    page.add(method.latency, {{"op", op}});
    page.add(method.received, {{"op", op}});
    page.add(method.sent, {{"op", op}});
  }
  page.add_gauge("icefield_cache_node_running_requests", "requests being answered",
                 static_cast<double>(running_));
}

}  // namespace icefield
