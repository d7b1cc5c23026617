// W as plain numbers, for products of so many rows that the matrix units are the limit: those are torch's.
#pragma once

#include "codes.cuh"

namespace octavo {

struct ExpandArguments {
    const uint4 *codes;
    const unsigned *scales;
    void *weights;  // [outputs, width] halves, bfloats or floats
    int outputs;
    int width;  // slots that are written, from the first on
    int steps;
    Offsets offsets;
};

enum class Number { half, bfloat, single };

// A warp expands one step of one tile.
template <int bits, bool zeros_differ, int scales_per_step, Number number>
struct Expand {
    using Step = TileStep<bits, zeros_differ, scales_per_step>;
    static constexpr int warps = 8;
    static constexpr int threads = warps * warp_lanes;
    static constexpr int spans_per_scale = spans_per_step / scales_per_step;
    static constexpr int slots_of_lane = 8;

    // Block (x, y): steps from x * warps on, of tile y.
    __device__ static void run(const ExpandArguments &given) {
        release_dependents();
        const int lane = threadIdx.x % warp_lanes;
        const int step = blockIdx.x * warps + threadIdx.x / warp_lanes;
        if (step < given.steps) {
            Step codes;
            const long long before = static_cast<long long>(blockIdx.y) * given.steps;
            codes.load(Step::Stream::at(given.codes, given.scales, before + step, lane));
            wait_for_producers();
#pragma unroll
            for (int span = 0; span < spans_per_step; ++span) {
                write_span(given, codes, span, step * step_slots + span * 32 + lane % 4 * slots_of_lane, lane);
            }
        } else {
            wait_for_producers();
        }
    }

    __device__ static void write_span(const ExpandArguments &given, const Step &step, int span, int slot, int lane) {
        const int scale = span / spans_per_scale;
        const Offsets offsets = step.offsets(scale, given.offsets);
        const int output = blockIdx.y * tile_rows + lane / 4;
        float upper[slots_of_lane], lower[slots_of_lane];
        for (int product = 0; product < products_per_span; ++product) {
            unsigned pairs[4];
            Codes<bits>::unpack(step.codes, span, product, offsets, pairs);
            for (int i = 0; i < 4; ++i) {
                float(&row)[slots_of_lane] = i % 2 == 0 ? upper : lower;
                const int at = product * 4 + i / 2 * 2;
                row[at] = float_of_half(pairs[i] & 0xFFFF);
                row[at + 1] = float_of_half(pairs[i] >> 16);
            }
        }
        write_row(given, output, slot, upper, step.upper_scale(scale));
        write_row(given, output + tile_rows / 2, slot, lower, step.lower_scale(scale));
    }

    __device__ static void write_row(const ExpandArguments &given, int output, int slot,
                                     const float (&codes)[slots_of_lane], float scale) {
        if (output >= given.outputs) return;
        const long long start = static_cast<long long>(output) * given.width + slot;
        if (number != Number::single && given.width % slots_of_lane == 0) {
            if (slot >= given.width) return;
            uint4 packed;
            packed.x = pair(codes[0] * scale, codes[1] * scale);
            packed.y = pair(codes[2] * scale, codes[3] * scale);
            packed.z = pair(codes[4] * scale, codes[5] * scale);
            packed.w = pair(codes[6] * scale, codes[7] * scale);
            reinterpret_cast<uint4 *>(given.weights)[start / slots_of_lane] = packed;
            return;
        }
        for (int i = 0; i < slots_of_lane && slot + i < given.width; ++i) {
            write(given.weights, start + i, codes[i] * scale);
        }
    }

    __device__ static unsigned pair(float low, float high) {
        if (number == Number::half) return pair_of_floats(low, high);
        return bfloat_of_float(low) | static_cast<unsigned>(bfloat_of_float(high)) << 16;
    }

    __device__ static void write(void *weights, long long index, float value) {
        if (number == Number::single) {
            static_cast<float *>(weights)[index] = value;
        } else {
            static_cast<unsigned short *>(weights)[index] =
                number == Number::half ? half_of_float(value) : bfloat_of_float(value);
        }
    }
};

}  // namespace octavo
