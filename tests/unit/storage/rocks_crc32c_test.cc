// RocksDB's CRC32C and ours are one function: stores stay readable whoever wrote them.
#include "storage/rocks_crc32c.h"

#include <gtest/gtest.h>
#include <rocksdb/file_checksum.h>

#include <string>

#include "common/rng.h"

namespace rocksdb::crc32c {
std::uint32_t Extend(std::uint32_t crc, const char* data, std::size_t size);
}  // namespace rocksdb::crc32c

namespace icefield {
namespace {

// From the definition: the reflected polynomial of Castagnoli, bit after bit.
std::uint32_t by_bits(std::uint32_t crc, const std::string& bytes) {
  std::uint32_t state = ~crc;
  for (const char byte : bytes) {
    state ^= static_cast<std::uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) state = (state >> 1) ^ ((state & 1) * 0x82f63b78u);
  }
  return ~state;
}

std::uint32_t ours(std::uint32_t crc, const std::string& bytes) {
  return rocksdb::crc32c::Extend(crc, bytes.data(), bytes.size());
}

TEST(RocksCrc32c, IsTheFunctionOfTheDefinition) {
  EXPECT_EQ(ours(0, "123456789"), 0xe3069283u);  // RFC 3720
  EXPECT_EQ(ours(0, std::string(32, '\0')), 0x8a9136aau);
  SeededRng rng(1);
  for (std::size_t size = 0; size < 300; ++size) {
    std::string bytes(size + 3, '\0');
    for (char& byte : bytes) byte = static_cast<char>(rng.next());
    const auto crc = static_cast<std::uint32_t>(rng.next());
    ASSERT_EQ(ours(crc, bytes.substr(3)), by_bits(crc, bytes.substr(3))) << size;
    ASSERT_EQ(rocksdb::crc32c::Extend(crc, bytes.data() + 3, size), by_bits(crc, bytes.substr(3)));
    ASSERT_EQ(ours(ours(crc, bytes.substr(0, 3)), bytes.substr(3)), ours(crc, bytes));
  }
}

// A checksum that RocksDB was asked for came from the same function.
TEST(RocksCrc32c, TakesTheLibrarysPlace) {
#if defined(__x86_64__)
  EXPECT_TRUE(has_fast_crc32c());
#endif
  rocksdb::FileChecksumGenContext context;
  const auto generator =
      rocksdb::GetFileChecksumGenCrc32cFactory()->CreateFileChecksumGenerator(context);
  generator->Update("123456789", 9);
  generator->Finalize();
  EXPECT_EQ(generator->GetChecksum(), "\xe3\x06\x92\x83");
}

}  // namespace
}  // namespace icefield
