#include "worker/page_finder.h"

#include <algorithm>
#include <boost/asio/use_future.hpp>
#include <utility>

namespace icefield {
namespace {

PageKey key_of(const WantedPage& page) {
  return page_key(page.segment->number, page.layer, page.kv_head, page.first_row);
}

// The page of S as it is asked for.
WantedPage wanted_page(const LayerCall& call, const LayerGroup& group, const SelectedPage& page,
                       std::int32_t page_rows) {
  const TableRow& at = group.selected[page.begin];
  return {.segment = group.context->segments()[static_cast<std::size_t>(at.segment)].get(),
          .layer = call.layer,
          .kv_head = group.kv_head,
          .first_row = at.row / page_rows * page_rows};
}

}  // namespace

// Cuts S into pages.
void PageFinder::list_pages(const LayerCall& call, LayerGroup& group) {
  group.pages.clear();
  for (std::size_t begin = 0; begin < group.selected.size();) {
    const TableRow& at = group.selected[begin];
    const std::int32_t first = at.row / options_.page_rows * options_.page_rows;
    std::size_t end = begin + 1;
    while (end < group.selected.size() && group.selected[end].segment == at.segment &&
           group.selected[end].row < first + options_.page_rows) {
      ++end;
    }
    group.pages.push_back(
        {.begin = static_cast<std::uint32_t>(begin), .end = static_cast<std::uint32_t>(end)});
    begin = end;
  }
  call.report->pages_touched += static_cast<std::int64_t>(group.pages.size());
}

void PageFinder::find(const LayerCall& call) {
  pool_.begin_layer();
  arrived_.clear();
  beside_.clear();
  if (wanted_.size() < call.items.size()) wanted_.resize(call.items.size());
  for (std::vector<WantedPage>& pages : wanted_) pages.clear();
  bool all_hit = true;
  for (LayerGroup& group : call.groups) {
    if (!group.indexed) continue;
    list_pages(call, group);
    for (SelectedPage& page : group.pages) {
      const WantedPage wanted = wanted_page(call, group, page, options_.page_rows);
      page.slot = pool_.find(key_of(wanted));
      if (page.slot != HotPool::kNoSlot) {
        ++call.report->page_hits;
      } else if (call.waits(group)) {
        wanted_[group.item].push_back(wanted);
        all_hit = false;
      } else {
        const TableRow& at = group.selected[page.begin];
        missed_.push_back(
            {.key = key_of(wanted),
             .segment = group.context->segments()[static_cast<std::size_t>(at.segment)]});
      }
    }
  }
  if (all_hit) return;
  fetch(call);
  take_fetched(call);
}

void PageFinder::fetch(const LayerCall& call) {
  fetched_ = sync_wait(
      options_.source.executor,
      fetch_pages(options_.source, options_.page_rows, std::span(wanted_.data(), call.items.size()),
                  Deadline::after(options_.clock, options_.timeout)));
  call.report->bytes_moved += fetched_.bytes_moved;
  call.report->page_failures += fetched_.failed_pages;
  if (call.report->first_fault.ok()) call.report->first_fault = fetched_.first_error;
}

// Gives slots to pages that were fetched. Two contexts of the batch may have wanted the same page;
// when every slot is pinned by this step, the page is attended where it arrived.
void PageFinder::take_fetched(const LayerCall& call) {
  std::vector<std::size_t> next(call.items.size(), 0);
  for (LayerGroup& group : call.groups) {
    if (!call.waits(group)) continue;
    for (SelectedPage& page : group.pages) {
      if (page.slot != HotPool::kNoSlot) continue;
      const WantedPage& wanted = wanted_[group.item][next[group.item]++];
      page.slot = pool_.find(key_of(wanted));
      if (page.slot != HotPool::kNoSlot || wanted.bytes == nullptr) continue;
      insert(wanted, page);
      if (page.slot == HotPool::kNoSlot) beside_.push_back({key_of(wanted), wanted.bytes});
    }
  }
  find_others_pages(call);
}

// What came for one item is there for the others of the batch too: for those that do not wait, and
// where the same page did not come a second time.
void PageFinder::find_others_pages(const LayerCall& call) {
  std::ranges::sort(beside_, {}, &PageBeside::key);
  for (LayerGroup& group : call.groups) {
    if (!group.indexed) continue;
    for (SelectedPage& page : group.pages) {
      if (!page.missing()) continue;
      const PageKey key = key_of(wanted_page(call, group, page, options_.page_rows));
      page.slot = pool_.find(key);
      if (page.slot != HotPool::kNoSlot) continue;
      const auto beside = std::ranges::lower_bound(beside_, key, {}, &PageBeside::key);
      if (beside != beside_.end() && beside->key == key) page.bytes = beside->bytes;
    }
  }
}

void PageFinder::insert(const WantedPage& page, SelectedPage& place) {
  const HotPool::Inserted inserted = pool_.insert(key_of(page));
  place.slot = inserted.slot;
  if (inserted.slot == HotPool::kNoSlot) place.bytes = page.bytes;
  arrived_.push_back({.segment = page.segment,
                      .layer = page.layer,
                      .kv_head = page.kv_head,
                      .first_row = page.first_row,
                      .bytes = page.bytes,
                      .slot = inserted.slot,
                      .evicted = inserted.evicted});
}

// ------------------------------------------------------------------------- behind the steps

void PageFinder::read_behind() {
  if (missed_.empty() || behind_ != nullptr) {
    missed_.clear();
    return;
  }
  std::erase_if(missed_, [](const MissedPage& page) { return page.segment.expired(); });
  std::ranges::sort(missed_, {}, &MissedPage::key);
  const auto same = [](const MissedPage& a, const MissedPage& b) { return a.key == b.key; };
  missed_.erase(std::unique(missed_.begin(), missed_.end(), same), missed_.end());
  const auto most = static_cast<std::size_t>(pool_.slot_count());
  if (missed_.size() > most) missed_.resize(most);
  if (missed_.empty()) return;
  behind_ = std::make_unique<Behind>();
  behind_->pages = missed_;  // which keeps its room: the steps that fill it must not allocate
  missed_.clear();
  std::vector<WantedPage>& wanted = behind_->wanted.emplace_back();
  for (const MissedPage& page : behind_->pages) {
    if (behind_->segments.empty() || behind_->segments.back().number != segment_of(page.key)) {
      const std::shared_ptr<const AttachedSegment> segment = page.segment.lock();
      behind_->segments.push_back({.number = segment->number,
                                   .name = segment->name,
                                   .build = segment->build,
                                   .index = segment->index});
    }
    wanted.push_back({.segment = &behind_->segments.back(),
                      .layer = layer_of(page.key),
                      .kv_head = kv_head_of(page.key),
                      .first_row = first_row_of(page.key)});
  }
  behind_->done =
      asio::co_spawn(options_.source.executor,
                     fetch_pages(options_.source, options_.page_rows, std::span(behind_->wanted),
                                 Deadline::after(options_.clock, options_.timeout)),
                     asio::use_future);
}

void PageFinder::take_behind(StepReport& report) {
  arrived_.clear();
  if (behind_ == nullptr) return;
  if (behind_->done.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return;
  const std::unique_ptr<Behind> behind = std::move(behind_);
  fetched_ = behind->done.get();
  report.bytes_moved += fetched_.bytes_moved;
  report.page_failures += fetched_.failed_pages;
  if (report.first_fault.ok()) report.first_fault = fetched_.first_error;
  pool_.begin_layer();
  // Those that are there meanwhile are pinned before any goes.
  for (const MissedPage& page : behind->pages) {
    if (!page.segment.expired()) static_cast<void>(pool_.find(page.key));
  }
  for (std::size_t i = 0; i < behind->pages.size(); ++i) {
    const std::shared_ptr<const AttachedSegment> segment = behind->pages[i].segment.lock();
    WantedPage page = behind->wanted[0][i];
    if (segment == nullptr || page.bytes == nullptr) continue;
    page.segment = segment.get();
    if (pool_.find(key_of(page)) != HotPool::kNoSlot) continue;
    SelectedPage place;
    insert(page, place);
    if (place.slot == HotPool::kNoSlot) arrived_.pop_back();
  }
}

}  // namespace icefield
