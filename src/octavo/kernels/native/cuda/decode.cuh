// y = x W^T for a few rows x: bound by reading W once, so the codes go from memory into registers and from there,
// as exact halves, into the matrix units. The weights are the left operand: its 16 rows are outputs, and the 8
// columns of the right one are rows of x, so that one row costs no more than eight.
#pragma once

#include "activations.cuh"

namespace octavo {

struct DecodeArguments {
    const uint4 *codes;
    const unsigned *scales;
    Rows rows;
    const unsigned short *residual;  // added to the outputs, and of their shape; may be null
    unsigned short *outputs;         // [rows, width], in the dtype of the rows; half as wide where gated
    int width;
    int steps;
    Offsets offsets;  // where one zero holds for all groups
};

// A block of `warps` warps computes `tiles` tiles of outputs. The warps share out the steps and add up at the end, in
// the order of warps: no atomics, the same bits every time. Outputs of a `gated` product are pairs (gate, up), of which
// silu(gate) * up is written.
template <int bits, bool zeros_differ, int scales_per_step, bool bfloats, bool gated, int row_groups, int tiles,
          int warps>
struct Decode {
    using Step = TileStep<bits, zeros_differ, scales_per_step>;
    static constexpr int threads = warps * warp_lanes;
    // So many blocks share a multiprocessor that 16 warps have loads on their way; more rows need more registers.
    static constexpr int resident_blocks = row_groups == 1 && warps < 16 ? 16 / warps : 1;
    static constexpr int block_outputs = tiles * tile_rows;
    static constexpr int block_rows = row_groups * rows_per_product;
    static constexpr int padded_outputs = block_outputs + 4;  // lanes that write together hit 32 different banks
    static constexpr int spans_per_scale = spans_per_step / scales_per_step;

    // Of a tile and a group of rows, a lane has the sums of outputs l / 4 (0, 1) and l / 4 + 8 (2, 3) for the rows
    // 2 (l % 4) (0, 2) and the next (1, 3).
    float totals[tiles][row_groups][4] = {};

    __device__ static void run(const DecodeArguments &given) {
        __shared__ float partial[warps][block_rows][padded_outputs];
        const int warp = threadIdx.x / warp_lanes, lane = threadIdx.x % warp_lanes;
        Streams streams(given, warp, lane);
        Step even[tiles], odd[tiles];
        if (warp < given.steps) streams.load(even);
        release_dependents();
        wait_for_producers();
        Decode sums;
        for (int step = warp; step < given.steps; step += 2 * warps) {
            sums.take(even, odd, streams, given, step, lane);
            if (step + warps < given.steps) sums.take(odd, even, streams, given, step + warps, lane);
        }
        sums.store(partial[warp], lane);
        __syncthreads();
        write_outputs(partial, given);
    }

    // What the warp reads, each at its next step.
    struct Streams {
        typename Step::Stream codes[tiles];
        RowsStream rows[row_groups];

        __device__ Streams(const DecodeArguments &given, int warp, int lane) {
            for (int tile = 0; tile < tiles; ++tile) {
                const long long before = (static_cast<long long>(blockIdx.x) * tiles + tile) * given.steps;
                codes[tile] = Step::Stream::at(given.codes, given.scales, before + warp, lane);
            }
            for (int group = 0; group < row_groups; ++group) rows[group] = RowsStream::at(given.rows, group, warp, lane);
        }

        __device__ void load(Step (&steps)[tiles]) {
            for (int tile = 0; tile < tiles; ++tile) {
                steps[tile].load(codes[tile]);
                codes[tile].advance(warps);
            }
        }

        __device__ void load(RowsStep (&steps)[row_groups]) {
            for (int group = 0; group < row_groups; ++group) {
                steps[group].load(rows[group]);
                rows[group].advance(warps);
            }
        }
    };

    // Adds the step `now`; the loads of the next one are on their way by then.
    __device__ void take(const Step (&now)[tiles], Step (&next)[tiles], Streams &streams,
                         const DecodeArguments &given, int step, int lane) {
        RowsStep rows[row_groups];
        streams.load(rows);
        if (step + warps < given.steps) streams.load(next);
        accumulate(now, rows, given.offsets, lane);
    }

    __device__ void accumulate(const Step (&steps)[tiles], RowsStep (&rows)[row_groups], const Offsets &everywhere,
                               int lane) {
        float2 factors[row_groups];
        for (int group = 0; group < row_groups; ++group) {
            factors[group] = bfloats ? rows[group].bfloats_to_halves(lane) : float2{1, 1};
        }
        for (int scale = 0; scale < scales_per_step; ++scale) {
            float sums[tiles][row_groups][4] = {};
            for (int span = scale * spans_per_scale; span < (scale + 1) * spans_per_scale; ++span) {
                for (int tile = 0; tile < tiles; ++tile) {
                    multiply_span(sums[tile], steps[tile], span, steps[tile].offsets(scale, everywhere), rows);
                }
            }
            for (int tile = 0; tile < tiles; ++tile) {
                const float upper = steps[tile].upper_scale(scale), lower = steps[tile].lower_scale(scale);
                for (int group = 0; group < row_groups; ++group) {
                    add_scaled(totals[tile][group], sums[tile][group], upper, lower, factors[group]);
                }
            }
        }
    }

    __device__ static void multiply_span(float (&sums)[row_groups][4], const Step &step, int span,
                                         const Offsets &offsets, const RowsStep (&rows)[row_groups]) {
        for (int product = 0; product < products_per_span; ++product) {
            unsigned codes[4];
            Codes<bits>::unpack(step.codes, span, product, offsets, codes);
            for (int group = 0; group < row_groups; ++group) {
                const uint4 &row = rows[group].spans[span];
                multiply_tiles(sums[group], codes, product == 0 ? row.x : row.z, product == 0 ? row.y : row.w);
            }
        }
    }

    __device__ static void add_scaled(float (&totals)[4], const float (&sums)[4], float upper, float lower,
                                      const float2 &factors) {
        totals[0] += upper * factors.x * sums[0];
        totals[1] += upper * factors.y * sums[1];
        totals[2] += lower * factors.x * sums[2];
        totals[3] += lower * factors.y * sums[3];
    }

    __device__ void store(float (&partial)[block_rows][padded_outputs], int lane) const {
        for (int tile = 0; tile < tiles; ++tile) {
            for (int group = 0; group < row_groups; ++group) {
                for (int i = 0; i < 4; ++i) {
                    const int row = group * rows_per_product + lane % 4 * 2 + i % 2;
                    partial[row][tile * tile_rows + lane / 4 + i / 2 * 8] = totals[tile][group][i];
                }
            }
        }
    }

    __device__ static void write_outputs(const float (&partial)[warps][block_rows][padded_outputs],
                                         const DecodeArguments &given) {
        constexpr int results = gated ? block_outputs / 2 : block_outputs;
        const int width = gated ? given.width / 2 : given.width;
        for (int i = threadIdx.x; i < given.rows.count * results; i += threads) {
            const int row = i / results, within = i % results;
            const int result = blockIdx.x * results + within;
            if (result >= width) continue;
            const long long at = static_cast<long long>(row) * width + result;
            float value = gated ? silu(total(partial, row, 2 * within)) * total(partial, row, 2 * within + 1)
                                : total(partial, row, within);
            if (given.residual != nullptr) value += widened(given.residual[at]);
            given.outputs[at] = bfloats ? bfloat_of_float(value) : half_of_float(value);
        }
    }

    __device__ static float total(const float (&partial)[warps][block_rows][padded_outputs], int row, int output) {
        float sum = 0;
        for (int warp = 0; warp < warps; ++warp) sum += partial[warp][row][output];
        return sum;
    }

    __device__ static float silu(float value) { return value / (1 + expf(-value)); }

    __device__ static float widened(unsigned short number) {
        return bfloats ? __uint_as_float(static_cast<unsigned>(number) << 16) : float_of_half(number);
    }
};

}  // namespace octavo
