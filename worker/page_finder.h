// worker/page_finder.h — where the pages of selected rows are: in the hot pool, at the nodes, late.
#pragma once

#include <deque>
#include <future>
#include <memory>
#include <span>
#include <vector>

#include "common/clock.h"
#include "worker/hot_pool.h"
#include "worker/layer_attention.h"
#include "worker/page_fetch.h"

namespace icefield {

// Keeps the hot pool's table and reads what is not in it: at once for items that wait, behind the
// steps for those that do not (OnMiss).
//
// Threads  The worker's caller. Reads behind the steps run on the store's executor, one at a time:
//          what is missed meanwhile is read when it is missed again. The destructor waits for it,
//          at most the timeout: the executor must still run.
class PageFinder {
 public:
  struct Options {
    PageSource source;
    Clock& clock;
    std::int32_t page_rows = 1;
    std::chrono::milliseconds timeout{0};
  };

  PageFinder(Options options, HotPool pool)
      : options_(std::move(options)), pool_(std::move(pool)) {}
  ~PageFinder() { wait_behind(); }
  PageFinder(const PageFinder&) = delete;
  PageFinder& operator=(const PageFinder&) = delete;

  // Finds the pages of S of every indexed group.
  void find(const LayerCall& call);
  // Pages that came from the nodes in the last find(), for the processor to place.
  std::span<const ArrivedPage> arrived() const { return arrived_; }
  // Lets go of their bytes.
  void release() { fetched_.buffers.clear(); }

  // Asks for the pages that were missed and not waited for since the last call.
  void read_behind();
  // Gives slots to those that have come since; arrived() and release() as after find().
  void take_behind(StepReport& report);
  void wait_behind() const {
    if (behind_ != nullptr) behind_->done.wait();
  }

  const HotPool& pool() const { return pool_; }
  void replace_pool(HotPool pool) { pool_ = std::move(pool); }
  void drop_segment(std::uint32_t segment) { pool_.drop_segment(segment); }

 private:
  struct MissedPage {
    PageKey key = 0;
    std::weak_ptr<const AttachedSegment> segment;  // else the key may be another page's by now
  };
  // A page that arrived when every slot was pinned.
  struct PageBeside {
    PageKey key = 0;
    const std::byte* bytes = nullptr;
  };
  // A read behind the steps. Segments may go while it runs, so it has copies of what it needs.
  struct Behind {
    std::vector<MissedPage> pages;
    std::deque<AttachedSegment> segments;
    std::vector<std::vector<WantedPage>> wanted;  // one list, of `pages`
    std::future<FetchedPages> done;
  };

  void list_pages(const LayerCall& call, LayerGroup& group);
  void fetch(const LayerCall& call);
  void take_fetched(const LayerCall& call);
  void find_others_pages(const LayerCall& call);
  void insert(const WantedPage& page, SelectedPage& place);

  const Options options_;
  HotPool pool_;
  std::vector<std::vector<WantedPage>> wanted_;  // of the layer under way, by item
  std::vector<ArrivedPage> arrived_;
  std::vector<PageBeside> beside_;
  FetchedPages fetched_;

  std::vector<MissedPage> missed_;  // since the last read behind the steps
  std::unique_ptr<Behind> behind_;
};

}  // namespace icefield
