// The CUDA kernels beside what the GPU can do: one layer of a long context in a recorded graph, and
// attention over rows against the bandwidth of device memory.
//
// Estimates for an H100 (3.35 TB/s): select and attend at 128 K tokens, 8 KV heads, budget 256 read
// 25 MB in nine launches of 2 to 5 us, 35 to 45 us a layer; the whole step has four launches more
// (the window's attention, the merge, the second order), about 10 us; attention over a quarter of
// 128 K rows reads 134 MB, 45 us at 90 % of the bandwidth.
//
//   kernels_cuda_bench [--small] [--json]
#include <algorithm>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bench/support/gpu_layer_fixture.h"

namespace icefield {
namespace {

struct Figure {
  std::string name;
  double value = 0;
  double deviation = 0;  // median absolute deviation, same unit
  std::string unit;
  std::string against;  // empty: nothing
  double ratio = 0;
};

struct Time {
  double ms = 0;
  double deviation = 0;
};

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

class Bench {
 public:
  explicit Bench(bool small) : small_(small) {}

  void run() {
    measure_memory();
    measure_layers();
    measure_rows();
  }
  void print_table() const;
  void print_json() const;

 private:
  // Milliseconds of one pass of `submit`, recorded once and repeated.
  Time time(GpuArena& arena, const std::function<Status()>& submit) const {
    Result<GpuGraph> graph = GpuGraph::record(arena.stream(), submit);
    check_gpu(graph.has_value() ? Status() : graph.error());
    const int repeats = small_ ? 1 : 20;
    std::vector<double> times;
    for (int run = 0; run < (small_ ? 2 : 11); ++run) {
      const Result<float> ms = gpu_time_ms(arena.stream(), [&] {
        for (int i = 0; i < repeats; ++i) ICE_TRY(graph.value().launch(arena.stream()));
        return Status();
      });
      check_gpu(ms.has_value() ? Status() : ms.error());
      times.push_back(static_cast<double>(ms.value()) / repeats);
    }
    times.erase(times.begin());  // warms up
    const double middle = median(times);
    std::vector<double> away;
    for (const double t : times) away.push_back(std::max(t - middle, middle - t));
    return {.ms = middle, .deviation = median(away)};
  }

  void add(Figure figure) { figures_.push_back(std::move(figure)); }
  void add_time(const std::string& name, const Time& t, double per = 1) {
    add({.name = name, .value = t.ms / per, .deviation = t.deviation / per, .unit = "ms"});
  }

  void measure_memory();
  void measure_layers();
  void measure_rows();

  bool small_;
  double memory_rate_ = 0;  // GB/s, bytes read and written
  std::uint64_t hash_ = 0;
  std::vector<Figure> figures_;
};

void Bench::measure_memory() {
  GpuArena arena;
  const std::int64_t bytes = small_ ? 1 << 20 : 1 << 30;
  auto* from = arena.make<std::byte>(bytes);
  auto* to = arena.make<std::byte>(bytes);
  const Time t = time(arena, [&] { return copy_on_gpu(to, from, bytes, arena.stream()); });
  memory_rate_ = t.ms > 0 ? 2.0 * static_cast<double>(bytes) / t.ms / 1e6 : 0;
  add({.name = "device_memcpy",
       .value = memory_rate_,
       .deviation = t.ms > 0 ? memory_rate_ * t.deviation / t.ms : 0,
       .unit = "GB/s"});
}

// Several layers in one graph, each with an index of its own: what one leaves in the cache is gone
// when it is needed again.
void Bench::measure_layers() {
  const int layer_count = small_ ? 2 : 4;
  GpuLayerShape shape;
  if (small_) {
    shape = {.tokens = 1024,
             .kv_heads = 2,
             .query_rows = 4,
             .head_dim = 64,
             .budget = 32,
             .breadth = 2,
             .window = 64};
  }
  GpuArena arena;
  const std::byte* rows = make_rows(arena, shape);
  std::vector<std::unique_ptr<GpuLayerFixture>> layers;
  for (int i = 0; i < layer_count; ++i) {
    shape.seed = static_cast<std::uint64_t>(i) + 1;
    layers.push_back(std::make_unique<GpuLayerFixture>(arena, shape, rows));
  }
  const auto all = [&](Status (GpuLayerFixture::*stage)()) {
    return time(arena, [&layers, stage] {
      for (const auto& layer : layers) ICE_TRY((layer.get()->*stage)());
      return Status();
    });
  };
  add_time("layer_step", all(&GpuLayerFixture::step), layer_count);
  const Time selected = all(&GpuLayerFixture::select_and_attend);
  add_time("select_and_attend", selected, layer_count);
  figures_.back().against = "the 0.05 ms that it must reach";
  figures_.back().ratio = selected.ms / layer_count / 0.05;
  // Stages alone, on what the step left.
  add_time("stage_attend_window", all(&GpuLayerFixture::attend_window), layer_count);
  add_time("stage_score", all(&GpuLayerFixture::score), layer_count);
  add_time("stage_propose", all(&GpuLayerFixture::propose), layer_count);
  const Time ranked = time(arena, [&layers] {  // a ranking needs a proposal before it
    for (const auto& layer : layers) {
      ICE_TRY(layer->propose());
      ICE_TRY(layer->rank());
    }
    return Status();
  });
  add_time("stage_propose_and_rank", ranked, layer_count);
  add_time("stage_find", all(&GpuLayerFixture::find), layer_count);
  add_time("stage_attend_selected", all(&GpuLayerFixture::attend_selected), layer_count);
  add_time("stage_merge", all(&GpuLayerFixture::merge), layer_count);
  add_time("stage_add_slope", all(&GpuLayerFixture::add_slope), layer_count);
  check_gpu(layers[0]->step());
  arena.wait();
  hash_ = layers[0]->result_hash();
}

void Bench::measure_rows() {
  GpuLayerShape shape;
  if (small_) shape = {.tokens = 512, .kv_heads = 2, .query_rows = 4, .head_dim = 64};
  GpuArena arena;
  const std::byte* rows = make_rows(arena, shape);
  const auto measure = [&](const std::string& name, const GpuLayerShape& of, std::int32_t count) {
    GpuExactFixture exact(arena, of, rows, count);
    const Time t = time(arena, [&exact] { return exact.attend(); });
    add_time(name, t);
    const double rate = t.ms > 0 ? static_cast<double>(exact.bytes()) / t.ms / 1e6 : 0;
    add({.name = name + "_rate",
         .value = rate,
         .deviation = t.ms > 0 ? rate * t.deviation / t.ms : 0,
         .unit = "GB/s",
         .against = "device_memcpy",
         .ratio = memory_rate_ > 0 ? rate / memory_rate_ : 0});
    return t.ms;
  };
  const double full = measure("attend_all", shape, shape.tokens);
  const double quarter = measure("attend_quarter", shape, shape.tokens / 4);
  add({.name = "attend_quarter_speedup",
       .value = quarter > 0 ? full / quarter : 0,
       .unit = "x",
       .against = "attend_all, this kernel over all rows",
       .ratio = quarter > 0 ? full / quarter : 0});
  GpuLayerShape one = shape;
  one.kv_heads = 1;
  one.query_rows = 1;
  measure("attend_one_row", one, shape.tokens / 4);
}

void Bench::print_table() const {
  for (const Figure& f : figures_) {
    std::printf("%-28s %12.4f ± %-10.4f %-5s", f.name.c_str(), f.value, f.deviation,
                f.unit.c_str());
    if (!f.against.empty()) std::printf(" %6.2f x %s", f.ratio, f.against.c_str());
    std::printf("\n");
  }
  std::printf("result hash %016llx\n", static_cast<unsigned long long>(hash_));
}

void Bench::print_json() const {
  std::printf("{\"command\": \"kernels_cuda_bench\", \"machine\": \"%d multiprocessors\", ",
              gpu_processors().value());
  std::printf("\"result_hash\": \"%016llx\", \"figures\": [",
              static_cast<unsigned long long>(hash_));
  for (std::size_t i = 0; i < figures_.size(); ++i) {
    const Figure& f = figures_[i];
    const bool time = f.unit == "ms";
    std::printf("%s{\"name\": \"%s\", \"params\": {}, \"value\": %.6g, \"mad\": %.3g, ",
                i == 0 ? "" : ", ", f.name.c_str(), f.value, f.deviation);
    std::printf("\"unit\": \"%s\", \"against\": \"%s\", \"ratio\": %.4g, \"better\": \"%s\"}",
                f.unit.c_str(), f.against.c_str(), f.ratio, time ? "lower" : "higher");
  }
  std::printf("]}\n");
}

}  // namespace
}  // namespace icefield

int main(int argc, char** argv) {
  bool small = false;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    small |= argument == "--small";
    json |= argument == "--json";
    if (argument != "--small" && argument != "--json") {
      std::fprintf(stderr, "usage: kernels_cuda_bench [--small] [--json]\n");
      return 2;
    }
  }
  if (!icefield::gpu_available()) {
    std::printf("skipped: no GPU of sm_80 or later here\n");
    return 77;
  }
  icefield::Bench bench(small);
  bench.run();
  if (json) {
    bench.print_json();
  } else {
    bench.print_table();
  }
  return 0;
}
