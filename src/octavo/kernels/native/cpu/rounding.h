// How numbers that share a scale become whole numbers.
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo {

constexpr float smallest_magnitude = 0x1p-100f;  // numbers of which none is larger count as zeros

// Numbers times `factor` are rounded to integers; integers times `scale` are the numbers again.
struct Rounding {
    float factor, scale;
};

// For numbers whose largest magnitude, `largest`, becomes `largest_integer`. If it is Inf or NaN, so that no integer
// can stand for it, the scale is NaN.
inline Rounding rounding_for(float largest, int largest_integer) {
    const float integer = static_cast<float>(largest_integer);
    if (!(largest <= 3.40282347e38f)) return {0.0f, __builtin_nanf("")};
    if (largest < smallest_magnitude) return {0.0f, 0.0f};
    return {integer / largest, largest / integer};
}

}  // namespace octavo
