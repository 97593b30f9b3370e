// What no engine should pass and some will: arrays at odd addresses, keys and values that are not
// finite or far too large, segments of a length that none has. (Budgets beyond what there is:
// select_test; queries that are not finite: kernels_fuzz_test.)
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bench/support/head_fixture.h"
#include "bench/support/selection_fixture.h"

namespace icefield {
namespace {

const Kernels* const kTables[] = {&reference_kernels(), &cpu_kernels()};

// ---- addresses

// Arrays that begin `offset` elements after a multiple of 64 bytes, with room for the vectors that
// kernels read beyond an end.
class Memory {
 public:
  explicit Memory(std::int64_t offset) : offset_(offset) {}

  template <class T>
  T* make(std::int64_t count) {
    constexpr std::int64_t kBeyond = 128;
    const auto size = static_cast<std::int64_t>(sizeof(T));
    blocks_.emplace_back(static_cast<std::size_t>((offset_ + count) * size + kBeyond));
    return reinterpret_cast<T*>(blocks_.back().data() + offset_ * size);
  }
  template <class T>
  T* put(const T* values, std::int64_t count) {
    T* at = make<T>(count);
    std::copy_n(values, count, at);
    return at;
  }
  template <class Values>
  auto* put(const Values& values) {
    return put(values.data(), static_cast<std::int64_t>(values.size()));
  }

 private:
  const std::int64_t offset_;
  std::vector<AlignedBytes> blocks_;
};

// The arrays of a level or of codes with what they hold, elsewhere.
template <template <class> class Qualify>
BasicLevelView<Qualify> moved(Memory& memory, BasicLevelView<Qualify> level) {
  const std::int64_t count = level.stored_count;
  const std::int64_t padded = level.padded(level.stored_count);
  level.key_means = memory.put(level.key_means, padded * level.d_k);
  level.value_means = memory.put(level.value_means, count * level.d_v);
  level.key_scale = memory.put(level.key_scale, padded);
  level.value_scale = memory.put(level.value_scale, padded);
  level.ln_count = memory.put(level.ln_count, padded);
  level.sigma = memory.put(level.sigma, padded);
  level.token_count = memory.put(level.token_count, padded);
  level.first_row = memory.put(level.first_row, padded);
  level.gamma = memory.put(level.gamma, level.d_k);
  if (level.slope == nullptr) return level;
  level.slope = memory.put(level.slope, static_cast<std::int64_t>(level.d_k) * level.d_v);
  level.slope_scale = memory.put(level.slope_scale, level.d_k);
  return level;
}
template <template <class> class Qualify>
BasicCodesView<Qualify> moved(Memory& memory, BasicCodesView<Qualify> codes) {
  const std::int64_t rows = static_cast<std::int64_t>(codes.panel_count()) * kCodePanel;
  codes.codes = memory.put(codes.codes, rows * codes.d_k / kCodeGroup);
  codes.scale = memory.put(codes.scale, rows);
  codes.check = memory.put(codes.check, codes.row_count);
  return codes;
}

template <class T>
void append(std::vector<float>& out, const T* values, std::int64_t count) {
  for (std::int64_t i = 0; i < count; ++i) out.push_back(static_cast<float>(values[i]));
}

// Everything that partition and describe give for `rows`, as numbers.
std::vector<float> build_at(const Kernels& kernels, std::int64_t offset,
                            const std::vector<Bf16>& rows, std::int32_t d) {
  Memory memory(offset);
  const auto count = static_cast<std::int32_t>(rows.size()) / (2 * d);
  Partition partition;
  EXPECT_TRUE(
      kernels
          .partition({.d_k = d, .d_v = d, .row_count = count, .rows = memory.put(rows)}, partition)
          .ok());
  std::vector<Bf16> stored;
  for (const std::uint16_t token : partition.order) {
    stored.insert(stored.end(), rows.begin() + token * 2 * d, rows.begin() + (token + 1) * 2 * d);
  }
  const PartShape shape{.kv_head_count = 1, .d_k = d, .d_v = d, .row_count = count};
  const auto lists = static_cast<std::int32_t>(partition.list_rows.size());
  const auto clusters = static_cast<std::int32_t>(partition.cluster_rows.size());
  AlignedBytes parts[] = {make_level_part(PartKind::kLists, shape, std::span(&lists, 1)),
                          make_level_part(PartKind::kClusters, shape, std::span(&clusters, 1)),
                          make_codes_part(shape)};
  const DescribeArgs args{.d_k = d,
                          .d_v = d,
                          .row_count = count,
                          .rows = memory.put(stored),
                          .partition = &partition,
                          .lists = moved(memory, mutable_level(parts[0], 0)),
                          .clusters = moved(memory, mutable_level(parts[1], 0)),
                          .codes = moved(memory, mutable_codes(parts[2], 0))};
  kernels.describe(args);
  std::vector<float> out;
  append(out, partition.order.data(), count);
  for (const MutableLevelView& level : {args.lists, args.clusters}) {
    append(out, level.key_means, static_cast<std::int64_t>(level.padded(level.count)) * d);
    append(out, level.value_means, static_cast<std::int64_t>(level.count) * d);
    append(out, level.key_scale, level.count);
    append(out, level.sigma, level.count);
    append(out, level.gamma, d);
    if (level.slope != nullptr) append(out, level.slope, static_cast<std::int64_t>(d) * d);
  }
  append(out, args.codes.codes, static_cast<std::int64_t>(count) * d / kCodeGroup);
  append(out, args.codes.scale, count);
  return out;
}

TEST(BadInput, RowsAtAnOddAddressAreBuiltAlike) {
  SeededRng rng(1);
  for (const std::int32_t d : {64, 80, 128}) {
    const std::vector<Bf16> rows = random_rows(rng, d == 64 ? 4096 : 512, d, d);
    for (const Kernels* kernels : kTables) {
      EXPECT_EQ(build_at(*kernels, 0, rows, d), build_at(*kernels, 1, rows, d)) << d;
    }
  }
}

// One step of a group whose arrays are all at an offset, kernel after kernel.
class MovedStep {
 public:
  MovedStep(const Kernels& kernels, std::int64_t offset, const GroupFixture& group,
            const SelectionRule& rule)
      : kernels_(kernels),
        memory_(offset),
        shape_(group.shape),
        size_(group.size),
        rule_(rule),
        rows_(group.rows()) {
    for (std::size_t s = 0; s < group.segments.size(); ++s) {
      HeadIndex segment = group.segments[s];
      segment.lists = moved(memory_, segment.lists);
      segment.clusters = moved(memory_, segment.clusters);
      segment.codes = moved(memory_, segment.codes);
      table_.push_back(segment);
      const std::int64_t width = shape_.d_k + shape_.d_v;
      stored_.push_back(memory_.put(group.stored_rows[s], segment.codes.row_count * width));
    }
    q_ = memory_.put(group.q);
    q_rotated_ = memory_.put(group.q_rotated);
    exact_lse_ = memory_.put(group.exact_lse);
  }

  // Every number that the kernels give.
  std::vector<float> run() {
    select();
    attend();
    return std::move(out_);
  }

 private:
  std::int32_t segments() const { return static_cast<std::int32_t>(table_.size()); }
  float* floats(std::int64_t per_row) { return memory_.make<float>(rows_ * per_row); }

  Partial make_partial() {
    return {.out = floats(shape_.d_v),
            .lse = floats(1),
            .tail = floats(1),
            .fault = floats(1),
            .drift = floats(1)};
  }

  void select() {
    const ScoreListsGroup lists{.row_count = rows_,
                                .q = q_,
                                .exact_lse = exact_lse_,
                                .segment_count = segments(),
                                .segments = table_.data(),
                                .list_logit = floats(size_.lists),
                                .reference_level = floats(1),
                                .segment_mass = memory_.make<float>(segments())};
    kernels_.score_lists({.shape = shape_, .group_count = 1, .groups = &lists});
    clusters_ = {.row_count = rows_,
                 .q = q_,
                 .reference_level = lists.reference_level,
                 .segment_count = segments(),
                 .segments = table_.data(),
                 .rule = rule_,
                 .cluster_logit = floats(size_.clusters),
                 .cluster_vote = memory_.make<float>(size_.clusters),
                 .order = memory_.make<std::int32_t>(size_.clusters),
                 .candidate = memory_.make<std::uint8_t>(size_.clusters)};
    kernels_.propose({.shape = shape_, .group_count = 1, .groups = &clusters_});
    tokens_ = {.row_count = rows_,
               .q_rotated = q_rotated_,
               .reference_level = lists.reference_level,
               .segment_count = segments(),
               .segments = table_.data(),
               .cluster_logit = clusters_.cluster_logit,
               .candidate = clusters_.candidate,
               .rule = rule_,
               .token_logit = floats(size_.rows),
               .vote = memory_.make<float>(size_.rows),
               .ranking = memory_.make<RankedRow>(rank_scratch_rows(rule_.budget)),
               .selected = memory_.make<TableRow>(rule_.budget),
               .selected_count = &selected_count_};
    kernels_.rank({.shape = shape_, .group_count = 1, .groups = &tokens_});
    append(out_, lists.list_logit, rows_ * size_.lists);
    append(out_, lists.reference_level, rows_);
    append(out_, clusters_.cluster_logit, rows_ * size_.clusters);
    append(out_, clusters_.cluster_vote, size_.clusters);
    append(out_, clusters_.candidate, size_.clusters);
  }

  // S with the tail, S alone, both merged, and along the slope.
  void attend() {
    std::vector<RowRun> runs;
    for (std::int32_t i = 0; i < selected_count_; ++i) {
      const TableRow& at = tokens_.selected[i];
      const Bf16* rows = stored_[static_cast<std::size_t>(at.segment)];
      runs.push_back({.rows = rows + at.row * (shape_.d_k + shape_.d_v), .mask = 1});
      append(out_, &at.segment, 1);
      append(out_, &at.row, 1);
    }
    AttendGroup group{
        .row_count = rows_,
        .q = q_,
        .run_count = selected_count_,
        .runs = runs.data(),
        .segment_count = segments(),
        .segments = table_.data(),
        .cluster_logit = clusters_.cluster_logit,
        .candidate = clusters_.candidate,
        .token_logit = tokens_.token_logit,
        .selected_count = selected_count_,
        .selected = tokens_.selected,
        .scratch = memory_.make<float>(attend_scratch_floats(rows_, size_, selected_count_)),
        .result = make_partial()};
    kernels_.attend({.shape = shape_, .group_count = 1, .groups = &group});
    const Partial whole = group.result;
    group.segment_count = 0;
    group.result = make_partial();
    kernels_.attend({.shape = shape_, .group_count = 1, .groups = &group});
    const Partial parts[] = {whole, group.result};
    const Partial merged = make_partial();
    kernels_.merge(
        {.d_v = shape_.d_v, .row_count = rows_, .part_count = 2, .parts = parts, .result = merged});
    const LevelView& longest = table_[0].clusters;
    kernels_.add_slope({.shape = shape_,
                        .slope = {longest.gamma, longest.slope, longest.slope_scale},
                        .row_count = rows_,
                        .q = q_,
                        .drift = merged.drift,
                        .out = merged.out});
    for (const Partial& part : {whole, group.result, merged}) {
      append(out_, part.out, rows_ * shape_.d_v);
      for (const float* values : {part.lse, part.tail, part.drift}) append(out_, values, rows_);
    }
  }

  const Kernels& kernels_;
  Memory memory_;
  const HeadShape shape_;
  const TableSize size_;
  const SelectionRule rule_;
  const std::int32_t rows_;
  std::vector<HeadIndex> table_;
  std::vector<const Bf16*> stored_;
  const float *q_ = nullptr, *q_rotated_ = nullptr, *exact_lse_ = nullptr;
  ProposeGroup clusters_;
  RankGroup tokens_;
  std::int32_t selected_count_ = 0;
  std::vector<float> out_;
};

TEST(BadInput, ArraysAtOddAddressesGiveTheSameStep) {
  for (const std::int32_t d : {64, 80, 128}) {
    SeededRng rng(static_cast<std::uint64_t>(d));
    std::vector<std::unique_ptr<HeadFixture>> heads;
    std::vector<HeadIndex> table;
    std::vector<const Bf16*> rows;
    for (const std::int32_t length : {4096, 256}) {
      heads.push_back(HeadFixture::make(cpu_kernels(), random_rows(rng, length, d, d), d, d, 0));
      table.push_back(heads.back()->index);
      rows.push_back(heads.back()->stored_rows.data());
    }
    const HeadShape shape{.d_k = d, .d_v = d, .beta = 1 / std::sqrt(static_cast<float>(d))};
    for (const std::int32_t queries : {1, 3, 8}) {  // the last by tiles where there are any
      const GroupFixture group(cpu_kernels(), shape, table, rows,
                               random_queries(rng, heads[0]->rows, queries, d, d),
                               std::vector<float>(static_cast<std::size_t>(queries), 2.0f));
      for (const Kernels* kernels : kTables) {
        const SelectionRule rule{.budget = 200, .breadth = 4};
        const std::vector<float> aligned = MovedStep(*kernels, 0, group, rule).run();
        EXPECT_TRUE(std::ranges::all_of(aligned, [](float x) { return std::isfinite(x); }));
        EXPECT_EQ(MovedStep(*kernels, 1, group, rule).run(), aligned) << d << " " << queries;
      }
    }
  }
}

// ---- keys and values

struct BadValue {
  const char* name;
  float value;
};

class BadInputValues : public testing::TestWithParam<BadValue> {};

TEST_P(BadInputValues, KeysAndValuesAreRefusedWithTheirToken) {
  SeededRng rng(3);
  const std::vector<Bf16> good = random_rows(rng, 512, 64, 48);
  for (const Kernels* kernels : kTables) {
    for (const std::int32_t token : {0, 15, 17, 255, 256, 511}) {  // of the sink too
      for (const std::int32_t at : {0, 5, 63, 64, 100, 111}) {     // keys, then values
        std::vector<Bf16> rows = good;
        rows[static_cast<std::size_t>(token * 112 + at)] = float_to_bf16(GetParam().value);
        Partition partition;
        const Status status = kernels->partition({.d_k = 64,
                                                  .d_v = 48,
                                                  .row_count = 512,
                                                  .first_indexed_row = kSinkTokens,
                                                  .rows = rows.data()},
                                                 partition);
        ASSERT_EQ(status.code(), Code::kInvalidArgument) << token << " " << at;
        ASSERT_NE(status.message().find("token " + std::to_string(token) + " "), std::string::npos)
            << status.to_string();
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, BadInputValues,
                         testing::Values(BadValue{"NaN", NAN}, BadValue{"Infinity", HUGE_VALF},
                                         BadValue{"MinusInfinity", -HUGE_VALF},
                                         BadValue{"TooLarge", 0x1p48f},
                                         BadValue{"FarTooSmall", -3e38f}),
                         [](const auto& param) { return std::string(param.param.name); });

// The largest that is not refused, alone and everywhere: statistics that can be read back.
TEST(BadInput, KeysAndValuesBelowTheLimitAreIndexed) {
  const Bf16 most = float_to_bf16(0x1.fep47f);
  for (const bool everywhere : {false, true}) {
    SeededRng rng(4);
    std::vector<Bf16> rows = random_rows(rng, 4096, 64, 64);
    if (everywhere) {
      for (Bf16& x : rows) x = static_cast<Bf16>(most | (rng.below(2) << 15));
    } else {
      std::fill_n(rows.begin() + 700 * 128, 128, most);
    }
    for (const Kernels* kernels : kTables) {
      const auto head = HeadFixture::make(*kernels, rows, 64, 64, 0);  // parses its parts
      std::vector<std::uint16_t> tokens = head->partition.order;
      std::ranges::sort(tokens);
      std::vector<std::uint16_t> all(4096);
      std::iota(all.begin(), all.end(), std::uint16_t{0});
      EXPECT_EQ(tokens, all);
    }
  }
}

// ---- shapes

TEST(BadInput, SegmentsThatNoSequenceIsCutIntoAreRefused) {
  const std::vector<Bf16> rows(8192 * 32, float_to_bf16(1));
  for (const Kernels* kernels : kTables) {
    const auto status_of = [&](PartitionArgs args) {
      Partition partition;
      args.rows = rows.data();
      return kernels->partition(args, partition);
    };
    for (const std::int32_t count : {-256, 0, 1, 255, 257, 4352, 8192}) {
      const Status status = status_of({.d_k = 16, .d_v = 16, .row_count = count});
      EXPECT_EQ(status.code(), Code::kInvalidArgument) << count;
      EXPECT_NE(status.message().find(std::to_string(count) + " tokens"), std::string::npos);
    }
    for (const std::int32_t count : {256, 512, 4096}) {
      EXPECT_TRUE(status_of({.d_k = 16, .d_v = 16, .row_count = count}).ok()) << count;
    }
    for (const std::int32_t first : {-1, 1, 17, 256}) {
      EXPECT_EQ(
          status_of({.d_k = 16, .d_v = 16, .row_count = 256, .first_indexed_row = first}).code(),
          Code::kInvalidArgument);
    }
    for (const std::int32_t d : {0, 8, 24, 272}) {
      EXPECT_EQ(status_of({.d_k = d, .d_v = 16, .row_count = 256}).code(), Code::kUnimplemented);
      EXPECT_EQ(status_of({.d_k = 16, .d_v = d, .row_count = 256}).code(), Code::kUnimplemented);
    }
  }
}

}  // namespace
}  // namespace icefield
