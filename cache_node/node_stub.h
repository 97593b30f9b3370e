// cache_node/node_stub.h — a cache node as its clients see it: typed calls over a transport.
#pragma once

#include "cache_node/messages.h"
#include "transport/transport.h"

namespace icefield {

// Errors   Those of the transport, and kInternal when the node answers something impossible. What
//          goes wrong with an item is that item's status.
// Threads  Any executor; calls may run side by side.
class NodeStub {
 public:
  NodeStub(Transport& transport, Address node) : transport_(transport), node_(std::move(node)) {}

  const Address& address() const { return node_; }

  // The objects together must be at most kMaxRequestBytes. One status per object.
  Task<std::vector<Status>> put(std::vector<PutObject> objects, std::string name_space,
                                Deadline deadline);
  // `capacity` bytes must hold all objects that are found.
  Task<GetReply> get(std::vector<ObjectKey> keys, std::int64_t capacity, Deadline deadline);
  Task<std::vector<Status>> remove(std::vector<ObjectKey> keys, Deadline deadline);
  Task<MatchReply> match(MatchQuery query, Deadline deadline);
  Task<PageReply> read_pages(PageRequest request, Deadline deadline);
  // Empty: of all namespaces.
  Task<ListBuildsReply> list_builds(std::string name_space, Deadline deadline);

 private:
  Status impossible(const std::string& what) const;

  Transport& transport_;
  const Address node_;
};

}  // namespace icefield
