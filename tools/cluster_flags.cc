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

}  // namespace icefield
