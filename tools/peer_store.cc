#include "tools/peer_store.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

namespace icefield {
namespace {

constexpr std::size_t kBufferBytes = 64 << 10;

Status broken(const char* what) {
  return Status(Code::kUnavailable, std::string(what) + ": " + std::strerror(errno));
}

// Debian's, named like its program.
std::string package(PeerStore::Kind kind) {
  return kind == PeerStore::Kind::kRedis ? "redis-server" : "memcached";
}

// A port that was free a moment ago.
int free_port() {
  const int fd = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{.sin_family = AF_INET};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  const bool ok = ::bind(fd, reinterpret_cast<sockaddr*>(&address), size) == 0 &&
                  ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) == 0;
  ::close(fd);
  return ok ? ntohs(address.sin_port) : 0;
}

}  // namespace

Result<std::unique_ptr<PeerStore>> PeerStore::start(Kind kind, Path path,
                                                    std::int64_t memory_bytes) {
  std::string pattern = (std::filesystem::temp_directory_path() / "icefield-peer-XXXXXX").string();
  if (::mkdtemp(pattern.data()) == nullptr) return broken("temporary directory");
  std::unique_ptr<PeerStore> peer(new PeerStore(kind, pattern));
  peer->buffer_.resize(kBufferBytes);
  ICE_TRY(peer->spawn(path, memory_bytes));
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (true) {
    Status connected = peer->connect(path);
    if (connected.ok()) return peer;
    const bool ended = peer->process_->ended().has_value();
    if (ended || std::chrono::steady_clock::now() > give_up) {
      return Status(Code::kUnavailable, package(kind) + " does not answer");
    }
    std::this_thread::yield();
  }
}

Status PeerStore::spawn(Path path, std::int64_t memory_bytes) {
  port_ = free_port();
  const bool tcp = path == Path::kTcp;
  const std::string socket = directory_ + "/socket";
  const std::string port = std::to_string(port_);
  std::vector<std::string> command;
  if (kind_ == Kind::kRedis) {
    command = {"redis-server",
               "--save",
               "",
               "--appendonly",
               "no",
               "--daemonize",
               "no",
               "--maxmemory",
               std::to_string(memory_bytes),
               "--maxmemory-policy",
               "allkeys-lru",
               "--bind",
               "127.0.0.1",
               "--dir",
               directory_,
               "--logfile",
               "/dev/null"};
    const std::vector<std::string> where =
        tcp ? std::vector<std::string>{"--port", port}
            : std::vector<std::string>{"--port", "0", "--unixsocket", socket};
    command.insert(command.end(), where.begin(), where.end());
  } else {
    command = {"memcached", "-t", "1", "-I", "8m", "-m", std::to_string(memory_bytes >> 20)};
    if (::getuid() == 0) command.insert(command.end(), {"-u", "root"});
    const std::vector<std::string> where =
        tcp ? std::vector<std::string>{"-l", "127.0.0.1", "-p", port}
            : std::vector<std::string>{"-s", socket};
    command.insert(command.end(), where.begin(), where.end());
  }
  ChildProcess::Options options;
  options.arguments = std::move(command);
  Result<ChildProcess> process = ChildProcess::start(std::move(options));
  if (process.status().code() == Code::kNotFound) {
    return process.error().with_context("apt-get install " + package(kind_));
  }
  ICE_TRY(process.status());
  process_.emplace(std::move(*process));
  return Status();
}

PeerStore::~PeerStore() {
  if (socket_ >= 0) ::close(socket_);
  process_.reset();  // before the directory that it uses
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

Status PeerStore::connect(Path path) {
  const bool tcp = path == Path::kTcp;
  const int fd = ::socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0) return broken("socket");
  sockaddr_in internet{.sin_family = AF_INET, .sin_port = htons(static_cast<std::uint16_t>(port_))};
  internet.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  sockaddr_un local{.sun_family = AF_UNIX};
  const std::string name = directory_ + "/socket";
  std::memcpy(local.sun_path, name.data(), std::min(name.size(), sizeof local.sun_path - 1));
  const auto* address = tcp ? reinterpret_cast<const sockaddr*>(&internet)
                            : reinterpret_cast<const sockaddr*>(&local);
  if (::connect(fd, address, tcp ? sizeof internet : sizeof local) != 0) {
    ::close(fd);
    return broken("connect");
  }
  const int on = 1;
  if (tcp) ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  socket_ = fd;
  return Status();
}

Status PeerStore::send(std::span<const ConstByteSpan> parts) {
  constexpr std::size_t kMost = 512;
  std::vector<iovec> vectors;
  for (const ConstByteSpan part : parts) {
    vectors.push_back({const_cast<std::byte*>(part.data()), part.size()});
  }
  for (std::size_t at = 0; at < vectors.size();) {
    const ssize_t sent =
        ::writev(socket_, &vectors[at], static_cast<int>(std::min(kMost, vectors.size() - at)));
    if (sent < 0) return broken("write");
    auto left = static_cast<std::size_t>(sent);
    while (at < vectors.size() && left >= vectors[at].iov_len) left -= vectors[at++].iov_len;
    if (at == vectors.size()) break;
    vectors[at].iov_base = static_cast<std::byte*>(vectors[at].iov_base) + left;
    vectors[at].iov_len -= left;
  }
  return Status();
}

Status PeerStore::read_line(std::string& line) {
  line.clear();
  while (true) {
    for (; at_ < end_; ++at_) {
      const char c = static_cast<char>(buffer_[at_]);
      if (c == '\n') {
        ++at_;
        if (!line.empty()) line.pop_back();  // \r
        return Status();
      }
      line += c;
    }
    const ssize_t got = ::recv(socket_, buffer_.data(), buffer_.size(), 0);
    if (got <= 0) return broken("read");
    at_ = 0;
    end_ = static_cast<std::size_t>(got);
  }
}

Status PeerStore::read_bytes(std::byte* into, std::size_t bytes) {
  const std::size_t here = std::min(bytes, end_ - at_);
  if (here > 0) std::memcpy(into, buffer_.data() + at_, here);
  at_ += here;
  for (std::size_t done = here; done < bytes;) {
    const ssize_t got = ::recv(socket_, into + done, bytes - done, 0);
    if (got <= 0) return broken("read");
    done += static_cast<std::size_t>(got);
  }
  return Status();
}

Status PeerStore::expect(std::string_view line) {
  std::string got;
  ICE_TRY(read_line(got));
  if (got == line) return Status();
  return Status(Code::kInternal, "the peer answered '" + got + "'");
}

// Redis: one SET or MSET. memcached: sets of which only the last is answered.
Status PeerStore::put(std::span<const std::string> keys, ConstByteSpan value) {
  const bool redis = kind_ == Kind::kRedis;
  std::vector<std::string> texts;
  texts.reserve(keys.size());
  std::vector<ConstByteSpan> parts;
  const std::string size = std::to_string(value.size());
  const std::string start = "*" + std::to_string(keys.size() * 2 + 1) +
                            (keys.size() == 1 ? "\r\n$3\r\nSET\r\n" : "\r\n$4\r\nMSET\r\n");
  if (redis) parts.push_back(as_bytes(start));
  for (const std::string& key : keys) {
    const bool last = &key == &keys.back();
    texts.push_back(redis
                        ? "$" + std::to_string(key.size()) + "\r\n" + key + "\r\n$" + size + "\r\n"
                        : "set " + key + " 0 0 " + size + (last ? "\r\n" : " noreply\r\n"));
    parts.push_back(as_bytes(texts.back()));
    parts.push_back(value);
    parts.push_back(as_bytes("\r\n"));
  }
  ICE_TRY(send(parts));
  return expect(redis ? "+OK" : "STORED");
}

Status PeerStore::get(std::span<const std::string> keys, std::size_t value_bytes, std::byte* into) {
  const bool redis = kind_ == Kind::kRedis;
  std::string request = redis ? "*" + std::to_string(keys.size() + 1) +
                                    (keys.size() == 1 ? "\r\n$3\r\nGET" : "\r\n$4\r\nMGET")
                              : "get";
  for (const std::string& key : keys) {
    request += redis ? "\r\n$" + std::to_string(key.size()) + "\r\n" + key : " " + key;
  }
  request += "\r\n";
  const ConstByteSpan part = as_bytes(request);
  ICE_TRY(send(std::span(&part, 1)));
  const std::string size = std::to_string(value_bytes);
  if (redis && keys.size() > 1) ICE_TRY(expect("*" + std::to_string(keys.size())));
  std::array<std::byte, 2> line_end;
  for (const std::string& key : keys) {
    ICE_TRY(expect(redis ? "$" + size : "VALUE " + key + " 0 " + size));
    ICE_TRY(read_bytes(into, value_bytes));
    ICE_TRY(read_bytes(line_end.data(), line_end.size()));
    into += value_bytes;
  }
  return redis ? Status() : expect("END");
}

}  // namespace icefield
