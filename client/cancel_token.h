// client/cancel_token.h — lets a caller give up on calls that are under way.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>

namespace icefield {

// Copies share one state. Cancelling is for good. Threads: safe from any thread.
class CancelToken {
 public:
  CancelToken() : state_(std::make_shared<State>()) {}

  void cancel() const {
    std::map<std::uint64_t, std::function<void()>> waiting;
    {
      const std::lock_guard lock(state_->mutex);
      state_->cancelled = true;
      waiting.swap(state_->waiting);
    }
    for (const auto& [number, notify] : waiting) notify();
  }
  bool cancelled() const {
    const std::lock_guard lock(state_->mutex);
    return state_->cancelled;
  }

  // Calls `notify` once, from the thread that cancels; at once when that has happened already.
  // Gives back a number for forget().
  std::uint64_t on_cancel(std::function<void()> notify) const {
    {
      const std::lock_guard lock(state_->mutex);
      if (!state_->cancelled) {
        state_->waiting.emplace(++state_->last, std::move(notify));
        return state_->last;
      }
    }
    notify();
    return 0;
  }
  void forget(std::uint64_t number) const {
    const std::lock_guard lock(state_->mutex);
    state_->waiting.erase(number);
  }

 private:
  struct State {
    std::mutex mutex;
    bool cancelled = false;
    std::uint64_t last = 0;
    std::map<std::uint64_t, std::function<void()>> waiting;
  };
  const std::shared_ptr<State> state_;
};

}  // namespace icefield
