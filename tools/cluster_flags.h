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

}  // namespace icefield
