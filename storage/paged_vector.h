// storage/paged_vector.h — an array that grows by pages: elements keep their place, growing never
// copies or doubles what is there, and pages without an element take nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace icefield {

template <class T>
class PagedVector {
 public:
  T& operator[](std::uint32_t index) { return pages_[index / kPage][index % kPage]; }
  const T& operator[](std::uint32_t index) const { return pages_[index / kPage][index % kPage]; }
  bool has(std::uint32_t index) const {
    return index / kPage < pages_.size() && pages_[index / kPage] != nullptr;
  }
  // Makes the page of `index` usable; its new elements are value-initialized.
  void reach(std::uint32_t index) {
    const std::size_t page = index / kPage;
    if (page >= pages_.size()) pages_.resize(page + 1);
    if (pages_[page] == nullptr) pages_[page] = std::make_unique<T[]>(kPage);
  }

 private:
  static constexpr std::uint32_t kPage = 1024;
  std::vector<std::unique_ptr<T[]>> pages_;
};

}  // namespace icefield
