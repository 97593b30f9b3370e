#include "bench/support/synthetic_keys.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "bench/support/head_fixture.h"
#include "common/check.h"
#include "common/rng.h"

namespace icefield {
namespace {

constexpr std::array<const char*, 8> kNames = {"diffuse", "peaked", "flat",    "outliers",
                                               "needles", "drift",  "uniform", "recency"};
constexpr double kRopeBase = 500000;
constexpr std::array<int, 4> kOutlierPairs = {50, 55, 59, 62};  // of 64
constexpr float kOutlierMean = 8;
constexpr double kMeanRun = 12;
constexpr double kZipf = 0.8;
constexpr std::int32_t kTokensPerCluster = 50;
constexpr std::uint64_t kNeedleOneIn = 16;
constexpr float kNeedleValue = 8;

using Floats = std::vector<float>;

class Generator {
 public:
  explicit Generator(const SyntheticOptions& options)
      : options_(options),
        kind_(options.kind),
        rng_(options.seed),
        d_(options.head_dim),
        half_(d_ / 2),
        scale_(static_cast<std::size_t>(d_)),
        mean_(static_cast<std::size_t>(d_), 0.0f),
        clusters_(std::max(1, options.tokens / kTokensPerCluster)) {
    for (std::int32_t pair = 0; pair < half_; ++pair) {
      frequency_.push_back(std::pow(kRopeBase, -static_cast<double>(pair) / half_));
      const double at = 64.0 * pair / half_;  // the same place in the spectrum of 64 pairs
      const double s = at <= 31 ? 0.35 : at >= 48 ? 1.6 : 0.35 + (at - 31) / 17 * 1.25;
      for (const std::int32_t j : {pair, pair + half_}) {
        scale_[static_cast<std::size_t>(j)] = flat() ? 1.0f : static_cast<float>(s);
      }
    }
    for (std::size_t i = 0; i < kOutlierPairs.size() && !flat(); ++i) {
      const auto j = static_cast<std::size_t>(kOutlierPairs[i] * half_ / 64);
      mean_[j] = i % 2 == 0 ? kOutlierMean : -kOutlierMean;
    }
    centres_ = normals(clusters_ * d_);
    value_centres_ = normals(clusters_ * d_);
    double total = 0;
    for (std::int32_t c = 0; c < clusters_; ++c) {
      cumulative_.push_back(total += std::pow(c + 1.0, -kZipf));
    }
  }

  KeySet run() {
    KeySet set{.d_k = d_,
               .d_v = d_,
               .group = options_.group,
               .beta = 1 / std::sqrt(static_cast<float>(d_)),
               .first_indexed = 0,
               .end_indexed = options_.tokens};
    make_tokens(set);
    for (std::int32_t step = 0; step < options_.steps; ++step) make_step(step, set);
    return set;
  }

 private:
  bool flat() const { return kind_ == SyntheticKind::kFlat; }

  float kappa() const {
    if (kind_ == SyntheticKind::kPeaked) return 2.2f;
    return kind_ == SyntheticKind::kUniform ? 0.02f : 1.5f;
  }
  float key_noise() const { return kind_ == SyntheticKind::kNeedles ? 0.15f : 0.5f; }

  Floats normals(std::int64_t count) {
    Floats values(static_cast<std::size_t>(count));
    for (float& value : values) value = normal(rng_);
    return values;
  }

  // The cluster of a run that starts at `token`.
  std::int32_t draw_cluster(std::int32_t token) {
    const double at = rng_.unit() * cumulative_.back();
    const auto rank = static_cast<std::int32_t>(
        std::upper_bound(cumulative_.begin(), cumulative_.end(), at) - cumulative_.begin());
    if (kind_ != SyntheticKind::kDrift) return std::min(rank, clusters_ - 1);
    // A quarter of the topics is in use at a time.
    const std::int64_t start = static_cast<std::int64_t>(clusters_) * token / options_.tokens;
    return static_cast<std::int32_t>((start + rank / 4) % clusters_);
  }

  void make_tokens(KeySet& set) {
    set.rows.reserve(static_cast<std::size_t>(options_.tokens) * static_cast<std::size_t>(2 * d_));
    Floats key(static_cast<std::size_t>(d_));
    std::int32_t cluster = 0;
    for (std::int32_t i = 0; i < options_.tokens; ++i) {
      if (i == 0 || rng_.unit() < 1 / kMeanRun) cluster = draw_cluster(i);
      cluster_of_.push_back(cluster);
      const bool needle = kind_ == SyntheticKind::kNeedles && rng_.below(kNeedleOneIn) == 0;
      if (needle) needles_.push_back(i);
      const bool longer = kind_ == SyntheticKind::kOutliers && rng_.below(100) == 0;
      Floats content(key.size());
      for (std::size_t j = 0; j < key.size(); ++j) {
        const float centre = flat() ? 0.0f : centre_of(cluster)[j];
        const float noise = flat() ? 1.0f : key_noise();
        content[j] = (longer ? 4.0f : 1.0f) * (centre + noise * normal(rng_));
        key[j] = mean_[j] + scale_[j] * content[j];
      }
      if (needle) needle_content_.push_back(content);
      turn(i, key);
      for (const float x : key) set.rows.push_back(float_to_bf16(x));
      const float* value = value_centres_.data() + static_cast<std::int64_t>(cluster) * d_;
      for (std::int32_t j = 0; j < d_; ++j) {
        const float own = (needle ? kNeedleValue : 0.7f) * normal(rng_);
        set.rows.push_back(float_to_bf16(value[j] + own));
      }
    }
  }

  void make_step(std::int32_t step, KeySet& set) {
    const Floats shared_noise = normals(d_);
    const Floats shared_target = draw_target();
    for (std::int32_t h = 0; h < options_.group; ++h) {
      const Floats own_noise = normals(d_);
      const Floats own_target = draw_target();
      const Floats& target = h % 2 == 0 ? shared_target : own_target;
      Floats q(static_cast<std::size_t>(d_));
      for (std::size_t j = 0; j < q.size(); ++j) {
        const float noise = std::sqrt(0.5f) * (shared_noise[j] + own_noise[j]);
        q[j] = mean_[j] / kOutlierMean + kappa() * scale_[j] * (0.8f * target[j] + 0.6f * noise);
      }
      turn(options_.tokens + step, q);
      set.queries.insert(set.queries.end(), q.begin(), q.end());
    }
  }

  // What a query looks for: the centre of a random token's cluster, or the token itself.
  Floats draw_target() {
    if (kind_ == SyntheticKind::kNeedles && !needles_.empty()) {
      return needle_content_[rng_.below(needles_.size())];
    }
    if (flat()) return normals(d_);
    const auto tokens = static_cast<std::uint64_t>(options_.tokens);
    const std::uint64_t recent = kind_ == SyntheticKind::kRecency ? std::max(tokens / 64, 1ul) : 0;
    const std::uint64_t token = recent > 0 ? tokens - 1 - rng_.below(recent) : rng_.below(tokens);
    const float* centre = centre_of(cluster_of_[token]);
    return Floats(centre, centre + d_);
  }

  const float* centre_of(std::int32_t cluster) const {
    return centres_.data() + static_cast<std::int64_t>(cluster) * d_;
  }

  // Rotary position `position`, in place.
  void turn(std::int32_t position, Floats& x) const {
    if (flat()) return;
    for (std::int32_t pair = 0; pair < half_; ++pair) {
      const double angle = position * frequency_[static_cast<std::size_t>(pair)];
      const auto c = static_cast<float>(std::cos(angle));
      const auto s = static_cast<float>(std::sin(angle));
      float& a = x[static_cast<std::size_t>(pair)];
      float& b = x[static_cast<std::size_t>(pair + half_)];
      const float turned = a * c - b * s;
      b = a * s + b * c;
      a = turned;
    }
  }

  const SyntheticOptions options_;
  const SyntheticKind kind_;
  SeededRng rng_;
  const std::int32_t d_;
  const std::int32_t half_;
  std::vector<double> frequency_;  // [d/2] rotary, by pair
  Floats scale_;
  Floats mean_;
  const std::int32_t clusters_;
  Floats centres_;        // [clusters, d]
  Floats value_centres_;  // [clusters, d]
  std::vector<double> cumulative_;
  std::vector<std::int32_t> cluster_of_;  // by token
  std::vector<std::int32_t> needles_;
  std::vector<Floats> needle_content_;
};

}  // namespace

Result<SyntheticKind> parse_synthetic_kind(const std::string& name) {
  std::string all;
  for (std::size_t i = 0; i < kNames.size(); ++i) {
    if (name == kNames[i]) return static_cast<SyntheticKind>(i);
    all += (i == 0 ? "" : ", ") + std::string(kNames[i]);
  }
  return Status(Code::kInvalidArgument, "no synthetic keys \"" + name + "\": " + all);
}

KeySet synthetic_keys(const SyntheticOptions& options) {
  ICE_CHECK(options.tokens > 0 && options.head_dim > 0 && options.head_dim % 2 == 0);
  ICE_CHECK(options.group > 0 && options.steps > 0);
  return Generator(options).run();
}

}  // namespace icefield
