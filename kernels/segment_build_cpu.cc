// Clustering on the CPU. Bound: the dot products of the list assignment, about
// (6 × 32 + 64) centroid distances per token in a segment of 4096.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/segment_build_cpu.cc"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set
// The order matters: simd-inl.h needs the target.
#include <numeric>
#include <span>
#include <vector>

#include "hwy/highway.h"
#include "kernels/cluster_plan.h"
#include "kernels/segment_build.h"
#include "kernels/simd-inl.h"

#if HWY_TARGET == HWY_SCALAR
namespace icefield::HWY_NAMESPACE {
Status partition_target(const PartitionArgs& args, Partition& out) {
  return partition_reference(args, out);
}
}  // namespace icefield::HWY_NAMESPACE
#else
HWY_BEFORE_NAMESPACE();
namespace icefield {
namespace HWY_NAMESPACE {
namespace {

using Tokens = std::vector<std::int32_t>;
using Floats = std::vector<float, AlignedAllocator<float> >;

// Keys as floats, by token: [token_count, d]. Not a vector, which would first fill them with zeros.
class Keys {
 public:
  Keys(std::int32_t token_count, std::int32_t dim)
      : d(dim),
        count_(static_cast<std::size_t>(token_count) * static_cast<std::size_t>(dim)),
        values_(AlignedAllocator<float>().allocate(count_)) {}
  ~Keys() { AlignedAllocator<float>().deallocate(values_, count_); }
  Keys(const Keys&) = delete;
  Keys& operator=(const Keys&) = delete;

  float* operator[](std::int32_t token) { return values_ + static_cast<std::int64_t>(token) * d; }
  const float* operator[](std::int32_t token) const {
    return values_ + static_cast<std::int64_t>(token) * d;
  }

  const std::int32_t d;

 private:
  const std::size_t count_;
  float* const values_;
};

// Centroids side by side: dimension j of centroid c at [j * width + c].
struct Centroids {
  std::int32_t count = 0;
  std::int32_t width = 0;  // count rounded up to whole vectors
  Floats transposed;
  Floats half_norm;  // [width] ‖c‖²/2, +inf in the padding

  void reset(std::int32_t k, std::int32_t d) {
    count = k;
    width =
        static_cast<std::int32_t>(round_up(k, static_cast<std::int64_t>(hn::Lanes(FloatTag()))));
    transposed.assign(static_cast<std::size_t>(width) * static_cast<std::size_t>(d), 0.0f);
    half_norm.assign(static_cast<std::size_t>(width), HUGE_VALF);
  }
  void set(std::int32_t c, const float* centroid, std::int32_t d) {
    float norm = 0;
    for (std::int32_t j = 0; j < d; ++j) {
      transposed[static_cast<std::size_t>(j) * static_cast<std::size_t>(width) +
                 static_cast<std::size_t>(c)] = centroid[j];
      norm += centroid[j] * centroid[j];
    }
    half_norm[static_cast<std::size_t>(c)] = norm * 0.5f;
  }
};

// Everything k-means needs again and again.
struct Workspace {
  explicit Workspace(const PartitionArgs& args) : keys(args.row_count, args.d_k) {}

  Keys keys;
  Centroids centroids;
  Floats sums;                       // [k, d]
  std::vector<std::int32_t> counts;  // [k]
  std::vector<std::int32_t> nearest;
};

// The nearest centroid so far of one key, by lane. (Implicit constructors would not be compiled for
// the target.)
struct Nearest {
  HWY_INLINE Nearest() {}
  HWY_INLINE Nearest(FloatVec d, hn::Vec<IntTag> i) : distance(d), index(i) {}

  FloatVec distance;
  hn::Vec<IntTag> index;
};

// Looks at kVecs vectors of centroids from `first` on for kTokens keys: ‖c‖²/2 - k·c of each.
template <int kTokens, int kVecs>
HWY_INLINE void look_at(const float* const* keys, std::int32_t d_k, const Centroids& centroids,
                        std::int32_t first, Nearest* nearest) {
  const FloatTag d;
  const IntTag di;
  FloatVec distance[kTokens][kVecs];
  for (int v = 0; v < kVecs; ++v) {
    const FloatVec norm = hn::LoadU(d, centroids.half_norm.data() + first + v * kLanes);
    for (int t = 0; t < kTokens; ++t) distance[t][v] = norm;
  }
  const float* at = centroids.transposed.data() + first;
  for (std::int32_t j = 0; j < d_k; ++j, at += centroids.width) {
    FloatVec x[kVecs];
    for (int v = 0; v < kVecs; ++v) x[v] = hn::LoadU(d, at + v * kLanes);
    for (int t = 0; t < kTokens; ++t) {
      const FloatVec key = hn::Set(d, keys[t][j]);
      for (int v = 0; v < kVecs; ++v) distance[t][v] = hn::NegMulAdd(key, x[v], distance[t][v]);
    }
  }
  for (int v = 0; v < kVecs; ++v) {
    const auto index = hn::Iota(di, first + v * kLanes);
    for (int t = 0; t < kTokens; ++t) {
      const auto closer = hn::Lt(distance[t][v], nearest[t].distance);
      nearest[t].distance = hn::IfThenElse(closer, distance[t][v], nearest[t].distance);
      nearest[t].index = hn::IfThenElse(hn::RebindMask(di, closer), index, nearest[t].index);
    }
  }
}

// The nearest centroid of each of kTokens keys, ties to the lower index.
template <int kTokens>
HWY_NOINLINE void nearest_of(const float* const* keys, std::int32_t d_k, const Centroids& centroids,
                             std::int32_t* out) {
  const FloatTag d;
  const IntTag di;
  constexpr int kVecs = kLanes == 16 ? 4 : 2;  // sums that fit the registers
  Nearest nearest[kTokens];
  for (Nearest& n : nearest) n = {hn::Set(d, HUGE_VALF), hn::Zero(di)};
  std::int32_t c = 0;
  for (; c + kVecs * kLanes <= centroids.width; c += kVecs * kLanes) {
    look_at<kTokens, kVecs>(keys, d_k, centroids, c, nearest);
  }
  for (; c < centroids.width; c += kLanes) {
    look_at<kTokens, 1>(keys, d_k, centroids, c, nearest);
  }
  for (int t = 0; t < kTokens; ++t) {
    const FloatVec least = hn::MinOfLanes(d, nearest[t].distance);
    const auto is_least = hn::RebindMask(di, hn::Eq(nearest[t].distance, least));
    const auto candidates =
        hn::IfThenElse(is_least, nearest[t].index, hn::Set(di, centroids.width));
    out[t] = std::min(hn::GetLane(hn::MinOfLanes(di, candidates)), centroids.count - 1);
  }
}

void assign(const Keys& keys, std::span<const std::int32_t> tokens, const Centroids& centroids,
            std::vector<std::int32_t>& out) {
  constexpr std::size_t kTokens = 4;
  out.resize(tokens.size());
  std::size_t i = 0;
  for (; i + kTokens <= tokens.size(); i += kTokens) {
    const float* four[kTokens] = {keys[tokens[i]], keys[tokens[i + 1]], keys[tokens[i + 2]],
                                  keys[tokens[i + 3]]};
    nearest_of<kTokens>(four, keys.d, centroids, &out[i]);
  }
  for (; i < tokens.size(); ++i) {
    const float* one[1] = {keys[tokens[i]]};
    nearest_of<1>(one, keys.d, centroids, &out[i]);
  }
}

// One Lloyd step on `sample`. An empty centroid restarts at a strided token of the sample.
void improve(Workspace& work, std::span<const std::int32_t> sample) {
  const std::int32_t d = work.keys.d;
  const std::int32_t k = work.centroids.count;
  assign(work.keys, sample, work.centroids, work.nearest);
  work.sums.assign(static_cast<std::size_t>(k) * static_cast<std::size_t>(d), 0.0f);
  work.counts.assign(static_cast<std::size_t>(k), 0);
  for (std::size_t i = 0; i < sample.size(); ++i) {
    const float* key = work.keys[sample[i]];
    const auto c = static_cast<std::size_t>(work.nearest[i]);
    float* sum = work.sums.data() + c * static_cast<std::size_t>(d);
    for (std::int32_t j = 0; j < d; ++j) sum[j] += key[j];
    ++work.counts[c];
  }
  for (std::int32_t c = 0; c < k; ++c) {
    float* sum = work.sums.data() + static_cast<std::int64_t>(c) * d;
    const std::int32_t count = work.counts[static_cast<std::size_t>(c)];
    if (count == 0) {
      const std::int32_t at = internal::strided(c, k, static_cast<std::int32_t>(sample.size()));
      work.centroids.set(c, work.keys[sample[static_cast<std::size_t>(at)]], d);
      continue;
    }
    const float inverse = 1.0f / static_cast<float>(count);
    for (std::int32_t j = 0; j < d; ++j) sum[j] *= inverse;
    work.centroids.set(c, sum, d);
  }
}

// See the reference. The groups are appended to `order`, their sizes to `sizes`; empty ones are
// dropped.
void k_means(Workspace& work, std::span<const std::int32_t> tokens,
             std::span<const std::int32_t> sample, std::int32_t k, int iterations, Tokens& order,
             std::vector<std::int32_t>& sizes) {
  const auto total = static_cast<std::int32_t>(tokens.size());
  work.centroids.reset(k, work.keys.d);
  for (std::int32_t c = 0; c < k; ++c) {
    const auto at = static_cast<std::size_t>(internal::strided(c, k, total));
    work.centroids.set(c, work.keys[tokens[at]], work.keys.d);
  }
  if (k > 1) {
    for (int iteration = 0; iteration < iterations; ++iteration) improve(work, sample);
  }
  assign(work.keys, tokens, work.centroids, work.nearest);
  work.counts.assign(static_cast<std::size_t>(k), 0);
  for (const std::int32_t c : work.nearest) ++work.counts[static_cast<std::size_t>(c)];
  // A counting sort keeps tokens in their order.
  std::vector<std::size_t> at(static_cast<std::size_t>(k));
  std::size_t next = order.size();
  for (std::size_t c = 0; c < at.size(); ++c) {
    at[c] = next;
    next += static_cast<std::size_t>(work.counts[c]);
    if (work.counts[c] > 0) sizes.push_back(work.counts[c]);
  }
  order.resize(next);
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    order[at[static_cast<std::size_t>(work.nearest[i])]++] = tokens[i];
  }
}

// x·x of d numbers.
HWY_INLINE float squared_norm(const float* x, std::int32_t dim) {
  const FloatTag d;
  FloatVec sum = hn::Zero(d);
  for (std::int32_t j = 0; j < dim; j += kLanes) {
    const FloatVec v = hn::LoadU(d, x + j);
    sum = hn::MulAdd(v, v, sum);
  }
  return sum_lanes(d, sum);
}

// Tokens [begin, end) of an order, on their way to becoming a cluster.
struct Group {
  std::int32_t begin = 0;
  std::int32_t end = 0;
  bool too_large = false;
  float spread = 0;           // Σ ‖k - mean‖²
  std::int32_t farthest = 0;  // from the mean: where in the order

  std::int32_t size() const { return end - begin; }
  // For a heap: the loosest on top, of equals the first.
  bool operator<(const Group& other) const {
    if (too_large != other.too_large) return other.too_large;
    return spread != other.spread ? spread < other.spread : begin > other.begin;
  }
};

// See split_loosest() of the reference. Works in place on `order`.
class Splitter {
 public:
  Splitter(const Keys& keys, std::span<std::int32_t> order)
      : keys_(keys),
        order_(order),
        sum_(static_cast<std::size_t>(keys.d)),
        part_sum_(static_cast<std::size_t>(keys.d)),
        mean_(static_cast<std::size_t>(keys.d)),
        other_(static_cast<std::size_t>(keys.d)),
        in_second_(order.size()),
        moved_(order.size()) {}

  void add(std::int32_t begin, std::int32_t end) { groups_.push_back(measure(begin, end)); }

  // The sizes of the clusters, in order.
  void run(std::int32_t wanted, std::vector<std::uint16_t>& sizes) {
    std::make_heap(groups_.begin(), groups_.end());
    for (;;) {
      const Group loosest = groups_.front();
      const bool enough = std::ssize(groups_) >= wanted || loosest.spread == 0;
      if (enough && !loosest.too_large) break;
      std::pop_heap(groups_.begin(), groups_.end());
      groups_.pop_back();
      const std::int32_t middle = split(loosest);
      for (const Group& part : {measure(loosest.begin, middle), measure(middle, loosest.end)}) {
        groups_.push_back(part);
        std::push_heap(groups_.begin(), groups_.end());
      }
    }
    std::sort(groups_.begin(), groups_.end(),
              [](const Group& a, const Group& b) { return a.begin < b.begin; });
    for (const Group& group : groups_) sizes.push_back(static_cast<std::uint16_t>(group.size()));
  }

 private:
  const float* key(std::int32_t at) const { return keys_[order_[static_cast<std::size_t>(at)]]; }

  // f(i, Σ_j of what `term` adds) for the keys of places [begin, end), kLanes keys at a time:
  // term(sum, lanes of the key from j on, j) gives the sum with what these lanes add.
  template <class Term, class F>
  HWY_INLINE void for_each_sum(std::int32_t begin, std::int32_t end, const Term& term, F&& f) {
    const FloatTag d;
    HWY_ALIGN float lanes[kLanes * kLanes] = {};
    HWY_ALIGN float sums[kLanes];
    for (std::int32_t first = begin; first < end; first += kLanes) {
      const std::int32_t count = std::min(kLanes, end - first);
      for (std::int32_t i = 0; i < count; ++i) {
        const float* at = key(first + i);
        FloatVec sum = hn::Zero(d);
        for (std::int32_t j = 0; j < keys_.d; j += kLanes) sum = term(sum, hn::LoadU(d, at + j), j);
        hn::Store(sum, d, lanes + i * kLanes);
      }
      FloatVec v[kLanes];
      for (int i = 0; i < kLanes; ++i) v[i] = hn::Load(d, lanes + i * kLanes);
      hn::Store(sum_each(d, v), d, sums);
      for (std::int32_t i = 0; i < count; ++i) f(first + i, sums[i]);
    }
  }

  // f(i, ‖key - x‖²) for the keys of places [begin, end).
  template <class F>
  HWY_INLINE void for_each_distance(std::int32_t begin, std::int32_t end, const float* x, F&& f) {
    const FloatTag d;
    const auto squares = [&](FloatVec sum, FloatVec key, std::int32_t j) HWY_ATTR {
      const FloatVec difference = hn::Sub(key, hn::LoadU(d, x + j));
      return hn::MulAdd(difference, difference, sum);
    };
    for_each_sum(begin, end, squares, f);
  }

  // Σ of the keys of some tokens, in their order. Every key goes through the registers once: sums
  // of one vector after the other would wait for themselves.
  HWY_INLINE void sum_keys(std::span<const std::int32_t> tokens, Floats& out) {
    std::int32_t j = 0;
    for (; j + 8 * kLanes <= keys_.d; j += 8 * kLanes) sum_vecs<8>(tokens, j, out);
    for (; j + 4 * kLanes <= keys_.d; j += 4 * kLanes) sum_vecs<4>(tokens, j, out);
    for (; j < keys_.d; j += kLanes) sum_vecs<1>(tokens, j, out);
  }
  template <int kVecs>
  HWY_INLINE void sum_vecs(std::span<const std::int32_t> tokens, std::int32_t j, Floats& out) {
    const FloatTag d;
    FloatVec sum[kVecs];
    for (FloatVec& v : sum) v = hn::Zero(d);
    for (const std::int32_t token : tokens) {
      const float* at = keys_[token] + j;
      for (int v = 0; v < kVecs; ++v) sum[v] = hn::Add(sum[v], hn::LoadU(d, at + v * kLanes));
    }
    for (int v = 0; v < kVecs; ++v) hn::StoreU(sum[v], d, out.data() + j + v * kLanes);
  }
  std::span<const std::int32_t> tokens(std::int32_t begin, std::int32_t end) const {
    return order_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  }

  Group measure(std::int32_t begin, std::int32_t end) {
    sum_keys(tokens(begin, end), sum_);
    const float inverse = 1.0f / static_cast<float>(end - begin);
    for (std::size_t j = 0; j < mean_.size(); ++j) mean_[j] = sum_[j] * inverse;
    Group group{.begin = begin,
                .end = end,
                .too_large = end - begin > kMaxClusterTokens,
                .farthest = begin};
    float largest = 0;
    for_each_distance(begin, end, mean_.data(), [&](std::int32_t i, float distance) {
      group.spread += distance;
      if (distance > largest) {
        largest = distance;
        group.farthest = i;
      }
    });
    // Keys so large that their squares overflow are the loosest there are.
    if (!(group.spread < kLargest)) group.spread = kLargest;
    return group;
  }

  // Where the second part begins.
  std::int32_t split(const Group& group) {
    const float* first = key(group.farthest);
    std::int32_t second = group.begin;
    float largest = 0;
    sum_keys(tokens(group.begin, group.end), sum_);
    for_each_distance(group.begin, group.end, first, [&](std::int32_t i, float distance) {
      if (distance > largest) {
        largest = distance;
        second = i;
      }
    });
    std::copy_n(first, keys_.d, mean_.begin());
    std::copy_n(key(second), keys_.d, other_.begin());
    for (int iteration = 0;; ++iteration) {
      const std::int32_t count = assign_halves(group);
      if (count == 0 || count == group.size()) return group.begin + group.size() / 2;
      if (iteration == internal::kSplitIterations) return move_halves(group, count);
      const float of_second = 1.0f / static_cast<float>(count);
      const float of_first = 1.0f / static_cast<float>(group.size() - count);
      for (std::size_t j = 0; j < mean_.size(); ++j) {
        mean_[j] = (sum_[j] - part_sum_[j]) * of_first;
        other_[j] = part_sum_[j] * of_second;
      }
    }
  }

  // Marks the tokens that are closer to other_ than to mean_ and adds them up in part_sum_; returns
  // how many there are. One product with the difference of the two decides.
  std::int32_t assign_halves(const Group& group) {
    const FloatTag d;
    const float limit =
        (squared_norm(other_.data(), keys_.d) - squared_norm(mean_.data(), keys_.d)) * 0.5f;
    for (std::size_t j = 0; j < mean_.size(); ++j) other_[j] -= mean_[j];
    const auto products = [&](FloatVec sum, FloatVec key, std::int32_t j) HWY_ATTR {
      return hn::MulAdd(key, hn::LoadU(d, other_.data() + j), sum);
    };
    std::size_t count = 0;
    for_each_sum(group.begin, group.end, products, [&](std::int32_t i, float product) {
      const bool second = product > limit;
      in_second_[static_cast<std::size_t>(i)] = second;
      moved_[count] = order_[static_cast<std::size_t>(i)];
      count += second ? 1 : 0;
    });
    sum_keys({moved_.data(), count}, part_sum_);
    return static_cast<std::int32_t>(count);
  }

  // Moves the `count` marked tokens, which are in moved_, behind the others; both keep their order.
  std::int32_t move_halves(const Group& group, std::int32_t count) {
    std::int32_t kept = group.begin;
    for (std::int32_t i = group.begin; i < group.end; ++i) {
      order_[static_cast<std::size_t>(kept)] = order_[static_cast<std::size_t>(i)];
      kept += in_second_[static_cast<std::size_t>(i)] == 0 ? 1 : 0;
    }
    std::copy_n(moved_.begin(), count, order_.begin() + kept);
    return kept;
  }

  static constexpr float kLargest = 3e38f;

  const Keys& keys_;
  std::span<std::int32_t> order_;
  std::vector<Group> groups_;
  Floats sum_, part_sum_, mean_, other_;
  std::vector<std::uint8_t> in_second_;  // by place in the order
  Tokens moved_;                         // the marked ones
};

void partition_run(Workspace& work, std::int32_t begin, std::int32_t end, std::int32_t segment_rows,
                   Partition& out) {
  Tokens tokens(static_cast<std::size_t>(end - begin));
  std::iota(tokens.begin(), tokens.end(), begin);
  const std::int32_t list_count = internal::planned_lists(end - begin, segment_rows);
  const std::int32_t sample_count = std::min(end - begin, list_count * internal::kSamplePerList);
  Tokens sample;
  for (std::int32_t i = 0; i < sample_count; ++i) {
    sample.push_back(begin + internal::strided(i, sample_count, end - begin));
  }
  Tokens order;
  std::vector<std::int32_t> list_sizes;
  k_means(work, tokens, sample, list_count, internal::kListIterations, order, list_sizes);
  Splitter splitter(work.keys, order);
  std::int32_t next = 0;
  for (const std::int32_t rows : list_sizes) {
    out.list_rows.push_back(static_cast<std::uint16_t>(rows));
    splitter.add(next, next + rows);
    next += rows;
  }
  splitter.run(internal::planned_clusters(end - begin), out.cluster_rows);
  for (const std::int32_t token : order) out.order.push_back(static_cast<std::uint16_t>(token));
}

// Whether `count` values are below the limit of their magnitude; a multiple of 16 of them.
bool all_below_limit(const Bf16* values, std::int32_t count) {
  const hn::ScalableTag<std::uint16_t> d;
  const auto exponent = hn::Set(d, internal::kExponentBits);
  auto largest = hn::Zero(d);
  std::int32_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    largest = hn::Max(largest, hn::And(hn::LoadU(d, values + i), exponent));
  }
  bool below = hn::AllTrue(d, hn::Lt(largest, hn::Set(d, internal::kMagnitudeLimitBits)));
  for (; i < count; ++i) {
    below &= (values[i] & internal::kExponentBits) < internal::kMagnitudeLimitBits;
  }
  return below;
}

Status load_keys(const PartitionArgs& args, Keys& keys) {
  const FloatTag d;
  for (std::int32_t i = 0; i < args.row_count; ++i) {
    const Bf16* row = args.rows + static_cast<std::int64_t>(i) * (args.d_k + args.d_v);
    if (!all_below_limit(row, args.d_k + args.d_v)) return internal::bad_value(i);
    float* key = keys[i];
    for (std::int32_t j = 0; j < args.d_k; j += kLanes) {
      hn::StoreU(load_bf16(d, row + j), d, key + j);
    }
  }
  return Status();
}

}  // namespace

Status partition_target(const PartitionArgs& args, Partition& out) {
  ICE_TRY(internal::validate(args));
  Workspace work(args);
  ICE_TRY(load_keys(args, work.keys));
  out = {};
  out.order.resize(static_cast<std::size_t>(args.first_indexed_row));
  std::iota(out.order.begin(), out.order.end(), static_cast<std::uint16_t>(0));
  const std::int32_t last_extent = args.row_count - kExtentRows;
  if (last_extent > args.first_indexed_row) {
    partition_run(work, args.first_indexed_row, last_extent, args.row_count, out);
  }
  partition_run(work, std::max(last_extent, args.first_indexed_row), args.row_count, args.row_count,
                out);
  return Status();
}

}  // namespace HWY_NAMESPACE
}  // namespace icefield
HWY_AFTER_NAMESPACE();
#endif  // HWY_TARGET

#if HWY_ONCE
namespace icefield {

HWY_EXPORT(partition_target);

Status partition_cpu(const PartitionArgs& args, Partition& out) {
  return HWY_DYNAMIC_DISPATCH(partition_target)(args, out);
}

}  // namespace icefield
#endif
