// tests/support/small_disk.h — a file system of a test's own, small enough to fill.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>

#include "tests/support/temp_dir.h"

namespace icefield {

// An ext4 in a file, mounted by loop: needs root. Whoever is not root skips his test.
class SmallDisk {
 public:
  explicit SmallDisk(int megabytes) {
    const std::string image = dir_.file("image");
    const std::string make = "truncate -s " + std::to_string(megabytes) + "M " + image +
                             " && mkfs.ext4 -q " + image + " && mkdir " + path() +
                             " && mount -o loop " + image + " " + path() + " 2>/dev/null";
    mounted_ = std::system(make.c_str()) == 0;
  }
  ~SmallDisk() {
    if (mounted_ && std::system(("umount " + path()).c_str()) != 0) ADD_FAILURE() << "still busy";
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;

  bool mounted() const { return mounted_; }
  std::string path() const { return dir_.file("disk"); }

  // Somebody else's file takes all that is left; once more, what has become free since.
  void fill() const {
    const int file = ::open(ballast().c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ASSERT_GE(file, 0);
    const std::string block(1 << 20, 'x');
    for (std::size_t size = block.size(); size >= 512;) {
      if (::write(file, block.data(), size) <= 0) size /= 2;
    }
    fsync(file);
    ::close(file);
  }
  void empty() const { std::filesystem::remove(ballast()); }

 private:
  std::string ballast() const { return path() + "/ballast"; }

  TempDir dir_;
  bool mounted_ = false;
};

}  // namespace icefield
