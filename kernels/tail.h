// kernels/tail.h — the first launch of attend_cuda() where groups have a tail.
#pragma once

#include "kernels/attend_cuda.h"

namespace icefield::gpu {

// Fills term_logit, weights and shares of every group.
Status tail_terms(const GpuAttendArgs& args, Stream stream);

}  // namespace icefield::gpu
