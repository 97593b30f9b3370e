#include "common/waiters.h"

#include <algorithm>

namespace icefield {

asio::awaitable<bool> Waiters::wait(Deadline deadline) {
  asio::steady_timer timer(co_await asio::this_coro::executor, deadline.time_point());
  waiting_.push_back(&timer);
  boost::system::error_code error;
  co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, error));
  std::erase(waiting_, &timer);
  co_return error == asio::error::operation_aborted;
}

void Waiters::notify_all() {
  for (asio::steady_timer* timer : waiting_) timer->cancel();
}

}  // namespace icefield
