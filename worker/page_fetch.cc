#include "worker/page_fetch.h"

namespace icefield {
namespace {

class PageFetch {
  using Lists = std::vector<std::vector<WantedPage*>>;

 public:
  PageFetch(const PageSource& source, std::int32_t page_rows, Deadline deadline)
      : store_(source.store),
        shape_(source.shape),
        slice_(source.slice),
        page_rows_(page_rows),
        page_bytes_(page_rows * source.shape.row_bytes()),
        deadline_(deadline) {}

  asio::awaitable<FetchedPages> run(std::span<std::vector<WantedPage>> wanted) {
    Lists first;
    for (std::vector<WantedPage>& pages : wanted) {
      std::vector<WantedPage*>& list = first.emplace_back();
      for (WantedPage& page : pages) list.push_back(&page);
    }
    const Lists damaged = co_await read(first, false);
    if (!damaged.empty()) co_await read(damaged, true);
    for (const std::vector<WantedPage>& pages : wanted) {
      for (const WantedPage& page : pages) result_.failed_pages += page.bytes == nullptr;
    }
    co_return std::move(result_);
  }

 private:
  // Splits what is larger than one reply, and returns the pages that came damaged.
  asio::awaitable<Lists> read(const Lists& wanted, bool scrub) {
    const auto limit = static_cast<std::size_t>(kMaxRequestBytes / page_bytes_);
    Lists damaged;
    Lists batch;
    std::size_t in_batch = 0;
    for (const std::vector<WantedPage*>& list : wanted) {
      batch.emplace_back();
      for (WantedPage* page : list) {
        if (in_batch == limit) {
          co_await read_batch(batch, scrub, damaged);
          batch.assign(1, {});
          in_batch = 0;
        }
        batch.back().push_back(page);
        ++in_batch;
      }
    }
    if (in_batch > 0) co_await read_batch(batch, scrub, damaged);
    co_return damaged;
  }

  static bool same_head(const WantedPage& a, const WantedPage& b) {
    return a.segment == b.segment && a.layer == b.layer && a.kv_head == b.kv_head;
  }

  PageRequest request_for(const Lists& batch, bool scrub) const {
    PageRequest request{
        .page_rows = page_rows_, .row_bytes = shape_.row_bytes(), .scrub = scrub, .contexts = {}};
    for (const std::vector<WantedPage*>& list : batch) {
      std::vector<HeadPages>& heads = request.contexts.emplace_back();
      for (std::size_t i = 0; i < list.size(); ++i) {
        const WantedPage& page = *list[i];
        if (i == 0 || !same_head(page, *list[i - 1])) {
          heads.push_back({.end = page.segment->name.end,
                           .segment = page.segment->name.id(),
                           .build = page.segment->build,
                           .layer = slice_.first_layer + page.layer,
                           .kv_head = slice_.first_kv_head + page.kv_head,
                           .first_rows = {}});
        }
        heads.back().first_rows.push_back(static_cast<std::uint16_t>(page.first_row));
      }
    }
    return request;
  }

  asio::awaitable<void> read_batch(const Lists& batch, bool scrub, Lists& damaged) {
    PageRequest request = request_for(batch, scrub);
    Result<PageReply> reply = co_await store_.read_pages(std::move(request), deadline_);
    if (reply.has_value()) {
      take(batch, scrub, std::move(reply).value(), damaged);
    } else if (result_.first_error.ok()) {
      result_.first_error = reply.error();
    }
  }

  // Verifies what came for a batch.
  void take(const Lists& batch, bool scrub, PageReply reply, Lists& damaged) {
    result_.bytes_moved += reply.pages.size();
    const std::byte* at = std::as_const(reply.pages).bytes().data();
    std::size_t head = 0;
    for (const std::vector<WantedPage*>& list : batch) {
      damaged.emplace_back();
      const HeadOutcome* outcome = nullptr;
      std::uint16_t in_head = 0;
      for (std::size_t i = 0; i < list.size(); ++i, at += page_bytes_) {
        if (i == 0 || !same_head(*list[i], *list[i - 1])) {
          outcome = &reply.heads[head++];
          in_head = 0;
          if (!outcome->status.ok() && result_.first_error.ok()) {
            result_.first_error = outcome->status;
          }
        }
        const auto& failed = outcome->failed_pages;
        if (std::binary_search(failed.begin(), failed.end(), in_head++)) continue;
        if (verified(*list[i], at)) {
          list[i]->bytes = at;
        } else if (scrub) {
          note_damage(*list[i]);
        } else {
          damaged.back().push_back(list[i]);
        }
      }
    }
    result_.buffers.push_back(std::move(reply.pages));
    bool any = false;
    for (const std::vector<WantedPage*>& list : damaged) any |= !list.empty();
    if (!any) damaged.clear();
  }

  bool verified(const WantedPage& page, const std::byte* bytes) const {
    const SegmentId segment = page.segment->name.id();
    const std::uint32_t* checks = page.segment->index->row_checks(page.layer, page.kv_head);
    const auto row_bytes = static_cast<std::size_t>(shape_.row_bytes());
    for (std::int32_t i = 0; i < page_rows_; ++i) {
      const std::int32_t row = page.first_row + i;
      if (row_check({bytes + static_cast<std::size_t>(i) * row_bytes, row_bytes}, segment,
                    static_cast<std::uint16_t>(slice_.first_layer + page.layer),
                    static_cast<std::uint16_t>(slice_.first_kv_head + page.kv_head),
                    static_cast<std::uint32_t>(row)) != checks[row]) {
        return false;
      }
    }
    return true;
  }

  void note_damage(const WantedPage& page) {
    if (!result_.first_error.ok()) return;
    result_.first_error = Status::miss(MissReason::kIntegrity,
                                       "row " + std::to_string(page.first_row) + " of segment " +
                                           to_string(page.segment->name.id()) + " fails its check");
  }

  ContextStore& store_;
  const KvShape shape_;
  const Slice slice_;
  const std::int32_t page_rows_;
  const std::int64_t page_bytes_;
  const Deadline deadline_;
  FetchedPages result_;
};

}  // namespace

asio::awaitable<FetchedPages> fetch_pages(const PageSource& source, std::int32_t page_rows,
                                          std::span<std::vector<WantedPage>> wanted,
                                          Deadline deadline) {
  PageFetch fetch(source, page_rows, deadline);
  FetchedPages fetched = co_await fetch.run(wanted);
  co_return fetched;
}

}  // namespace icefield
