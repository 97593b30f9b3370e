#include "tests/support/tidy_rules.h"

#include <algorithm>
#include <filesystem>
#include <regex>
#include <sstream>

namespace icefield::tidy {
namespace {

constexpr int kMaxColumns = 100;
constexpr int kMaxFunctionLines = 70;

std::string module_of(const std::string& path) { return path.substr(0, path.find('/')); }
bool ends_with(const std::string& text, const std::string& end) { return text.ends_with(end); }
bool is_header(const std::string& path) { return ends_with(path, ".h"); }

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The line without string literals and without a comment at its end.
std::string code_of(const std::string& line) {
  std::string code;
  bool quoted = false;
  for (std::size_t i = 0; i < line.size(); ++i) {
    if (quoted && line[i] == '\\') {
      ++i;
    } else if (line[i] == '"' && (i == 0 || line[i - 1] != '\'')) {
      quoted = !quoted;
      code += '"';
    } else if (!quoted && line.compare(i, 2, "//") == 0) {
      break;
    } else if (!quoted) {
      code += line[i];
    }
  }
  return code;
}

struct Pattern {
  std::regex regex;
  bool (*applies)(const std::string& path);
  std::string message;
};

bool everywhere(const std::string&) { return true; }
bool in_any(const std::string& path, std::initializer_list<const char*> prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&path](const char* prefix) { return path.starts_with(prefix); });
}

const std::vector<Pattern>& code_patterns() {
  static const std::vector<Pattern> patterns = {
      {std::regex(R"(\bgetenv\()"), everywhere,
       "getenv; settings are flags of a main and Options of a library"},
      {std::regex(R"(\b(sleep|usleep|nanosleep|sleep_for)\()"), everywhere,
       "a blocking sleep; wait with Clock::sleep_until() and a deadline"},
      {std::regex(R"(\bstd::(cout|printf)\b)"),
       [](const std::string& path) {
         return !in_any(path, {"tools/", "bench/", "tests/"});
       },
       "prints; only tools and benchmarks have an output"},
      {std::regex(R"(\bcatch \(\.\.\.\))"),
       [](const std::string& path) { return !in_any(path, {"bindings/"}); },
       "catch (...); exceptions stop at the bindings only"},
      {std::regex(R"(^\s*using namespace )"), is_header,
       "using namespace in a header; it leaks into every includer"},
      {std::regex("\\bTO"
                  "DO\\b(?!: \\S)"),
       everywhere, "to-do that does not say what; write it after a colon"},
  };
  return patterns;
}

struct IncludeRule {
  std::string prefix;  // of the included path
  bool (*allowed)(const std::string& path);
  std::string message;
};

const std::vector<IncludeRule>& include_rules() {
  static const std::vector<IncludeRule> rules = {
      {"rocksdb/",
       [](const std::string& path) {
         return in_any(path, {"storage/", "bench/", "tests/unit/storage/"});
       },
       "RocksDB outside storage/; use a Tier"},
      {"glog/", [](const std::string& path) { return !is_header(path); },
       "glog in a header; log in the .cc"},
      {"gflags/",
       [](const std::string& path) {
         return ends_with(path, "_main.cc") || path == "tools/command_line.cc";
       },
       "gflags outside a *_main.cc; take an Options struct"},
      {"ucp/", [](const std::string& path) { return in_any(path, {"transport/ucx/"}); },
       "UCX outside transport/ucx/; use a Transport"},
      {"cuda",
       [](const std::string& path) {
         return in_any(path, {"kernels/", "worker/"});
       },
       "CUDA outside kernels/ and worker/"},
      {"proto/icefield.pb.h", [](const std::string& path) { return in_any(path, {"cache_node/"}); },
       "Protobuf messages beyond server and stub; use the types of cache_node/messages.h"},
  };
  return rules;
}

class FileCheck {
 public:
  FileCheck(const Source& source, const std::map<std::string, int>& ranks)
      : source_(source), ranks_(ranks), lines_(lines_of(source.text)) {}

  Findings run() {
    check_frame();
    for (number_ = 1; number_ <= lines_.size(); ++number_) check_line(lines_[number_ - 1]);
    check_functions();
    return std::move(findings_);
  }

 private:
  void found(const std::string& what) {
    findings_.push_back(source_.path + ":" + std::to_string(number_) + ": " + what);
  }

  void check_frame() {
    number_ = 1;
    const bool once = is_header(source_.path) && !ends_with(source_.path, "-inl.h");
    if (once && source_.text.find("#pragma once\n") == std::string::npos) {
      found("no #pragma once; every header has it");
    }
    if (!source_.text.empty() && source_.text.back() != '\n') found("no newline at the end");
    if (!ends_with(source_.path, ".cc")) return;
    const std::string own = source_.path.substr(0, source_.path.size() - 2) + "h";
    const std::string include = "#include \"" + own + "\"";
    const std::size_t at = source_.text.find(include);
    // Highway's dynamic dispatch has its own order.
    const bool dispatched = source_.text.find("hwy/foreach_target.h") != std::string::npos;
    if (!dispatched && at != std::string::npos && at != source_.text.find("#include")) {
      found("its own header " + own + " is not the first include");
    }
  }

  void check_line(const std::string& line) {
    const auto columns = std::count_if(line.begin(), line.end(), [](char c) {
      return (static_cast<unsigned char>(c) & 0xc0) != 0x80;  // not a UTF-8 continuation
    });
    if (columns > kMaxColumns) found(std::to_string(columns) + " columns; 100 are enough");
    if (line.find('\t') != std::string::npos) found("a tab; two spaces");
    if (!line.empty() && (line.back() == ' ' || line.back() == '\r')) found("blank at the end");
    static const std::regex include_line(R"(^\s*#include [<"]([^>"]+)[>"])");
    std::smatch match;
    if (std::regex_search(line, match, include_line)) {
      check_include(match[1]);
      return;
    }
    const std::string code = code_of(line);
    for (const Pattern& pattern : code_patterns()) {
      const bool comment_rule = pattern.message.starts_with("to-do");
      if (pattern.applies(source_.path) &&
          std::regex_search(comment_rule ? line : code, pattern.regex)) {
        found(pattern.message);
      }
    }
  }

  void check_include(const std::string& path) {
    for (const IncludeRule& rule : include_rules()) {
      if (path.starts_with(rule.prefix) && !rule.allowed(source_.path)) found(rule.message);
    }
    const auto own = ranks_.find(module_of(source_.path));
    const auto other = ranks_.find(module_of(path));
    if (path.find('/') == std::string::npos || own == ranks_.end() || other == ranks_.end()) return;
    if (own->first != other->first && other->second >= own->second) {
      found(own->first + " includes " + path + "; only lower layers (cmake/layers.cmake)");
    }
  }

  // A function ends with a "}" alone on its line and starts at the last line before that is
  // indented like it.
  void check_functions() {
    for (const std::string indent : {"", "  "}) {
      for (std::size_t end = 0; end < lines_.size(); ++end) {
        if (lines_[end] != indent + "}") continue;
        std::size_t start = end;
        while (start > 0 && !starts_statement(lines_[start - 1], indent)) --start;
        number_ = start;
        const std::size_t length = end - start + 2;
        if (length > kMaxFunctionLines) {
          found("a function of " + std::to_string(length) + " lines; one screen, at most 70");
        }
      }
    }
  }

  static bool starts_statement(const std::string& line, const std::string& indent) {
    return line.size() > indent.size() && line.starts_with(indent) && line[indent.size()] != ' ' &&
           line[indent.size()] != '#';
  }

  const Source& source_;
  const std::map<std::string, int>& ranks_;
  const std::vector<std::string> lines_;
  std::size_t number_ = 0;
  Findings findings_;
};

}  // namespace

std::map<std::string, int> parse_layers(const std::string& layers_cmake) {
  std::map<std::string, int> ranks;
  const std::size_t begin = layers_cmake.find("set(ICEFIELD_LAYERS");
  const std::size_t end = layers_cmake.find(')', begin);
  int rank = 0;
  for (const std::string& line : lines_of(layers_cmake.substr(begin, end - begin))) {
    const std::size_t open = line.find('"');
    if (open == std::string::npos) continue;
    std::istringstream names(line.substr(open + 1, line.rfind('"') - open - 1));
    for (std::string name; names >> name;) ranks[name] = rank;
    ++rank;
  }
  return ranks;
}

Findings check_file(const Source& source, const std::map<std::string, int>& ranks) {
  return FileCheck(source, ranks).run();
}

Findings check_orphans(const std::vector<Source>& sources,
                       const std::map<std::string, std::string>& cmake) {
  std::set<std::string> included;
  for (const Source& source : sources) {
    static const std::regex include_line("#include \"([^\"]+)\"");
    for (std::sregex_iterator at(source.text.begin(), source.text.end(), include_line), end;
         at != end; ++at) {
      included.insert((*at)[1]);
    }
  }
  Findings findings;
  for (const Source& source : sources) {
    const std::filesystem::path path(source.path);
    if (is_header(source.path)) {
      if (!included.contains(source.path)) {
        findings.push_back(source.path + ":1: nobody includes this header; delete it");
      }
      continue;
    }
    bool named = false;
    for (std::filesystem::path folder = path.parent_path(); !named && !folder.empty();
         folder = folder.parent_path()) {
      const auto found = cmake.find(folder.string());
      named = found != cmake.end() &&
              found->second.find(path.lexically_relative(folder).string()) != std::string::npos;
    }
    if (!named)
      findings.push_back(source.path + ":1: no CMakeLists.txt names it; delete or build it");
  }
  return findings;
}

}  // namespace icefield::tidy
