#include "common/fingerprint.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <map>

namespace icefield {
namespace {

std::string float_text(double value) {
  std::array<char, 17> text;
  std::snprintf(text.data(), text.size(), "%016llx",
                static_cast<unsigned long long>(std::bit_cast<std::uint64_t>(value)));
  return text.data();
}

std::string layer_prefix(std::size_t layer_index) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), "layer.%04zu.", layer_index);
  return text.data();
}

// The fields of a canonical text by name.
std::map<std::string_view, std::string_view> fields_of(std::string_view text) {
  std::map<std::string_view, std::string_view> fields;
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(line.size() + 1, text.size()));
    const std::size_t equals = std::min(line.find('='), line.size());
    fields[line.substr(0, equals)] = line.substr(std::min(equals + 1, line.size()));
  }
  return fields;
}

}  // namespace

std::string ModelFingerprint::text() const {
  std::vector<std::string> lines = {
      "codec=" + codec,
      "compute_dtype=" + compute_dtype,
      "kv_dtype=" + kv_dtype,
      "layer_count=" + std::to_string(layers.size()),
      "layout_version=" + std::to_string(layout_version),
      "model_name=" + model_name,
      "sink_tokens=" + std::to_string(sink_tokens),
      "weight_revision=" + weight_revision,
  };
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const LayerFingerprint& layer = layers[i];
    const std::string prefix = layer_prefix(i);
    std::string factors;
    for (const double factor : layer.rope_factors) {
      factors += (factors.empty() ? "" : ",") + float_text(factor);
    }
    lines.push_back(prefix + "d_k=" + std::to_string(layer.d_k));
    lines.push_back(prefix + "d_v=" + std::to_string(layer.d_v));
    lines.push_back(prefix + "kind=" + layer.kind);
    lines.push_back(prefix + "kv_heads=" + std::to_string(layer.kv_heads));
    lines.push_back(prefix + "rope_base=" + float_text(layer.rope_base));
    lines.push_back(prefix + "rope_factors=" + factors);
    lines.push_back(prefix + "rope_scaling=" + layer.rope_scaling);
    lines.push_back(prefix + "sink_logits=" + layer.sink_logits);
    lines.push_back(prefix + "softcap=" + float_text(layer.softcap));
    lines.push_back(prefix + "softmax_scale=" + float_text(layer.softmax_scale));
  }
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (std::string& line : lines) {
    std::replace(line.begin(), line.end(), '\n', ' ');  // a field is one line, whatever it holds
    text += line + "\n";
  }
  return text;
}

FingerprintHash fingerprint_hash(std::string_view text) {
  FingerprintHash hash;
  hash.bytes = hash_fields({as_bytes(text)}).bytes;
  return hash;
}

std::string first_difference(std::string_view theirs, std::string_view ours) {
  const auto a = fields_of(theirs);
  const auto b = fields_of(ours);
  // What concerns the whole model says more than the layer that differs because of it.
  for (const bool layers : {false, true}) {
    for (const auto& [name, value] : a) {
      const auto other = b.find(name);
      if (name.starts_with("layer.") != layers) continue;
      if (other == b.end()) return std::string(name) + " is missing here";
      if (other->second != value) {
        return std::string(name) + " is " + std::string(value) + ", here " +
               std::string(other->second);
      }
    }
  }
  for (const auto& [name, value] : b) {
    if (!a.contains(name)) return std::string(name) + " is missing";
  }
  return "";
}

}  // namespace icefield
