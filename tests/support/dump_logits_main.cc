// dump_logits MODE TOKENS OUT [COUNT] — what the engine computes, for
// tests/compare_transformers.py. TOKENS: ids, one per line. Modes:
//   steps     all tokens one by one; logits of each to OUT as floats [tokens, vocabulary]
//   prefill   all but the last 16 tokens by prefill; logits of those 16
//   greedy    prefill of all tokens, then COUNT greedy tokens; ids to OUT, one per line
//   time      prefill of all tokens; prints its seconds
//   encode    TOKENS is a text file; its ids to OUT, one per line
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "engine/sampler.h"
#include "tests/support/model_fixture.h"

namespace icefield {
namespace {

void write_ids(const std::string& path, std::span<const TokenId> ids) {
  std::ofstream out(path);
  for (const TokenId id : ids) out << id << "\n";
}

Status run(const std::string& mode, const std::string& in_path, const std::string& out_path,
           int count) {
  ModelFixture fixture({});
  if (mode == "encode") {
    std::ifstream in(in_path, std::ios::binary);
    const std::string text((std::istreambuf_iterator<char>(in)), {});
    ICE_TRY(const std::vector<TokenId> ids, fixture.model->tokenizer().encode(text));
    write_ids(out_path, ids);
    return Status();
  }
  std::vector<TokenId> tokens;
  std::ifstream in(in_path);
  for (TokenId token = 0; in >> token;) tokens.push_back(token);
  Context context = fixture.worker->new_context();
  std::span<const TokenId> rest = tokens;
  const std::size_t kept = mode == "steps" ? rest.size() : mode == "prefill" ? 16 : 1;
  const std::size_t prefilled = mode == "time" ? rest.size() : rest.size() - kept;
  const auto begin = std::chrono::steady_clock::now();
  if (prefilled > 0) ICE_TRY(fixture.decoder->prefill(context, rest.first(prefilled)));
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  rest = rest.subspan(prefilled);
  if (mode == "time") {
    std::printf("%.3f\n", seconds.count());
    return Status();
  }
  ICE_TRY(std::span<const float> logits,
          fixture.decoder->forward(context, rest,
                                   {.logits = mode == "greedy" ? Logits::kLast : Logits::kAll}));
  if (mode != "greedy") {
    std::ofstream out(out_path, std::ios::binary);
    out.write(reinterpret_cast<const char*>(logits.data()),
              static_cast<std::streamsize>(logits.size_bytes()));
    return Status();
  }
  std::vector<TokenId> ids;
  for (int i = 0; i < count; ++i) {
    ids.push_back(most_likely(logits));
    ICE_TRY(logits, fixture.decoder->forward(context, std::span(&ids.back(), 1), {}));
  }
  write_ids(out_path, ids);
  return Status();
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  if (argc < 4) {
    std::cerr << "usage: dump_logits steps|prefill|greedy|time|encode IN OUT [COUNT]\n";
    return 2;
  }
  const icefield::Status status =
      icefield::run(argv[1], argv[2], argv[3], argc > 4 ? std::stoi(argv[4]) : 0);
  if (status.ok()) return 0;
  std::cerr << status.to_string() << "\n";
  return 1;
}
