// storage/paged_vector.h — an array that grows by pages: elements keep their place, and growing
// never copies or doubles what is there.
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
  std::uint32_t size() const { return static_cast<std::uint32_t>(pages_.size()) * kPage; }
  // Makes [0, index] usable; new elements are value-initialized.
  void reach(std::uint32_t index) {
    while (size() <= index) pages_.push_back(std::make_unique<T[]>(kPage));
  }

 private:
  static constexpr std::uint32_t kPage = 1024;
  std::vector<std::unique_ptr<T[]>> pages_;
};

}  // namespace icefield
