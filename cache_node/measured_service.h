// cache_node/measured_service.h — counts what a node is asked: requests by outcome, bytes, time.
#pragma once

#include <array>

#include "cache_node/messages.h"
#include "common/clock.h"
#include "common/metrics.h"
#include "transport/transport.h"

namespace icefield {

class MetricsPage;

// Passes every request on to `service` and measures it.
//
// Threads  That of the service.
class MeasuredService final : public Service {
 public:
  MeasuredService(Service& service, const Clock& clock) : service_(service), clock_(clock) {}

  std::unique_ptr<Landing> land(const Caller& caller, MethodId method, std::string_view header,
                                std::int64_t payload_bytes) override {
    return service_.land(caller, method, header, payload_bytes);
  }
  Task<ServiceReply> handle(const Caller& caller, MethodId method, std::string header,
                            Payload payload) override;
  void closed(const Caller& caller) override { service_.closed(caller); }

  void collect(MetricsPage& page) const;
  // Being answered right now.
  std::int64_t running() const { return running_; }

 private:
  struct RequestCounter : Counter {
    RequestCounter()
        : Counter("icefield_cache_node_requests_total", "requests answered, by status code") {}
  };
  struct Method {
    // By code of the whole request; what goes wrong with one item of it is no error here.
    std::array<RequestCounter, kCodeCount> requests;
    LatencyHistogram latency{"icefield_cache_node_request_seconds",
                             "from a request's last byte to its reply"};
    Counter received{"icefield_cache_node_received_bytes_total", "payload of requests"};
    Counter sent{"icefield_cache_node_sent_bytes_total", "payload of replies"};
  };

  Service& service_;
  const Clock& clock_;
  std::array<Method, kNodeMethodCount> methods_;  // by number; 0: unknown ones
  std::int64_t running_ = 0;
};

}  // namespace icefield
