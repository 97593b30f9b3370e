// tools/cluster_flags.h — how the verbs that talk to nodes turn their flags into a client.
#pragma once

#include <string>

#include "client/cluster_client.h"

namespace icefield {

// The values of --cluster, --token_file (its first token is ours) and --lanes, each as given.
// kInvalidArgument or kNotFound names the flag that is wrong.
Result<ClusterClient::Options> cluster_options(const std::string& members,
                                               const std::string& token_file,
                                               const std::string& lanes);

// The same, and a client. Connections are made when something is asked.
Result<std::unique_ptr<ClusterClient>> open_cluster(const std::string& members,
                                                    const std::string& token_file,
                                                    const std::string& lanes);

// The value of --deadline_ms, from now on. kInvalidArgument unless it is at least 1.
Result<Deadline> deadline_from_now(std::int64_t deadline_ms);

}  // namespace icefield
