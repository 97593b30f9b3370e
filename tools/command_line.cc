#include "tools/command_line.h"

#include <gflags/gflags.h>
#include <glog/logging.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>

#include "kernels/head_index.h"

namespace icefield {
namespace {

std::string verb_name = "?";  // of this process, set once in parse_command_line()

// The flags that the verb's own main file defines.
void print_flags() {
  std::vector<gflags::CommandLineFlagInfo> flags;
  gflags::GetAllFlags(&flags);
  std::erase_if(flags, [](const gflags::CommandLineFlagInfo& flag) {
    return !flag.filename.ends_with("_main.cc");
  });
  std::size_t width = 0;
  for (const auto& flag : flags) width = std::max(width, flag.name.size());
  for (const auto& flag : flags) {
    std::string value = flag.default_value;
    if (value.empty()) value = flag.type == "string" ? "none" : "";
    std::cout << "  --" << flag.name << std::string(width + 2 - flag.name.size(), ' ')
              << flag.description << " (default: " << value << ")\n";
  }
}

std::filesystem::path project_root() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  // build/<preset>/bin/<program>
  return error ? std::filesystem::path(".")
               : program.parent_path().parent_path().parent_path().parent_path();
}

}  // namespace

void parse_command_line(int argc, char** argv, const std::string& usage) {
  verb_name = std::filesystem::path(argv[0]).filename().string();
  std::replace(verb_name.begin(), verb_name.end(), '-', ' ');
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help" || argument == "-h" || argument == "-help") {
      std::cout << usage << "\nFlags:\n";
      print_flags();
      std::exit(0);
    }
  }
  FLAGS_stderrthreshold = google::WARNING;
  FLAGS_logtostderr = false;
  gflags::ParseCommandLineFlags(&argc, &argv, true);
  google::InitGoogleLogging(argv[0]);
  for (int severity = 0; severity < google::NUM_SEVERITIES; ++severity) {
    google::SetLogDestination(severity, "");  // no files
  }
  if (argc > 1) {
    std::fprintf(stderr, "%s: unexpected argument \"%s\"; flags are --name=value, see --help\n",
                 verb_name.c_str(), argv[1]);
    std::exit(2);
  }
}

void show_log() { FLAGS_stderrthreshold = google::INFO; }

int fail(const Status& status) {
  std::fprintf(stderr, "%s: %s\n", verb_name.c_str(), status.to_string().c_str());
  switch (status.code()) {
    case Code::kInvalidArgument:
    case Code::kUnimplemented:
    case Code::kFailedPrecondition: return 2;
    default: return 1;
  }
}

void note(const std::string& text) {
  std::fprintf(stderr, "%s: note: %s\n", verb_name.c_str(), text.c_str());
}

std::vector<std::string> split_list(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    const std::size_t end = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

Status check_range(const std::string& flag, std::int64_t value, std::int64_t least,
                   std::int64_t most) {
  if (value >= least && value <= most) return Status();
  return Status(Code::kInvalidArgument, "--" + flag + "=" + std::to_string(value) + ": expected " +
                                            std::to_string(least) + " to " + std::to_string(most));
}

Result<std::int64_t> parse_number(const std::string& flag, const std::string& text,
                                  std::int64_t least) {
  if (text == "all") return kAllNumber;
  std::int64_t value = 0;
  std::size_t used = 0;
  try {
    value = std::stoll(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  if (used == 0 || used != text.size() || value < least || value > kMost) {
    return Status(Code::kInvalidArgument, "--" + flag + "=" + text + ": expected a number from " +
                                              std::to_string(least) + " to " +
                                              std::to_string(kMost) + ", or all");
  }
  return value;
}

Result<std::vector<std::int64_t>> parse_numbers(const std::string& flag, const std::string& text,
                                                std::int64_t least) {
  std::vector<std::int64_t> values;
  for (const std::string& part : split_list(text)) {
    if (part.empty()) {
      return Status(Code::kInvalidArgument,
                    "--" + flag + ": \"" + text + "\" has nothing where a number should stand");
    }
    ICE_TRY(values.emplace_back(), parse_number(flag, part, least));
  }
  return values;
}

Result<std::vector<std::int32_t>> parse_breadths(const std::string& text) {
  std::vector<std::int32_t> breadths;
  for (const std::string& part : split_list(text)) {
    if (part == "rule") {
      breadths.push_back(kRuleBreadth);
      continue;
    }
    ICE_TRY(const std::int64_t number, parse_number("breadth", part, 1));
    breadths.push_back(number == kAllNumber ? kAllClusters : static_cast<std::int32_t>(number));
  }
  return breadths;
}

std::string breadth_text(std::int32_t breadth) {
  if (breadth == kRuleBreadth) return "rule";
  return breadth == kAllClusters ? "all" : std::to_string(breadth);
}

std::string number_text(std::int64_t value) {
  return value == kAllNumber ? "all" : std::to_string(value);
}

Result<std::string> read_file(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return Status(Code::kInvalidArgument, "no file " + path);
  }
  std::ifstream in(path, std::ios::binary);
  std::string text((std::istreambuf_iterator<char>(in)), {});
  if (!in) return Status(Code::kInvalidArgument, "file " + path + " cannot be read");
  return text;
}

std::string default_model_path() {
  return (project_root() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf").string();
}

std::string default_text_path() {
  return (project_root() / "models" / "debian-handbook.txt").string();
}

}  // namespace icefield
