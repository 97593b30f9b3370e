// kernels/kernels.h — one function per kernel family: the door to the processor that runs them.
#pragma once

#include "kernels/attend.h"
#include "kernels/page_gather.h"
#include "kernels/segment_build.h"
#include "kernels/select.h"
#include "kernels/slope.h"

namespace icefield {

// A worker takes one of these and never asks what is behind it.
struct Kernels {
  Status (*partition)(const PartitionArgs& args, Partition& out);
  void (*describe)(const DescribeArgs& args);
  void (*score_lists)(const ScoreListsArgs& args);
  void (*propose)(const ProposeArgs& args);
  void (*rank)(const RankArgs& args);
  void (*attend)(const AttendArgs& args);
  void (*merge)(const MergeArgs& args);
  void (*add_slope)(const AddSlopeArgs& args);
  void (*page_gather)(const PageGatherArgs& args);
};

const Kernels& reference_kernels();  // float64 loops: the specification
const Kernels& cpu_kernels();        // SIMD, the best instruction set of this machine

}  // namespace icefield
