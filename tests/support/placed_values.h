// tests/support/placed_values.h — a node whose memory is a region, and a client that reads and
// writes large values there by itself.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>

#include "tests/support/meddling_transport.h"
#include "tests/support/objects.h"
#include "tests/support/value_cluster.h"

namespace icefield {

constexpr std::int64_t kValueBytes = 100'000;

class PlacedValues : public testing::Test {
 protected:
  explicit PlacedValues(TestNode::Options node)
      : cluster_(std::move(node), 1),
        transport_(cluster_.transport()),
        membership_({{.name = ValueCluster::name(0)}}),
        nodes_(cluster_.clock(), transport_, membership_),
        store_(cluster_.clock(), rng_, nodes_, {}) {}

  // What is put, and should come back, under that key.
  const Bytes& value(const std::string& key, std::int64_t bytes = kValueBytes) {
    return values_[key] = random_bytes(rng_, static_cast<std::size_t>(bytes));
  }
  Result<PutOutcome> put(const std::string& key, std::int64_t bytes = kValueBytes,
                         PutOptions options = {}, ValueCall call = {}) {
    return cluster_.run(store_.put(key, value(key, bytes), options, call));
  }
  Result<Buffer> get(const std::string& key) {
    return cluster_.run(store_.get(key, Buffer(std::ssize(values_[key])), {}));
  }
  // Whether the value comes back as it was put.
  testing::AssertionResult comes_back(const std::string& key) {
    const Result<Buffer> got = get(key);
    if (!got.has_value()) return testing::AssertionFailure() << got.error().to_string();
    if (!std::ranges::equal(got->bytes(), values_[key])) {
      return testing::AssertionFailure() << "other bytes";
    }
    return testing::AssertionSuccess();
  }
  // Where a value is in memory.
  std::span<std::byte>::iterator find(const std::string& key) {
    const ByteSpan memory = node().memory().memory();
    const Bytes& bytes = values_[key];
    return std::search(memory.begin(), memory.end(), bytes.begin(), bytes.begin() + 64);
  }
  TestNode& node() { return cluster_.node(0); }
  const ValueServer& server() { return node().server().values(); }
  std::int64_t used() { return node().memory().usage().used_bytes; }
  void end_connection() {
    node().server().closed(Caller().over({.one_sided = true}));  // the loopback's only one
  }

  SeededRng rng_{5};
  ValueCluster cluster_;
  MeddlingTransport transport_;
  StaticMembership membership_;
  Nodes nodes_;
  ValueStore store_;
  std::map<std::string, Bytes> values_;
};

}  // namespace icefield
