// tests/gpu/gpu_groups.h — groups of a reference fixture put into the memory of the GPU, run by the
// CUDA kernels, and read back. Everything that a kernel writes is poisoned before.
#pragma once

#include <memory>
#include <vector>

#include "bench/support/gpu_layer_fixture.h"
#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"
#include "kernels/attend_cuda.h"
#include "kernels/select_cuda.h"

namespace icefield {

// Heads of one context, their table, queries; on the host, for the reference.
struct World {
  std::vector<std::unique_ptr<HeadFixture>> heads;
  std::vector<HeadIndex> table;
  std::vector<const Bf16*> rows;
  HeadShape shape;
  std::vector<float> q;
  std::vector<float> exact_lse;

  // Segments of `lengths` tokens, the first from position 0.
  World(std::uint64_t seed, const std::vector<std::int32_t>& lengths, std::int32_t d,
        std::int32_t query_rows);
  // Segments whose keys and values are as given, [length, 2 d] each.
  World(const std::vector<std::vector<Bf16>>& segments, std::int32_t d, std::int32_t query_rows);

  // Cuts every cluster of segment `s` into clusters of one token.
  void split_clusters(std::size_t s);

  GroupFixture reference() const {
    return GroupFixture(reference_kernels(), shape, table, rows, q, exact_lse);
  }
  TableSize size() const {
    return table_size(table.data(), static_cast<std::int32_t>(table.size()));
  }
  std::int32_t segments() const { return static_cast<std::int32_t>(table.size()); }
  std::int32_t query_rows() const { return static_cast<std::int32_t>(exact_lse.size()); }
};

// What stands in a partial result on the GPU.
PartialBuffer read_partial(const GpuArena& arena, const Partial& partial, std::int32_t rows,
                           std::int32_t d_v);

struct GroupOptions {
  SelectionRule rule;  // segment_budgets on the host
  std::int32_t page_rows = 1;
  std::vector<SegmentAccount> accounts;  // empty: none
  // Pages (of the table's rows) that are not in the pool.
  std::vector<std::int32_t> missing_pages;
};

GroupOptions with_rule(std::int32_t budget, std::int32_t breadth);

// Groups for one launch: of one head dimension, each with a world of its own.
struct LayerCase {
  std::vector<std::unique_ptr<World>> worlds;
  std::vector<GroupOptions> options;  // of each

  std::vector<const World*> pointers() const;
};
// Up to three groups of random segments, query rows, budgets and breadths.
LayerCase random_layer(SeededRng& rng, std::int32_t head_dim);
// Clusters of one token; equal keys beside a huge outlier.
LayerCase strange_layer();

// One group on the GPU with all its arrays.
struct GpuGroup {
  const World* world;
  GroupOptions options;
  std::int32_t most_selected = 0;
  GpuSelectGroup select;
  FindRowsGroup find;
  GpuAttendGroup attend;
};

// A batch of groups of one shape, as a layer has them.
class GpuLayer {
 public:
  GpuLayer(GpuArena& arena, const std::vector<const World*>& worlds,
           const std::vector<GroupOptions>& options);

  Status select();                         // score lists, propose, rank
  Status step();                           // select, find rows, attend
  Status run(Status (GpuLayer::*work)());  // and waits

  GpuSelectArgs select_args() const;
  FindRowsArgs find_args() const;
  GpuAttendArgs attend_args() const;

  const GpuGroup& group(std::size_t i) const { return groups_[i]; }
  PartialBuffer result(std::size_t i) const;
  void set_queries(std::size_t i, const std::vector<float>& q);
  void set_budget(std::size_t i, std::int32_t budget);  // at most what it began with

 private:
  void add(const World& world, const GroupOptions& options);
  void add_pages(const World& world, const GroupOptions& options,
                 std::vector<GpuSegment>& segments);
  void add_rows(GpuGroup& group);
  void make_selection(GpuGroup& group);
  void upload();

  GpuArena& arena_;
  HeadShape shape_;
  GpuCapacity capacity_;
  std::int32_t page_rows_ = 1;
  bool segment_budgets_ = false;
  std::vector<std::byte> pool_;  // of all groups, before it is copied
  std::byte* pool_on_gpu_ = nullptr;
  std::int32_t in_pool_ = 0;  // pages; the others are in the overflow
  std::vector<GpuGroup> groups_;
  GpuSelectGroup* select_ = nullptr;
  FindRowsGroup* find_ = nullptr;
  GpuAttendGroup* attend_ = nullptr;
};

}  // namespace icefield
