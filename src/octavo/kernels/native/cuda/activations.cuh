// Rows of activations as right operands of the matrix units, which take halves.
//
// Halves are taken as they are. Bfloats reach further than halves do, so the 128 of a row in a step are first divided
// by a power of two that brings their largest below 2^15; what a half cannot hold then is smaller than the largest by
// 2^-32 and more.
#pragma once

#include "codes.cuh"

namespace octavo {

constexpr int rows_per_product = 8;
constexpr unsigned exponent_of_one = 127;  // biased, of a bfloat or float

struct Rows {
    const unsigned short *values;  // [count, stride] halves or bfloats; each row starts at a multiple of 16 bytes
    int count;
    int columns;  // what lies beyond counts as zero
    int stride;
};

// Where a lane finds its slots of eight rows in a step: those of `Codes`, of row l / 4.
struct RowsStream {
    const unsigned short *values;
    int left;  // columns from there to the end of the row; none where there is no row

    __device__ static RowsStream at(const Rows &rows, int group, int step, int lane) {
        const int row = group * rows_per_product + lane / 4, column = step * step_slots + lane % 4 * 8;
        return {rows.values + static_cast<long long>(row) * rows.stride + column,
                row < rows.count ? rows.columns - column : 0};
    }

    __device__ void advance(int steps) {
        values += steps * step_slots;
        left -= steps * step_slots;
    }
};

// What a lane holds of eight rows in a step.
struct RowsStep {
    uint4 spans[spans_per_step];

    __device__ void load(const RowsStream &from) {
        for (int span = 0; span < spans_per_step; ++span) {
            spans[span] = load_if(span * 32 < from.left, reinterpret_cast<const uint4 *>(from.values + span * 32));
        }
    }

    // Bfloats to halves; what the two rows that this lane has sums of were divided by.
    __device__ float2 bfloats_to_halves(int lane) {
        const unsigned exponent = max(largest(lane) >> 7, 15u) - 14;  // biased; the least that is a float's is 1
        const float inverse = power_of_two(2 * exponent_of_one - exponent);
        for (int span = 0; span < spans_per_step; ++span) {
            uint4 &four = spans[span];
            four = {halves(four.x, inverse), halves(four.y, inverse),
                    halves(four.z, inverse), halves(four.w, inverse)};
        }
        const float factor = power_of_two(exponent);
        return {from_lane(factor, lane % 4 * 8), from_lane(factor, lane % 4 * 8 + 4)};
    }

    // Bits of the largest magnitude in this lane's row.
    __device__ unsigned largest(int lane) const {
        constexpr unsigned magnitudes = 0x7FFF7FFF;
        unsigned pair = 0;
        for (int span = 0; span < spans_per_step; ++span) {
            const uint4 &four = spans[span];
            pair = larger_pairs(pair, larger_pairs(four.x & magnitudes, four.y & magnitudes));
            pair = larger_pairs(pair, larger_pairs(four.z & magnitudes, four.w & magnitudes));
        }
        pair = larger_pairs(pair, from_lane(pair, lane ^ 1));
        pair = larger_pairs(pair, from_lane(pair, lane ^ 2));
        return max(pair & 0xFFFF, pair >> 16);
    }

    __device__ static float power_of_two(unsigned biased_exponent) { return __uint_as_float(biased_exponent << 23); }

    __device__ static unsigned halves(unsigned bfloats, float factor) {
        return pair_of_floats(__uint_as_float(bfloats << 16) * factor,
                              __uint_as_float(bfloats & 0xFFFF0000) * factor);
    }
};

}  // namespace octavo
