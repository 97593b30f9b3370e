#include "cache_node/node_messages.h"

namespace icefield {
namespace {

std::string packed(std::span<const std::uint16_t> values) {
  return std::string(as_text(std::as_bytes(values)));
}

Result<std::vector<std::uint16_t>> unpacked(const std::string& bytes) {
  if (bytes.size() % sizeof(std::uint16_t) != 0) {
    return Status(Code::kInvalidArgument,
                  "list of u16 in " + std::to_string(bytes.size()) + " bytes");
  }
  std::vector<std::uint16_t> values(bytes.size() / sizeof(std::uint16_t));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

}  // namespace

void to_proto(const Status& status, proto::Outcome* out) {
  out->set_code(static_cast<std::uint32_t>(status.code()));
  out->set_miss_reason(static_cast<std::uint32_t>(status.reason()));
  out->set_message(status.message());
}

Status from_proto(const proto::Outcome& outcome) {
  if (outcome.code() == 0) return Status();
  const bool known = outcome.code() <= static_cast<std::uint32_t>(Code::kInternal);
  const bool known_reason =
      outcome.miss_reason() <= static_cast<std::uint32_t>(MissReason::kNotWorthIt);
  return Status(known ? static_cast<Code>(outcome.code()) : Code::kInternal, outcome.message(),
                known_reason ? static_cast<MissReason>(outcome.miss_reason()) : MissReason::kNone);
}

void to_proto(const ObjectKey& key, const ObjectInfo& info, proto::ObjectHeader* out) {
  out->set_key(key_bytes(key));
  out->set_length(static_cast<std::uint64_t>(info.bytes));
  out->set_checksum(info.checksum);
}

Status check_grant(const Caller& caller, const std::string& name_space) {
  if (caller.may_use(name_space)) return Status();
  return Status(Code::kFailedPrecondition,
                "the token of this connection does not grant " +
                    (name_space == "*" ? "every namespace" : "namespace '" + name_space + "'"));
}

void to_proto(const StoredBuild& build, proto::StoredBuild* out) {
  out->set_before(hash_bytes(build.segment.before));
  out->set_end(hash_bytes(build.segment.end));
  out->set_build(hash_bytes(build.build));
  out->set_first_token(static_cast<std::uint64_t>(build.segment.first_token));
  out->set_token_count(static_cast<std::uint32_t>(build.segment.token_count));
  out->set_first_layer(static_cast<std::uint32_t>(build.slice.first_layer));
  out->set_layer_count(static_cast<std::uint32_t>(build.slice.layer_count));
  out->set_first_kv_head(static_cast<std::uint32_t>(build.slice.first_kv_head));
  out->set_kv_head_count(static_cast<std::uint32_t>(build.slice.kv_head_count));
  if (!build.segment.origin.exact()) out->set_approx_tag(*build.segment.origin.approx_tag);
  out->set_fingerprint(hash_bytes(build.fingerprint));
  out->set_stored_bytes(static_cast<std::uint64_t>(build.stored_bytes));
  out->set_manifest_bytes(static_cast<std::uint64_t>(build.manifest_bytes));
}

Result<StoredBuild> from_proto(const proto::StoredBuild& build) {
  StoredBuild out;
  ICE_TRY(out.segment.before, hash_from<PrefixHash>(build.before()));
  ICE_TRY(out.segment.end, hash_from<PrefixHash>(build.end()));
  ICE_TRY(out.build, hash_from<BuildId>(build.build()));
  ICE_TRY(out.fingerprint, hash_from<FingerprintHash>(build.fingerprint()));
  if (build.has_approx_tag()) out.segment.origin.approx_tag = build.approx_tag();
  ICE_TRY(validate_alignment(static_cast<std::int64_t>(build.first_token()), build.token_count()));
  out.segment.first_token = static_cast<std::int64_t>(build.first_token());
  out.segment.token_count = static_cast<std::int32_t>(build.token_count());
  out.slice = {.first_layer = static_cast<std::int32_t>(build.first_layer()),
               .layer_count = static_cast<std::int32_t>(build.layer_count()),
               .first_kv_head = static_cast<std::int32_t>(build.first_kv_head()),
               .kv_head_count = static_cast<std::int32_t>(build.kv_head_count())};
  out.stored_bytes = static_cast<std::int64_t>(build.stored_bytes());
  out.manifest_bytes = static_cast<std::int64_t>(build.manifest_bytes());
  if (out.manifest_bytes < 0 || out.manifest_bytes > kMaxRequestBytes) {
    return Status(Code::kInvalidArgument,
                  "manifest of " + std::to_string(out.manifest_bytes) + " bytes");
  }
  return out;
}

void to_proto(const PageRequest& request, proto::ReadPagesRequest* out) {
  out->set_page_rows(static_cast<std::uint32_t>(request.page_rows));
  out->set_row_bytes(static_cast<std::uint32_t>(request.row_bytes));
  out->set_scrub(request.scrub);
  for (const std::vector<HeadPages>& heads : request.contexts) {
    proto::ContextPages* context = out->add_contexts();
    for (const HeadPages& head : heads) {
      proto::HeadPages* item = context->add_heads();
      item->set_segment(hash_bytes(head.segment));
      item->set_build(hash_bytes(head.build));
      item->set_layer(static_cast<std::uint32_t>(head.layer));
      item->set_kv_head(static_cast<std::uint32_t>(head.kv_head));
      item->set_first_rows(packed(head.first_rows));
    }
  }
}

Result<PageRequest> from_proto(const proto::ReadPagesRequest& request) {
  PageRequest out;
  out.page_rows = static_cast<std::int32_t>(std::min(request.page_rows(), 1u << 16));
  out.row_bytes = request.row_bytes();
  out.scrub = request.scrub();
  for (const proto::ContextPages& context : request.contexts()) {
    std::vector<HeadPages>& heads = out.contexts.emplace_back();
    for (const proto::HeadPages& item : context.heads()) {
      HeadPages& head = heads.emplace_back();
      ICE_TRY(head.segment, hash_from<SegmentId>(item.segment()));
      ICE_TRY(head.build, hash_from<BuildId>(item.build()));
      if (item.layer() > 0xffff || item.kv_head() > 0xffff) {
        return Status(Code::kInvalidArgument, "page request: layer or KV head out of range");
      }
      head.layer = static_cast<std::int32_t>(item.layer());
      head.kv_head = static_cast<std::int32_t>(item.kv_head());
      ICE_TRY(head.first_rows, unpacked(item.first_rows()));
    }
  }
  ICE_TRY(validate(out));
  return out;
}

void to_proto(const HeadOutcome& outcome, proto::HeadOutcome* out) {
  to_proto(outcome.status, out->mutable_outcome());
  out->set_failed_pages(packed(outcome.failed_pages));
}

Result<HeadOutcome> from_proto(const proto::HeadOutcome& outcome) {
  HeadOutcome out;
  out.status = from_proto(outcome.outcome());
  ICE_TRY(out.failed_pages, unpacked(outcome.failed_pages()));
  return out;
}

void to_proto(const TierUsage& usage, proto::TierUsage* out) {
  out->set_name(usage.name);
  out->set_object_count(static_cast<std::uint64_t>(usage.object_count));
  out->set_used_bytes(static_cast<std::uint64_t>(usage.used_bytes));
  out->set_capacity_bytes(static_cast<std::uint64_t>(usage.capacity_bytes));
}

TierUsage from_proto(const proto::TierUsage& usage) {
  return {.name = usage.name(),
          .object_count = static_cast<std::int64_t>(usage.object_count()),
          .used_bytes = static_cast<std::int64_t>(usage.used_bytes()),
          .capacity_bytes = static_cast<std::int64_t>(usage.capacity_bytes())};
}

}  // namespace icefield
