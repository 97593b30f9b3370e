#include "tools/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <thread>

#include "hwy/targets.h"
#include "kernels/simd_target.h"

namespace icefield {
namespace {

using Json = nlohmann::ordered_json;

// Columns a text takes: its code points, as all of ours are one column wide.
std::size_t width_of(const std::string& text) {
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

bool is_number(const std::string& text) {
  return text.empty() || text == "–" || std::isdigit(static_cast<unsigned char>(text[0])) != 0 ||
         (text[0] == '-' && text.size() > 1);
}

}  // namespace

std::string Report::json(const Json& extra) const {
  Json out;
  out["command"] = command_;
  out["machine"] = machine_name();
  out["figures"] = Json::array();
  for (const Figure& figure : figures_) {
    Json entry;
    entry["name"] = figure.name;
    entry["params"] = figure.params;
    entry["value"] = std::isfinite(figure.value) ? Json(figure.value) : Json(nullptr);
    entry["unit"] = figure.unit;
    if (!figure.against.empty()) {
      entry["against"] = figure.against;
      entry["ratio"] = figure.ratio;
      entry["better"] = figure.better;
    }
    out["figures"].push_back(std::move(entry));
  }
  if (extra.is_object()) out.update(extra);
  // Answers of a model need not be whole characters.
  return out.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string machine_name() {
  std::string model = "unknown processor";
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.starts_with("model name")) {
      model = line.substr(std::min(line.find(": ") + 2, line.size()));
      break;
    }
  }
  const std::int64_t targets = hwy::SupportedTargets();
  const char* vectors = (targets & HWY_AVX3) != 0   ? "AVX-512"
                        : (targets & HWY_AVX2) != 0 ? "AVX2"
                        : (targets & HWY_NEON) != 0 ? "NEON"
                                                    : "no vector kernels";
  const char* tiles = tiles_usable() ? " and AMX" : "";
  return model + ", " + std::to_string(std::thread::hardware_concurrency()) + " cores, " + vectors +
         tiles;
}

std::string Table::text() const {
  std::vector<std::size_t> widths;
  std::vector<bool> right;  // a column of numbers
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    right.resize(widths.size(), true);
    for (std::size_t c = 0; c < row.size(); ++c) {
      widths[c] = std::max(widths[c], width_of(row[c]));
      if (&row != &rows_.front() && !is_number(row[c])) right[c] = false;
    }
  }
  std::string out;
  for (std::size_t r = 0; r < rows_.size(); ++r) {
    std::string line;
    for (std::size_t c = 0; c < rows_[r].size(); ++c) {
      const std::string padding(widths[c] - width_of(rows_[r][c]), ' ');
      line += (c == 0 ? "" : "  ") + (right[c] ? padding + rows_[r][c] : rows_[r][c] + padding);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
    if (r > 0) continue;
    for (std::size_t c = 0; c < widths.size(); ++c) {
      if (c > 0) out += "  ";
      for (std::size_t i = 0; i < widths[c]; ++i) out += "─";
    }
    out += "\n";
  }
  return out;
}

double quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto at = static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1));
  std::ranges::nth_element(values, values.begin() + at);
  return values[static_cast<std::size_t>(at)];
}

double deviation(const std::vector<double>& values) {
  const double median = quantile(values, 0.5);
  std::vector<double> distances;
  for (const double value : values) distances.push_back(std::fabs(value - median));
  return quantile(std::move(distances), 0.5);
}

std::string bytes_text(double bytes) {
  static constexpr std::array<const char*, 5> kUnits = {"B", "kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < kUnits.size()) {
    bytes /= 1000;
    ++unit;
  }
  return number_text(bytes, unit == 0 || bytes >= 100 ? 0 : 1) + " " + kUnits[unit];
}

std::string percent_text(double share) { return number_text(share * 100, 1) + " %"; }

std::string number_text(double value, int digits) {
  std::array<char, 64> text;
  std::snprintf(text.data(), text.size(), "%.*f", digits, value);
  return text.data();
}

}  // namespace icefield
