#include "client/cluster_client.h"

namespace icefield {

Result<std::unique_ptr<ClusterClient>> ClusterClient::open(const Options& options) {
  ICE_TRY(std::vector<Member> members, parse_members(options.members));
  return open(std::make_unique<StaticMembership>(std::move(members)), options);
}

Result<std::unique_ptr<ClusterClient>> ClusterClient::open(std::unique_ptr<Membership> membership,
                                                           Options options) {
  std::vector<Address> addresses;
  for (const Member& member : membership->current()->placement.members()) {
    addresses.push_back(member.name);
  }
  if (options.transport.network.empty()) options.transport.network = network_for(addresses);
  auto shard = std::make_unique<Shard>();
  ICE_TRY(auto transport, UcxTransport::create(shard->executor(), options.transport));
  return std::unique_ptr<ClusterClient>(
      new ClusterClient(std::move(shard), std::move(transport), std::move(membership), options));
}

ClusterClient::ClusterClient(std::unique_ptr<Shard> shard, std::unique_ptr<UcxTransport> transport,
                             std::unique_ptr<Membership> membership, const Options& options)
    : shard_(std::move(shard)),
      transport_(std::move(transport)),
      membership_(std::move(membership)),
      nodes_(clock_, *transport_, *membership_, options.breaker),
      contexts_(nodes_),
      values_(clock_, rng_, nodes_, options.values) {}

ClusterClient::~ClusterClient() {
  (void)sync_wait(executor(), transport_->shutdown());
  shard_->stop();
}

}  // namespace icefield
