// cache_node/metrics_page.h — a node's metrics in Prometheus' text format.
#pragma once

#include <prometheus/metric_family.h>

#include <string>
#include <vector>

#include "common/metrics.h"

namespace icefield {

// Collects what components counted, as it stands now. Metrics of one name are one family, told
// apart by their labels.
//
// Threads  One; the counters it reads may be counting meanwhile.
class MetricsPage {
 public:
  using Labels = std::vector<prometheus::ClientMetric::Label>;

  void add(const Counter& counter, Labels labels = {});
  void add(const LatencyHistogram& histogram, Labels labels = {});
  // A value that goes up and down, in base units.
  void add_gauge(const std::string& name, const std::string& help, double value,
                 Labels labels = {});

  // Text format 0.0.4, families by name.
  std::string text() const;
  // A table of the families: name, type, labels, help.
  std::string markdown() const;

 private:
  prometheus::MetricFamily& family(const std::string& name, const std::string& help,
                                   prometheus::MetricType type);
  std::vector<prometheus::MetricFamily> sorted() const;

  std::vector<prometheus::MetricFamily> families_;
};

}  // namespace icefield
