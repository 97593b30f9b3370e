// tests/support/frozen.h — a peer that has stopped without a word.
#pragma once

#include <boost/asio/post.hpp>
#include <future>

#include "common/shard.h"

namespace icefield {

// Stops the thread of a shard until it goes.
class Frozen {
 public:
  explicit Frozen(Shard& shard) {
    asio::post(shard.executor(), [this, until = thaw_.get_future()] {
      frozen_.set_value();
      until.wait();
    });
    frozen_.get_future().wait();
  }
  ~Frozen() { thaw_.set_value(); }
  Frozen(const Frozen&) = delete;
  Frozen& operator=(const Frozen&) = delete;

 private:
  std::promise<void> thaw_;
  std::promise<void> frozen_;
};

}  // namespace icefield
