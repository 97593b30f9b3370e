// client/context_store.h — finds, reads and writes stored contexts: segments and their pages.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "client/nodes.h"
#include "cluster_index/segment/segment_builder.h"
#include "cluster_index/segment/segment_index.h"
#include "common/clock.h"

namespace icefield {

// Whose contexts, of which model, which layers and KV heads of it.
struct ContextScope {
  std::string name_space;
  std::string fingerprint_text;
  Slice slice;
};

// How far a stored chain covers a sequence.
struct PrefixMatch {
  std::vector<StoredBuild> chain;  // from the start, without gaps
  // Why nothing matched, where that can be said: kNotFound (fingerprint) names the first field in
  // which the stored model differs from the caller's.
  Status miss;

  std::int64_t token_count() const { return chain.empty() ? 0 : chain.back().segment.end_token(); }
};

// L0 to L2 of a stored build, verified end to end.
struct LoadedSegment {
  StoredBuild build;
  std::shared_ptr<const SegmentIndex> index;
};

// Everything that is read is checked against the manifest, and the manifest against the build id,
// so what comes back is what was published, whatever tier or path it took.
//
// Threads  Any executor; calls may run side by side.
// Errors   kNotFound with a reason for what cannot be read, among them integrity; kUnavailable,
//          kDeadlineExceeded from the transport, kUnavailable at once for a node that has not
//          answered lately; kResourceExhausted when the nodes have no room.
class ContextStore {
 public:
  explicit ContextStore(Nodes& nodes) : nodes_(nodes) {}

  // The chain of exact builds of the scope that reaches furthest into `prefix` (h_0 … h_n).
  Task<PrefixMatch> match(std::vector<PrefixHash> prefix, ContextScope scope, Deadline deadline);

  // A stored build of this very segment, the smallest id where there are several; empty: none.
  Task<std::vector<StoredBuild>> find(SegmentName segment, ContextScope scope, Deadline deadline);

  Task<LoadedSegment> load(StoredBuild build, Deadline deadline);

  // The order parts of a stored build, one per layer: [KV head] arrays of token offsets.
  Task<std::vector<AlignedBytes>> load_order(StoredBuild build, Deadline deadline);

  // Stores all parts, then the manifest. When it fails, what was stored is removed again and
  // nobody ever saw the build.
  Task<> publish(const BuiltSegment& built, std::string fingerprint_text, Deadline deadline);

  // Removes a build, manifest first.
  Task<> remove(const Manifest& manifest, BuildId build, Deadline deadline);

  // Pages of any contexts, one request per node that has some of them. Not verified: the caller
  // holds the row checks. Pages of a node that does not answer have its status as their outcome.
  Task<PageReply> read_pages(PageRequest request, Deadline deadline);

  // What all nodes hold of a namespace, or of all (empty); the first error when one does not
  // answer.
  Task<ListBuildsReply> list_builds(std::string name_space, Deadline deadline);

 private:
  static Task<PageReply> read_pages_of_many(const NodesView& nodes, const PageRequest& request,
                                            const std::vector<std::size_t>& owners,
                                            Deadline deadline);

  Nodes& nodes_;
};

}  // namespace icefield
