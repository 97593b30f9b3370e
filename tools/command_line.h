// tools/command_line.h — what every verb does with its arguments, and how it ends.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "common/status.h"

namespace icefield {

// Parses flags (gflags) and handles --help: prints `usage` (what the verb does, an example) and the
// verb's own flags, then exits 0. An unknown flag or a leftover argument is an error with exit code
// 2. Log lines go to standard error, warnings and worse only unless --v or --logtostderr say more.
void parse_command_line(int argc, char** argv, const std::string& usage);

// From here on lines of the log from INFO on are printed: what a daemon lives through, once it
// serves. Before, one sentence says why it does not.
void show_log();

// Prints "icefield VERB: <status>" to standard error. The exit code: 2 for what the caller must
// change (arguments, input), 1 for everything else.
int fail(const Status& status);

// Prints "icefield VERB: note: <text>" to standard error: what is missing in what follows, and why.
void note(const std::string& text);

// "a,b" between commas; one empty part of an empty text.
std::vector<std::string> split_list(const std::string& text);

// kInvalidArgument, naming the flag and what it may be, unless least <= value <= most.
Status check_range(const std::string& flag, std::int64_t value, std::int64_t least,
                   std::int64_t most = std::numeric_limits<std::int32_t>::max());

// "64,256,all": numbers from `least` to 2^31 - 1, or all (→ -1). kInvalidArgument names the flag.
Result<std::vector<std::int64_t>> parse_numbers(const std::string& flag, const std::string& text,
                                                std::int64_t least);
Result<std::int64_t> parse_number(const std::string& flag, const std::string& text,
                                  std::int64_t least);
constexpr std::int64_t kAllNumber = -1;
// "16,all,rule" of a flag --breadth: numbers from 1, kAllClusters, kRuleBreadth. kInvalidArgument.
Result<std::vector<std::int32_t>> parse_breadths(const std::string& text);
// One of them as it is typed.
std::string breadth_text(std::int32_t breadth);
// The inverse: "64" or "all".
std::string number_text(std::int64_t value);

// The whole file. kInvalidArgument when it cannot be read.
Result<std::string> read_file(const std::string& path);

// The default model and text, found from the place of the running program: the project's models/.
std::string default_model_path();
std::string default_text_path();

}  // namespace icefield
