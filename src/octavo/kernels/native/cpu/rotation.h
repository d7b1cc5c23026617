// Cosines and sines of float angles. Written here because those of the C library differ between machines.
#pragma once

#include <cstdint>

namespace octavo {

// Within 1 unit in the last place for angles up to 2^20 radians; NaN for NaN and infinities.
void cosines_and_sines(const float* angles, std::int64_t count, float* cosines, float* sines);

}  // namespace octavo
