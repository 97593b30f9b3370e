#include "tools/cluster_flags.h"

#include "transport/caller.h"

namespace icefield {

Result<ClusterClient::Options> cluster_options(const std::string& members,
                                               const std::string& token_file,
                                               const std::string& lanes) {
  if (members.empty()) {
    return Status(Code::kInvalidArgument, "no nodes: give --cluster=host:port,host:port");
  }
  ClusterClient::Options options{.members = members};
  ICE_TRY(options.transport.lanes, parse_lanes(lanes));
  if (token_file.empty()) return options;
  ICE_TRY(const std::vector<TokenGrant> grants, read_token_file(token_file));
  if (grants.empty()) {
    return Status(Code::kInvalidArgument, "--token_file=" + token_file + " holds no token");
  }
  options.transport.token = grants.front().token;
  return options;
}

Result<std::unique_ptr<ClusterClient>> open_cluster(const std::string& members,
                                                    const std::string& token_file,
                                                    const std::string& lanes) {
  ICE_TRY(ClusterClient::Options options, cluster_options(members, token_file, lanes));
  return ClusterClient::open(std::move(options));
}

Result<Deadline> deadline_from_now(std::int64_t deadline_ms) {
  constexpr std::int64_t kYear = std::int64_t{365} * 24 * 3600 * 1000;
  if (deadline_ms < 1 || deadline_ms > kYear) {
    return Status(Code::kInvalidArgument, "--deadline_ms=" + std::to_string(deadline_ms) +
                                              ": expected 1 to " + std::to_string(kYear));
  }
  return Deadline::after(SystemClock(), std::chrono::milliseconds(deadline_ms));
}

}  // namespace icefield
