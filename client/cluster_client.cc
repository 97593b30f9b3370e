#include "client/cluster_client.h"

namespace icefield {

Result<std::unique_ptr<ClusterClient>> ClusterClient::open(Options options) {
  ICE_TRY(std::vector<Member> members, parse_members(options.members));
  std::vector<Address> addresses;
  for (const Member& member : members) addresses.push_back(member.name);
  if (options.transport.network.empty()) options.transport.network = network_for(addresses);
  auto shard = std::make_unique<Shard>();
  ICE_TRY(auto transport, UcxTransport::create(shard->executor(), options.transport));
  return std::unique_ptr<ClusterClient>(new ClusterClient(std::move(shard), std::move(transport),
                                                          std::move(members), options.values));
}

ClusterClient::ClusterClient(std::unique_ptr<Shard> shard, std::unique_ptr<UcxTransport> transport,
                             std::vector<Member> members, ValueStore::Options values)
    : shard_(std::move(shard)),
      transport_(std::move(transport)),
      nodes_(*transport_, std::move(members)),
      contexts_(nodes_),
      values_(clock_, rng_, nodes_, values) {}

ClusterClient::~ClusterClient() {
  (void)sync_wait(executor(), transport_->shutdown());
  shard_->stop();
}

}  // namespace icefield
