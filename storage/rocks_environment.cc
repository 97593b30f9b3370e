#include "storage/rocks_environment.h"

#include <rocksdb/file_system.h>
#include <rocksdb/system_clock.h>

namespace icefield {
namespace {

class HoldingClock final : public rocksdb::SystemClockWrapper {
 public:
  explicit HoldingClock(std::shared_ptr<RocksEvents> events)
      : SystemClockWrapper(rocksdb::SystemClock::Default()), events_(std::move(events)) {}
  const char* Name() const override { return "IcefieldHoldingClock"; }
  void SleepForMicroseconds(int micros) override {
    if (!events_->hold_if_broken()) target_->SleepForMicroseconds(micros);
  }

 private:
  const std::shared_ptr<RocksEvents> events_;
};

class StoreEnvironment final : public rocksdb::EnvWrapper {
 public:
  StoreEnvironment(std::shared_ptr<rocksdb::FileSystem> files,
                   std::shared_ptr<rocksdb::SystemClock> clock)
      : EnvWrapper(rocksdb::NewCompositeEnv(files)) {
    file_system_ = std::move(files);
    system_clock_ = std::move(clock);
  }
};

}  // namespace

std::unique_ptr<rocksdb::Env> rocks_environment(std::shared_ptr<rocksdb::FileSystem> files,
                                                std::shared_ptr<RocksEvents> events) {
  return std::make_unique<StoreEnvironment>(std::move(files),
                                            std::make_shared<HoldingClock>(std::move(events)));
}

}  // namespace icefield
