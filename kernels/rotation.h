// kernels/rotation.h — the fixed rotation under which codes are made and ranked.
//
// A randomised Hadamard transform: rotate(x) = H D x / √b, in blocks of b dimensions, b the largest
// power of two that divides d; D = diag(±1) from kRotationSeed. It spreads outlier channels over
// all dimensions, which a 2-bit code with one scale needs. Orthogonal, so dot products keep their
// value: q·k = rotate(q)·rotate(k).
#pragma once

#include <cstdint>

namespace icefield {

// x [count, d] → out [count, d]; may be the same array.
void rotate(const float* x, std::int32_t count, std::int32_t d, float* out);

// +1 or -1, the sign of dimension `dim`.
float rotation_sign(std::int32_t dim);

}  // namespace icefield
