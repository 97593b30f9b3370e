// cache_node/unfinished_builds.h — builds whose manifest is not here: whose they are, and which of
// their parts are stored.
#pragma once

#include <chrono>
#include <list>
#include <map>
#include <optional>
#include <set>
#include <vector>

#include "common/clock.h"
#include "common/ids.h"

namespace icefield {

struct BuildKey {
  SegmentId segment;
  BuildId build;
  friend auto operator<=>(const BuildKey&, const BuildKey&) = default;
};

// The key of a part does not tell its namespace, the manifest does, and that comes last. Until
// then a build is of the namespace whose part came first. It is unfinished from its first part to
// its manifest, and again from the removal of its manifest to that of its last part.
//
// Bounded: what nobody adds to or takes from for a while is given up, and so is what was left alone
// longest when there are too many. A build that was given up is leaving until all of its parts are
// removed: nobody adds to it meanwhile, so that parts of one writer never become another's.
//
// A pure state machine: time is an argument. Threads: the node's shard.
class UnfinishedBuilds {
 public:
  struct Options {
    std::size_t max_count = 1024;
    std::chrono::milliseconds idle_limit{600'000};
  };
  struct Owner {
    NamespaceId name_space;
    bool everything = false;  // who began it may use every namespace
  };

  UnfinishedBuilds() = default;
  explicit UnfinishedBuilds(Options options) : options_(options) {}

  // Null when no such build is unfinished.
  const Owner* find(const BuildKey& key) const;
  // Its owner stays who it was.
  void begin(const BuildKey& key, const Owner& owner, Clock::TimePoint now);
  // A part of a build that was begun.
  void add(const BuildKey& key, const PartId& part);
  // The part is not stored any more. A build is forgotten with its last one.
  void remove(const BuildKey& key, const PartId& part, Clock::TimePoint now);
  // Its manifest is here.
  void end(const BuildKey& key);
  // Nothing will come of it.
  void give_up(const BuildKey& key);
  void expire(Clock::TimePoint now);
  bool leaving(const BuildKey& key) const { return leaving_.contains(key); }
  // A part of what was given up, to be removed; then say so, or that it could not be.
  std::optional<ObjectKey> take_given_up();
  void removed(const ObjectKey& part);
  void not_removed(const ObjectKey& part) { given_up_.push_back(part); }

  std::size_t count() const { return builds_.size(); }

 private:
  struct Build {
    BuildKey key;
    Owner owner;
    std::set<PartId> parts;
    Clock::TimePoint used;
  };

  void touch(std::list<Build>::iterator build, Clock::TimePoint now);

  Options options_;
  std::list<Build> builds_;  // those left alone longest first
  std::map<BuildKey, std::list<Build>::iterator> by_key_;
  std::vector<ObjectKey> given_up_;
  std::map<BuildKey, std::size_t> leaving_;  // parts still to be removed
};

}  // namespace icefield
