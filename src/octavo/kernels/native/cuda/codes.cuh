// How codes lie in memory, and how they become operands of the matrix units.
//
// Columns are put into slots so that each group fills whole stretches of slots. Rows are taken in tiles of 16, slots
// in steps of 128 and spans of 32. Of a span, lane l of a warp holds slots 8 (l % 4) … 8 (l % 4) + 7 of the rows
// l / 4 ("upper") and l / 4 + 8 ("lower"): two products of 16 × 16 codes, in each of which it holds four slots. The
// matrix units sum over slots, so their order is ours to choose; this one lets a lane load its activations as 16
// neighbouring bytes. `layout.py` writes what is read here.
#pragma once

#include "hardware.cuh"

namespace octavo {

constexpr int warp_lanes = 32;
constexpr int tile_rows = 16;
constexpr int step_slots = 128;
constexpr int spans_per_step = 4;
constexpr int products_per_span = 2;

// Minus zero of the upper and the lower row as pairs of halves, offset as `unpack` needs it.
struct Offsets {
    unsigned upper, lower;
};

// A byte under the exponent of 1024 is the half 1024 + byte; one subtraction leaves code - zero, exactly.
constexpr unsigned exponent_of_1024 = 0x64006400;

template <int bits>
struct Codes;

template <>
struct Codes<8> {
    static constexpr int loads_per_step = 4;  // 16 bytes each

    // Operands of a product: bytes 0 and 1 of a word belong to the upper row, 2 and 3 to the lower.
    __device__ static void unpack(const uint4 (&step)[loads_per_step], int span, int product, const Offsets &offsets,
                                  unsigned (&operand)[4]) {
        const unsigned near = product == 0 ? step[span].x : step[span].z;
        const unsigned far = product == 0 ? step[span].y : step[span].w;
        operand[0] = add_pairs(choose_bytes(near, exponent_of_1024, 0x7170), offsets.upper);
        operand[1] = add_pairs(choose_bytes(near, exponent_of_1024, 0x7372), offsets.lower);
        operand[2] = add_pairs(choose_bytes(far, exponent_of_1024, 0x7170), offsets.upper);
        operand[3] = add_pairs(choose_bytes(far, exponent_of_1024, 0x7372), offsets.lower);
    }
};

template <>
struct Codes<4> {
    static constexpr int loads_per_step = 2;

    // A word holds the eight codes of a product; in a byte, the low four bits belong to the upper row. The high four
    // need no shift: they are the half 1024 + 16 code, and a sixteenth of it is 64 + code.
    __device__ static void unpack(const uint4 (&step)[loads_per_step], int span, int product, const Offsets &offsets,
                                  unsigned (&operand)[4]) {
        constexpr unsigned low = 0x000F000F, high = 0x00F000F0, sixteenth = 0x2C002C00;
        const uint4 &load = step[span / 2];
        const unsigned near = span % 2 == 0 ? (product == 0 ? load.x : load.y) : (product == 0 ? load.z : load.w);
        const unsigned far = near >> 8;
        operand[0] = add_pairs(mask_and_set(near, low, exponent_of_1024), offsets.upper);
        operand[1] = multiply_add_pairs(mask_and_set(near, high, exponent_of_1024), sixteenth, offsets.lower);
        operand[2] = add_pairs(mask_and_set(far, low, exponent_of_1024), offsets.upper);
        operand[3] = multiply_add_pairs(mask_and_set(far, high, exponent_of_1024), sixteenth, offsets.lower);
    }
};

// Where a lane finds its part of a step of a tile. Beside the codes there is, for each stretch of slots that share a
// scale, a word with the scales of the lane's two rows and, where zeros differ between groups, one with their offsets.
template <int bits, bool zeros_differ, int scales_per_step>
struct TileStream {
    static constexpr int words_per_scale = zeros_differ ? 2 : 1;
    static constexpr int scale_words = scales_per_step * words_per_scale;
    static constexpr int loads = Codes<bits>::loads_per_step;
    static constexpr int codes_per_step = loads * warp_lanes;                // of 16 bytes
    static constexpr int scales_of_step = tile_rows / 2 * scale_words;       // of 4 bytes

    const uint4 *codes;
    const unsigned *scales;

    // `step` counts the steps of all tiles before.
    __device__ static TileStream at(const uint4 *codes, const unsigned *scales, long long step, int lane) {
        return {codes + step * codes_per_step + lane, scales + step * scales_of_step + lane / 4 * scale_words};
    }

    __device__ void advance(int steps) {
        codes += steps * codes_per_step;
        scales += steps * scales_of_step;
    }
};

// What a lane holds of a step of a tile.
template <int bits, bool zeros_differ, int scales_per_step>
struct TileStep {
    using Stream = TileStream<bits, zeros_differ, scales_per_step>;
    static constexpr int words_per_scale = Stream::words_per_scale;
    static constexpr int scale_words = Stream::scale_words;
    static constexpr int loads = Stream::loads;

    uint4 codes[loads];
    unsigned scales[scale_words];

    __device__ void load(const Stream &from) {
        for (int i = 0; i < loads; ++i) codes[i] = load_once(from.codes + i * warp_lanes);
        if constexpr (scale_words == 1) {
            scales[0] = load_once(from.scales);
        } else if constexpr (scale_words == 2) {
            const uint2 pair = load_once(reinterpret_cast<const uint2 *>(from.scales));
            scales[0] = pair.x, scales[1] = pair.y;
        } else {
            for (int i = 0; i < scale_words; i += 4) {
                const uint4 four = load_once(reinterpret_cast<const uint4 *>(from.scales + i));
                scales[i] = four.x, scales[i + 1] = four.y, scales[i + 2] = four.z, scales[i + 3] = four.w;
            }
        }
    }

    __device__ float upper_scale(int scale) const { return float_of_half(scales[scale * words_per_scale] & 0xFFFF); }

    __device__ float lower_scale(int scale) const { return float_of_half(scales[scale * words_per_scale] >> 16); }

    __device__ Offsets offsets(int scale, const Offsets &everywhere) const {
        if constexpr (!zeros_differ) return everywhere;
        const unsigned both = scales[scale * words_per_scale + (zeros_differ ? 1 : 0)];
        return {choose_bytes(both, 0, 0x1010), choose_bytes(both, 0, 0x3232)};
    }
};

}  // namespace octavo
