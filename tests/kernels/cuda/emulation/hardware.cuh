// What src/octavo/kernels/native/cuda/hardware.cuh has the GPU do, in plain C++.
#pragma once

#include <cmath>

#include "machine.h"

namespace octavo {

// A GPU faults where an address is no multiple of what is loaded from it.
template <class Words>
inline Words load_once(const Words *address) {
    if (reinterpret_cast<size_t>(address) % sizeof(Words) != 0) {
        std::fprintf(stderr, "a load of %zu bytes from %p\n", sizeof(Words), static_cast<const void *>(address));
        std::abort();
    }
    return *address;
}

inline uint4 load_if(bool there, const uint4 *address) { return there ? load_once(address) : uint4{0, 0, 0, 0}; }

// Copies are done at once; what is read before it was awaited would not be noticed.
inline void copy_later(uint4 *target, const uint4 *source, bool there) { *target = load_if(there, source); }
inline void end_batch() {}
template <int newest>
inline void await_batches() {}

inline unsigned choose_bytes(unsigned low, unsigned high, unsigned selector) {
    const unsigned long long bytes = static_cast<unsigned long long>(high) << 32 | low;
    unsigned chosen = 0;
    for (int i = 0; i < 4; ++i) chosen |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
    return chosen;
}

inline unsigned mask_and_set(unsigned word, unsigned mask, unsigned bits) { return (word & mask) | bits; }

inline float float_of_half(unsigned short bits) {
    const int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    const float sign = bits >> 15 ? -1 : 1;
    if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24));
}

// Rounds to nearest, to even in the middle, as all conversions below.
inline unsigned short half_of_float(float value) {
    const unsigned short sign = std::signbit(value) ? 0x8000 : 0;
    const float magnitude = std::fabs(value);
    if (std::isnan(value)) return 0x7FFF;
    if (magnitude == 0) return sign;
    if (magnitude >= 65520) return sign | 0x7C00;
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    exponent = std::max(exponent, -13);  // what is smaller has no exponent of its own
    const unsigned steps = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 11 - exponent)));
    return sign | static_cast<unsigned short>((exponent + 13) * 1024 + steps);
}

inline unsigned short bfloat_of_float(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (std::isnan(value)) return 0x7FFF;
    return static_cast<unsigned short>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline unsigned pair_of_floats(float low, float high) {
    return half_of_float(low) | static_cast<unsigned>(half_of_float(high)) << 16;
}

inline unsigned multiply_add_pairs(unsigned left, unsigned right, unsigned addend) {
    const auto one = [&](int shift) {
        return std::fma(float_of_half(left >> shift), float_of_half(right >> shift), float_of_half(addend >> shift));
    };
    return pair_of_floats(one(0), one(16));
}

inline unsigned add_pairs(unsigned left, unsigned right) { return multiply_add_pairs(left, 0x3C003C00, right); }

inline float float_of_bfloat(unsigned bits) { return __uint_as_float(bits << 16); }

inline unsigned larger_pairs(unsigned left, unsigned right) {
    const auto one = [&](int shift) {
        return bfloat_of_float(std::fmax(float_of_bfloat(left >> shift), float_of_bfloat(right >> shift)));
    };
    return one(0) | static_cast<unsigned>(one(16)) << 16;
}

template <class Value>
inline Value from_lane(Value value, int lane) {
    return machine::gather_warp(value)[lane];
}

// `number` is the value of 16 bits.
template <class Number>
inline void multiply_by(Number number, float (&sums)[4], const unsigned (&left)[4], unsigned right_0, unsigned right_1) {
    struct Operands {
        unsigned left[4], right[2];
    };
    const auto all = machine::gather_warp(Operands{{left[0], left[1], left[2], left[3]}, {right_0, right_1}});
    const auto at = [&](unsigned pair, int column) { return double(number(pair >> 16 * (column % 2) & 0xFFFF)); };
    for (int i = 0; i < 4; ++i) {
        const int row = machine::lane() / 4 + i / 2 * 8, column = machine::lane() % 4 * 2 + i % 2;
        double sum = sums[i];
        for (int k = 0; k < 16; ++k) {
            const int quarter = k % 8 / 2;
            const Operands &of_row = all[row % 8 * 4 + quarter], &of_column = all[column * 4 + quarter];
            sum += at(of_row.left[k / 8 * 2 + row / 8], k) * at(of_column.right[k / 8], k);
        }
        sums[i] = static_cast<float>(sum);
    }
}

inline void multiply_tiles(float (&sums)[4], const unsigned (&left)[4], unsigned right_0, unsigned right_1) {
    multiply_by(float_of_half, sums, left, right_0, right_1);
}

inline void multiply_bfloat_tiles(float (&sums)[4], const unsigned (&left)[4], unsigned right_0, unsigned right_1) {
    multiply_by(float_of_bfloat, sums, left, right_0, right_1);
}

inline void release_dependents() {}
inline void wait_for_producers() {}

}  // namespace octavo
