// Apart from ids.cc, which needs hashes: parts are laid out and parsed without them.
#include "common/ids.h"

namespace icefield {

std::string_view to_string(PartKind kind) {
  switch (kind) {
    case PartKind::kManifest: return "manifest";
    case PartKind::kLists: return "L0";
    case PartKind::kClusters: return "L1";
    case PartKind::kCodes: return "L2";
    case PartKind::kOrder: return "order";
    case PartKind::kExtent: return "extent";
    case PartKind::kFingerprint: return "fingerprint";
    case PartKind::kValue: return "value chunk";
    case PartKind::kValueName: return "value name";
    case PartKind::kNamespace: return "namespace";
  }
  return "unknown";
}

}  // namespace icefield
