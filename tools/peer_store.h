// tools/peer_store.h — Redis and memcached, started and spoken to for benchmarks.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "common/bytes.h"
#include "common/status.h"
#include "tools/child_process.h"

namespace icefield {

// A server of its own process with one worker thread and nothing persisted, and one blocking
// connection to it. Values are sent from, and land in, the caller's memory: no client library could
// do less. Ends with the object.
class PeerStore {
 public:
  enum class Kind { kRedis, kMemcached };
  enum class Path { kUnixSocket, kTcp };

  // kNotFound when the program is not installed, kUnavailable when it does not answer.
  static Result<std::unique_ptr<PeerStore>> start(Kind kind, Path path, std::int64_t memory_bytes);
  ~PeerStore();

  // Stores the same value under all keys, in one request where the protocol has one.
  Status put(std::span<const std::string> keys, ConstByteSpan value);
  // The values of all keys, back to back; each must be there and `value_bytes` long.
  Status get(std::span<const std::string> keys, std::size_t value_bytes, std::byte* into);

 private:
  PeerStore(Kind kind, std::string directory) : kind_(kind), directory_(std::move(directory)) {}

  Status spawn(Path path, std::int64_t memory_bytes);
  Status connect(Path path);
  Status send(std::span<const ConstByteSpan> parts);
  Status read_line(std::string& line);
  Status read_bytes(std::byte* into, std::size_t bytes);
  Status expect(std::string_view line);

  const Kind kind_;
  const std::string directory_;  // of the socket
  std::optional<ChildProcess> process_;
  int socket_ = -1;
  int port_ = 0;
  std::vector<std::byte> buffer_;  // received and not used yet: [at_, end_)
  std::size_t at_ = 0;
  std::size_t end_ = 0;
};

}  // namespace icefield
