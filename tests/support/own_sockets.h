// tests/support/own_sockets.h — the TCP connections that this process holds, to cut those that a
// library made and hides.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstdint>
#include <filesystem>
#include <string>

namespace icefield {

// The port of a socket's own end or of its peer's; 0: no connected TCP socket.
inline std::uint16_t tcp_port(int fd, bool of_peer) {
  sockaddr_in address{};
  socklen_t size = sizeof(address);
  auto* const out = reinterpret_cast<sockaddr*>(&address);
  const int rc = of_peer ? getpeername(fd, out, &size) : getsockname(fd, out, &size);
  return rc == 0 && address.sin_family == AF_INET ? ntohs(address.sin_port) : std::uint16_t{0};
}

// Cuts every TCP connection of this process that does not end at `spared_port`; returns how many
// ends it still found open.
inline int cut_own_connections(std::uint16_t spared_port) {
  int cut = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    const int fd = std::stoi(entry.path().filename().string());
    const std::uint16_t peer = tcp_port(fd, true);
    if (peer == 0 || peer == spared_port || tcp_port(fd, false) == spared_port) continue;
    if (shutdown(fd, SHUT_RDWR) == 0) ++cut;
  }
  return cut;
}

}  // namespace icefield
