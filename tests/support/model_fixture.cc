#include "tests/support/model_fixture.h"

namespace icefield {

std::string test_model_path() {
  return std::string(ICEFIELD_SOURCE_DIR) + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

ModelFixture::ModelFixture(Options options) : threads(options.threads) {
  model = Model::load(test_model_path()).value();
  node = EmbeddedNode::open({.dram_bytes = options.dram_bytes, .store = options.store}).value();
  worker = Worker::create({.model = model->config().kv,
                           .slice = Slice::whole(model->config().kv),
                           .softmax_scale = model->softmax_scale(),
                           .query_group = model->config().query_group(),
                           .fingerprint_text = model->fingerprint().text(),
                           .pool_bytes = options.pool_bytes},
                          {.kernels = cpu_kernels(),
                           .threads = threads,
                           .store = node->store(),
                           .executor = node->executor(),
                           .clock = clock,
                           .rng = rng})
               .value();
  decoder = std::make_unique<Decoder>(*model, *worker, threads);
}

}  // namespace icefield
