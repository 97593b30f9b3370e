#include "common/run_writer.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace icefield {

#if defined(__x86_64__)
namespace {

constexpr std::size_t kLine = 64;

// `store` writes 16 bytes.
template <class Store>
void copy_line(std::byte* to, const std::byte* from, Store store) {
  const auto* source = reinterpret_cast<const __m128i*>(from);
  auto* target = reinterpret_cast<__m128i*>(to);
  const __m128i a = _mm_loadu_si128(source);
  const __m128i b = _mm_loadu_si128(source + 1);
  const __m128i c = _mm_loadu_si128(source + 2);
  const __m128i d = _mm_loadu_si128(source + 3);
  store(target, a);
  store(target + 1, b);
  store(target + 2, c);
  store(target + 3, d);
}

}  // namespace

void fetch_copy(std::byte* to, ConstByteSpan from) {
  constexpr std::size_t kStreams = 4;
  const std::size_t stride = from.size() / (kStreams * kLine) * kLine;
  const auto store = [](__m128i* at, __m128i bytes) { _mm_storeu_si128(at, bytes); };
  for (std::size_t at = 0; at < stride; at += kLine) {
    for (std::size_t stream = 0; stream < kStreams; ++stream) {
      copy_line(to + stream * stride + at, from.data() + stream * stride + at, store);
    }
  }
  const std::size_t done = kStreams * stride;
  if (done < from.size()) std::memcpy(to + done, from.data() + done, from.size() - done);
}

void stream_copy(std::byte* to, ConstByteSpan from) {
  const std::size_t unaligned = (kLine - reinterpret_cast<std::uintptr_t>(to) % kLine) % kLine;
  const std::size_t head = std::min(from.size(), unaligned);
  if (head > 0) std::memcpy(to, from.data(), head);
  const auto store = [](__m128i* at, __m128i bytes) { _mm_stream_si128(at, bytes); };
  std::size_t at = head;
  for (; from.size() - at >= kLine; at += kLine) copy_line(to + at, from.data() + at, store);
  if (at < from.size()) std::memcpy(to + at, from.data() + at, from.size() - at);
  _mm_sfence();  // other threads see it like any other write
}
#else
void fetch_copy(std::byte* to, ConstByteSpan from) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

void stream_copy(std::byte* to, ConstByteSpan from) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}
#endif

void RunWriter::put(ConstByteSpan bytes) {
  while (!bytes.empty()) {
    if (room_.empty()) {
      ICE_CHECK(!runs_.empty());
      room_ = runs_.front();
      runs_ = runs_.subspan(1);
      continue;
    }
    const std::size_t part = std::min(room_.size(), bytes.size());
    stream_copy(room_.data(), bytes.first(part));
    room_ = room_.subspan(part);
    bytes = bytes.subspan(part);
  }
}

bool RunWriter::full() const {
  return room_.empty() && std::ranges::all_of(runs_, [](ByteSpan run) { return run.empty(); });
}

}  // namespace icefield
