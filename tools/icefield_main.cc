// icefield — one command with verbs: `icefield VERB …` runs the program icefield-VERB beside it,
// `icefield bench WHAT …` the program icefield-bench-WHAT.
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

namespace {

struct Verb {
  const char* name;
  const char* what;
};
constexpr Verb kVerbs[] = {
    {"demo", "the main job on a real model, as one table"},
    {"run", "answer questions about a document"},
    {"eval", "measure clustered against full attention on a text"},
    {"inspect", "show what a store holds"},
    {"node", "keep objects for clients: the cache-node daemon"},
    {"metrics", "list the metrics that a node serves"},
    {"doctor", "explain what this machine offers and what holds it back"},
    {"put", "store a value"},
    {"get", "read a value"},
    {"stat", "what the nodes of a cluster hold"},
    {"ping", "which members answer, and how fast"},
    {"bench index", "the index beside exact scans, pages and flat clusters"},
    {"bench attention", "the kernels of a step beside what the machine can do"},
    {"bench store", "values beside Redis, memcached and memcpy"},
    {"bench trace", "hit rates of the eviction policies on a trace"},
    {"bench nvme", "the NVMe tier beside fio"},
    {"bench integrity", "flipped bits in memory: every one detected"},
    {"bench faults", "how punctual calls are while a node is frozen"},
    {"bench transport", "bytes between two processes, beside ucx_perftest"},
    {"cluster", "several nodes on this machine, for trying and for tests"},
};

void print_usage(std::ostream& out) {
  out << "icefield — a KV-cache service with clustered paged attention\n\n"
         "usage: icefield VERB [--flag=value …]\n\n";
  for (const Verb& verb : kVerbs) {
    out << "  " << verb.name << std::string(17 - std::strlen(verb.name), ' ') << verb.what << "\n";
  }
  out << "\n`icefield VERB --help` shows a verb's flags and an example.\n";
}

}  // namespace

int main(int argc, char** argv) {
  std::string verb = argc > 1 ? argv[1] : "";
  int first_flag = 2;
  if (verb == "bench" && argc > 2 && argv[2][0] != '-') {
    verb += std::string("-") + argv[2];
    first_flag = 3;
  }
  if (verb.empty() || verb == "help" || verb == "--help" || verb == "-h") {
    print_usage(verb.empty() ? std::cerr : std::cout);
    return verb.empty() ? 2 : 0;
  }
  std::error_code error;
  const auto self = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::string program = (self.parent_path() / ("icefield-" + verb)).string();
  std::vector<char*> arguments = {const_cast<char*>(program.c_str())};
  arguments.insert(arguments.end(), argv + first_flag, argv + argc);
  arguments.push_back(nullptr);
  if (verb.find('/') == std::string::npos) execv(program.c_str(), arguments.data());
  std::cerr << "icefield: no verb \"" << verb << "\"\n\n";
  print_usage(std::cerr);
  return 2;
}
