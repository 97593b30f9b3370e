// tools/report.h — what a command measured: for people a table, for programs JSON.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace icefield {

// One measured number, in the form all commands share.
struct Figure {
  std::string name;
  nlohmann::ordered_json params = nlohmann::ordered_json::object();
  double value = 0;
  std::string unit;
  // Measured beside it, when something was: its name, ours ÷ its value, and which way is better.
  std::string against;
  double ratio = 0;
  std::string better;  // higher or lower
};

class Report {
 public:
  explicit Report(std::string command) : command_(std::move(command)) {}

  void add(Figure figure) { figures_.push_back(std::move(figure)); }
  const std::vector<Figure>& figures() const { return figures_; }

  // {"command", "machine", "figures": […]}, and what `extra` adds beside them.
  std::string json(const nlohmann::ordered_json& extra = {}) const;

 private:
  std::string command_;
  std::vector<Figure> figures_;
};

// "AMD EPYC, 2 cores, AVX-512".
std::string machine_name();

// Columns aligned: text to the left, numbers to the right; a rule under the header.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string text() const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

// The value that at least `share` of them do not exceed, to the nearest one below: 0.5 is the
// median. 0 of no values.
double quantile(std::vector<double> values, double share);

// The median distance from the median. 0 of no values.
double deviation(const std::vector<double>& values);

std::string bytes_text(double bytes);               // "37.2 MB"
std::string percent_text(double share);             // "22.5 %"
std::string number_text(double value, int digits);  // fixed, "0.0031"

}  // namespace icefield
