#include "kernels/simd_target.h"

#include <atomic>

#include "hwy/highway.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace icefield {
namespace {

#if HWY_ARCH_X86
// Better instruction sets have lower numbers.
bool may_have_tiles(std::int64_t target) { return target <= HWY_AVX3_DL; }
#else
bool may_have_tiles(std::int64_t) { return false; }
#endif

// Whether the processor has AMX for bf16 and the instruction that packs bf16, and Linux lets this
// process use them.
bool get_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  if (!may_have_tiles(hwy::SupportedAndGeneratedTargets().front())) return false;
  constexpr unsigned kAmxBf16 = 1u << 22;  // leaf 7.0, edx
  constexpr unsigned kAmxTile = 1u << 24;
  constexpr unsigned kAvx512Bf16 = 1u << 5;  // leaf 7.1, eax
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kAmxBf16) == 0 || (edx & kAmxTile) == 0) return false;
  if (__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) == 0 || (eax & kAvx512Bf16) == 0)
    return false;
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM of asm/prctl.h
  constexpr long kTileData = 18;               // the part of a thread's state that has to grow
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Relaxed: nothing else is published with it.
std::atomic<bool>& tiles() {
  static std::atomic<bool> usable(get_tiles());
  return usable;
}

}  // namespace

std::vector<SimdTarget> simd_targets() {
  std::vector<SimdTarget> targets;
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    if (may_have_tiles(target) && tiles_usable()) targets.push_back({target, true});
    targets.push_back({target, false});
  }
  return targets;
}

std::string name_of(const SimdTarget& target) {
  return std::string(hwy::TargetName(target.highway)) + (target.tiles ? " with AMX" : "");
}

bool tiles_usable() { return tiles().load(std::memory_order_relaxed); }

void run_with(const SimdTarget& target) {
  tiles().store(target.tiles, std::memory_order_relaxed);
  hwy::SetSupportedTargetsForTest(target.highway);
  hwy::GetChosenTarget().Update(target.highway);
}

}  // namespace icefield
