// client/context_store.h — finds, reads and writes stored contexts: segments and their pages.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cache_node/node_stub.h"
#include "cluster_index/segment/segment_builder.h"
#include "cluster_index/segment/segment_index.h"
#include "common/clock.h"

namespace icefield {

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
//          kDeadlineExceeded from the transport; kResourceExhausted when the nodes have no room.
class ContextStore {
 public:
  explicit ContextStore(NodeStub& node) : node_(node) {}

  // The chain of exact builds of slice `whole` that reaches furthest into `prefix` (h_0 … h_n).
  Task<PrefixMatch> match(std::vector<PrefixHash> prefix, std::string fingerprint_text, Slice whole,
                          Deadline deadline);

  // A stored build of this very segment, the smallest id where there are several; empty: none.
  Task<std::vector<StoredBuild>> find(SegmentName segment, FingerprintHash fingerprint, Slice slice,
                                      Deadline deadline);

  Task<LoadedSegment> load(StoredBuild build, Deadline deadline);

  // The order parts of a stored build, one per layer: [KV head] arrays of token offsets.
  Task<std::vector<AlignedBytes>> load_order(StoredBuild build, Deadline deadline);

  // Stores all parts, then the manifest. When it fails, what was stored is removed again and
  // nobody ever saw the build.
  Task<> publish(const BuiltSegment& built, std::string fingerprint_text, Deadline deadline);

  // Removes a build, manifest first.
  Task<> remove(const Manifest& manifest, BuildId build, Deadline deadline);

  // Pages of any contexts in one request. Not verified: the caller holds the row checks.
  Task<PageReply> read_pages(PageRequest request, Deadline deadline) {
    return node_.read_pages(std::move(request), deadline);
  }

  Task<ListBuildsReply> list_builds(Deadline deadline) { return node_.list_builds(deadline); }

 private:
  Task<Manifest> load_manifest(const StoredBuild& build, Deadline deadline);
  Task<std::vector<AlignedBytes>> load_parts(const StoredBuild& build, std::vector<PartEntry> parts,
                                             Deadline deadline);
  Task<> put_all(const std::vector<PutObject>& objects, Deadline deadline);
  Task<std::string> load_fingerprint(FingerprintHash hash, Deadline deadline);

  NodeStub& node_;
};

}  // namespace icefield
