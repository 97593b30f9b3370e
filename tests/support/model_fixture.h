// tests/support/model_fixture.h — the default model, a worker and an embedded node around it.
#pragma once

#include <memory>
#include <string>

#include "engine/decoder.h"
#include "tools/embedded_node.h"

namespace icefield {

// The file that ./dev model fetches.
std::string test_model_path();

struct ModelFixture {
  struct Options {
    int threads = 2;
    std::string store;
    std::int64_t pool_bytes = 8 << 20;
    std::int64_t dram_bytes = std::int64_t{1} << 30;
  };
  explicit ModelFixture(Options options);

  SystemClock clock;
  SeededRng rng{5};
  ThreadPool threads;
  std::unique_ptr<Model> model;
  std::unique_ptr<EmbeddedNode> node;
  std::unique_ptr<Worker> worker;
  std::unique_ptr<Decoder> decoder;
};

}  // namespace icefield
