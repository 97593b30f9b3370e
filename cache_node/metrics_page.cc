#include "cache_node/metrics_page.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <sstream>

namespace icefield {
namespace {

const char* to_text(prometheus::MetricType type) {
  switch (type) {
    case prometheus::MetricType::Counter: return "counter";
    case prometheus::MetricType::Histogram: return "histogram";
    default: return "gauge";
  }
}

}  // namespace

prometheus::MetricFamily& MetricsPage::family(const std::string& name, const std::string& help,
                                              prometheus::MetricType type) {
  for (prometheus::MetricFamily& known : families_) {
    if (known.name == name) return known;
  }
  prometheus::MetricFamily made;
  made.name = name;
  made.help = help;
  made.type = type;
  return families_.emplace_back(std::move(made));
}

void MetricsPage::add(const Counter& counter, Labels labels) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.counter.value = static_cast<double>(counter.value());
  family(counter.name(), counter.help(), prometheus::MetricType::Counter)
      .metric.push_back(std::move(metric));
}

void MetricsPage::add(const LatencyHistogram& histogram, Labels labels) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  std::uint64_t total = 0;
  for (int bucket = 0; bucket < LatencyHistogram::kBucketCount; ++bucket) {
    total += static_cast<std::uint64_t>(histogram.count(bucket));
    metric.histogram.bucket.push_back(
        {.cumulative_count = total, .upper_bound = LatencyHistogram::bucket_seconds(bucket)});
  }
  total += static_cast<std::uint64_t>(histogram.count(LatencyHistogram::kBucketCount));
  metric.histogram.sample_count = total;
  metric.histogram.sample_sum = histogram.sum_seconds();
  family(histogram.name(), histogram.help(), prometheus::MetricType::Histogram)
      .metric.push_back(std::move(metric));
}

void MetricsPage::add_gauge(const std::string& name, const std::string& help, double value,
                            Labels labels) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  family(name, help, prometheus::MetricType::Gauge).metric.push_back(std::move(metric));
}

std::vector<prometheus::MetricFamily> MetricsPage::sorted() const {
  std::vector<prometheus::MetricFamily> families = families_;
  std::ranges::sort(families, {}, &prometheus::MetricFamily::name);
  return families;
}

std::string MetricsPage::text() const { return prometheus::TextSerializer().Serialize(sorted()); }

std::string MetricsPage::markdown() const {
  std::ostringstream out;
  out << "| metric | type | labels | what |\n|---|---|---|---|\n";
  for (const prometheus::MetricFamily& family : sorted()) {
    std::string labels;
    for (const auto& label : family.metric.front().label) {
      labels += (labels.empty() ? "" : ", ") + ("`" + label.name + "`");
    }
    out << "| `" << family.name << "` | " << to_text(family.type) << " | " << labels << " | "
        << family.help << " |\n";
  }
  return out.str();
}

}  // namespace icefield
