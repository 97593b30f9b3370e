// tests/support/holding_service.h — a service that can be frozen: requests wait, unanswered.
#pragma once

#include "common/waiters.h"
#include "transport/transport.h"

namespace icefield {

// Threads  The service's.
class HoldingService final : public Service {
 public:
  explicit HoldingService(Service& next) : next_(next) {}

  Task<ServiceReply> handle(const Caller& caller, MethodId method, std::string header,
                            Payload payload) override {
    ++asked;
    while (frozen_) (void)co_await thawed_.wait(Deadline::never());
    co_return co_await next_.handle(caller, method, std::move(header), std::move(payload));
  }
  void freeze() { frozen_ = true; }
  void thaw() {
    frozen_ = false;
    thawed_.notify_all();
  }

  int asked = 0;

 private:
  Service& next_;
  bool frozen_ = false;
  Waiters thawed_;
};

}  // namespace icefield
