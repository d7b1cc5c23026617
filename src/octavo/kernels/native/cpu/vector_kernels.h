// Norm, rotation and gating over the lanes of an instruction set. Included by one source per set.
#pragma once

#include <cstdint>

#include "lanes.h"
#include "vectors.h"

namespace octavo {
namespace {

// Calls body(first, count) for runs of 16 elements; the last may be shorter.
template <class Body>
[[gnu::always_inline]] inline void by_lanes(std::int64_t size, Body body) {
    std::int64_t first = 0;
    for (; first + lane_count <= size; first += lane_count) body(first, lane_count);
    if (first < size) body(first, static_cast<int>(size - first));
}

template <class Floats>
void normalize(const float* inputs, std::int64_t size, Norm norm, float* outputs) {
    Floats squares = Floats::broadcast(0.0f);
    by_lanes(size, [&](std::int64_t first, int count) {
        const Floats values = Floats::load_first(inputs + first, count);
        squares = multiply_add(values, values, squares);
    });
    const float mean = sum(squares) / static_cast<float>(size);
    const Floats scale = Floats::broadcast(1.0f / __builtin_sqrtf(mean + norm.epsilon));
    by_lanes(size, [&](std::int64_t first, int count) {
        const Floats normalized = Floats::load_first(inputs + first, count) * scale;
        (Floats::load_first(norm.weight + first, count) * normalized).store_first(outputs + first, count);
    });
}

// Turns the pairs (d, d + half) of a head, then scales it; `vector` and `outputs` may be the same.
template <class Floats>
void rotate(const float* vector, const float* cosine, const float* sine, std::int64_t half, float scale,
            float* outputs) {
    const Floats factor = Floats::broadcast(scale);
    by_lanes(half, [&](std::int64_t d, int count) {
        const Floats first = Floats::load_first(vector + d, count);
        const Floats second = Floats::load_first(vector + half + d, count);
        const Floats cosines = Floats::load_first(cosine + d, count), sines = Floats::load_first(sine + d, count);
        (factor * (first * cosines - second * sines)).store_first(outputs + d, count);
        (factor * (second * cosines + first * sines)).store_first(outputs + half + d, count);
    });
}

// Through e^-|gate|, which cannot overflow.
template <class Floats>
void gate(const float* gates, const float* ups, std::int64_t size, float* outputs) {
    const Floats zero = Floats::broadcast(0.0f), one = Floats::broadcast(1.0f);
    by_lanes(size, [&](std::int64_t first, int count) {
        const Floats value = Floats::load_first(gates + first, count);
        const Floats decayed = exponential(zero - larger(value, zero - value));
        const Floats sigmoid = where_less(value, zero, decayed, one) / (one + decayed);
        (value * sigmoid * Floats::load_first(ups + first, count)).store_first(outputs + first, count);
    });
}

template <class Floats>
void exponentials(const float* inputs, std::int64_t size, float* outputs) {
    by_lanes(size, [&](std::int64_t first, int count) {
        exponential(Floats::load_first(inputs + first, count)).store_first(outputs + first, count);
    });
}

}  // namespace
}  // namespace octavo
