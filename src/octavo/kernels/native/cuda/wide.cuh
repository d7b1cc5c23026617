// y = x W^T for some dozens of rows x: still bound by reading W once, as long as the rows are not read again for every
// tile of outputs. So the warps of a block have tiles of their own, and share the rows, which come into shared memory
// step by step. Sums are left in float32, for the kernel that needs them to add up.
#pragma once

#include "activations.cuh"

namespace octavo {

struct WideArguments {
    const uint4 *codes;
    const unsigned *scales;
    Rows rows;
    float *sums;  // [splits, rows, width]
    int width;
    int steps;
    int tiles;   // that there are codes of
    int row_blocks;
    Offsets offsets;
};

// Block (x, y): split y of the steps, x % row_blocks of the rows, x / row_blocks of the tiles: blocks that read the same
// codes run side by side.
template <int bits, bool zeros_differ, int scales_per_step, bool bfloats, int row_groups, int tiles, int warps>
struct Wide {
    using Step = TileStep<bits, zeros_differ, scales_per_step>;
    using Stream = typename Step::Stream;
    static constexpr int threads = warps * warp_lanes;
    static constexpr int resident_blocks = 1;  // sums, codes and rows of two tiles take most of the registers
    static constexpr int block_rows = row_groups * rows_per_product;
    static constexpr int spans_per_scale = spans_per_step / scales_per_step;
    static constexpr int quarters = 4;  // of the 32 slots of a span, 16 bytes each
    static constexpr int stages = 3;

    // The rows of a step, as lanes read them: eight rows of a span are 512 bytes in a row.
    using Held = uint4[spans_per_step][block_rows][quarters];

    const WideArguments &given;
    const int lane, first_row, last_step;
    Stream codes[tiles];
    float totals[tiles][row_groups][4];  // as in `Decode`

    // `tile` is the first of the warp's; one that is not there is read as the last, and not written.
    __device__ Wide(const WideArguments &given, int tile, int first_row, int first_step, int last_step)
        : given(given), lane(threadIdx.x % warp_lanes), first_row(first_row), last_step(last_step), totals{} {
        for (int i = 0; i < tiles; ++i) {
            const long long before = static_cast<long long>(min(tile + i, given.tiles - 1)) * given.steps;
            codes[i] = Stream::at(given.codes, given.scales, before + first_step, lane);
        }
    }

    __device__ static void run(const WideArguments &given) {
        __shared__ Held held[stages];
        const int split = blockIdx.y, splits = gridDim.y;
        const int tile = (blockIdx.x / given.row_blocks * warps + threadIdx.x / warp_lanes) * tiles;
        const int first = given.steps * split / splits, last = given.steps * (split + 1) / splits;
        Wide wide(given, tile, blockIdx.x % given.row_blocks * block_rows, first, last);
        Step even[tiles], odd[tiles];
        wide.load_next(even, first);
        release_dependents();
        wait_for_producers();
        for (int stage = 0; stage < stages - 1; ++stage) wide.copy_rows(held[stage], first + stage);
        int stage = 0;
        for (int step = first; step < last; step += 2) {
            wide.take(even, odd, held, stage, step);
            if (step + 1 < last) wide.take(odd, even, held, stage, step + 1);
        }
        wide.store(split, tile);
    }

    // The codes of a step, if there is one.
    __device__ void load_next(Step (&next)[tiles], int step) {
        if (step >= last_step) return;
        for (int i = 0; i < tiles; ++i) {
            next[i].load(codes[i]);
            codes[i].advance(1);
        }
    }

    // Starts a batch of copies, empty behind the last step.
    __device__ void copy_rows(Held &target, int step) {
        if (step < last_step) {
            for (int i = threadIdx.x; i < spans_per_step * block_rows * quarters; i += threads) {
                const int quarter = i % quarters, row = i / quarters % block_rows, span = i / quarters / block_rows;
                const int column = step * step_slots + span * 32 + quarter * 8, number = first_row + row;
                const bool there = number < given.rows.count && column < given.rows.columns;
                const long long at = there ? static_cast<long long>(number) * given.rows.stride + column : 0;
                copy_later(&target[span][row][quarter], reinterpret_cast<const uint4 *>(given.rows.values + at),
                           there);
            }
        }
        end_batch();
    }

    // Adds the step `now`; the codes of the next one and the rows of the one after it are on their way by then.
    __device__ void take(const Step (&now)[tiles], Step (&next)[tiles], Held (&held)[stages], int &stage, int step) {
        await_batches<stages - 2>();
        __syncthreads();  // the rows of this step are there, and those of the step before are done with
        copy_rows(held[(stage + stages - 1) % stages], step + stages - 1);
        load_next(next, step + 1);
        accumulate(now, held[stage]);
        stage = (stage + 1) % stages;
    }

    __device__ void accumulate(const Step (&steps)[tiles], const Held &rows) {
#pragma unroll
        for (int scale = 0; scale < scales_per_step; ++scale) {
            float sums[tiles][row_groups][4] = {};
#pragma unroll
            for (int span = scale * spans_per_scale; span < (scale + 1) * spans_per_scale; ++span) {
                multiply_span(sums, steps, span, scale, rows[span]);
            }
            for (int i = 0; i < tiles; ++i) {
                const float upper = steps[i].upper_scale(scale), lower = steps[i].lower_scale(scale);
                for (int group = 0; group < row_groups; ++group) {
                    add_scaled(totals[i][group], sums[i][group], upper, lower);
                }
            }
        }
    }

    __device__ void multiply_span(float (&sums)[tiles][row_groups][4], const Step (&steps)[tiles], int span, int scale,
                                  const uint4 (&rows)[block_rows][quarters]) {
        uint4 right[row_groups];
        for (int group = 0; group < row_groups; ++group) {
            right[group] = rows[group * rows_per_product + lane / 4][lane % 4];
        }
        for (int i = 0; i < tiles; ++i) {
            const Offsets offsets = steps[i].offsets(scale, given.offsets);
            unsigned near[4], far[4];
            unpack(steps[i], span, 0, offsets, near);
            unpack(steps[i], span, 1, offsets, far);
            for (int group = 0; group < row_groups; ++group) {
                multiply(sums[i][group], near, right[group].x, right[group].y);
                multiply(sums[i][group], far, right[group].z, right[group].w);
            }
        }
    }

    __device__ static void add_scaled(float (&totals)[4], const float (&sums)[4], float upper, float lower) {
        for (int i = 0; i < 4; ++i) totals[i] += (i < 2 ? upper : lower) * sums[i];
    }

    __device__ static void unpack(const Step &step, int span, int product, const Offsets &offsets,
                                  unsigned (&operand)[4]) {
        Codes<bits>::unpack(step.codes, span, product, offsets, operand);
        if (!bfloats) return;
        for (unsigned &pair : operand) {  // whole numbers below 256 lose nothing with their lower halves
            const float low = float_of_half(pair & 0xFFFF), high = float_of_half(pair >> 16);
            pair = choose_bytes(__float_as_uint(low), __float_as_uint(high), 0x7632);
        }
    }

    __device__ static void multiply(float (&sums)[4], const unsigned (&left)[4], unsigned right_0, unsigned right_1) {
        if (bfloats) {
            multiply_bfloat_tiles(sums, left, right_0, right_1);
        } else {
            multiply_tiles(sums, left, right_0, right_1);
        }
    }

    __device__ void store(int split, int tile) const {
        const long long before = static_cast<long long>(split) * given.rows.count;
        for (int i = 0; i < tiles * row_groups * 4; ++i) {
            const int which = i / 4 / row_groups, group = i / 4 % row_groups, place = i % 4;
            const int row = first_row + group * rows_per_product + lane % 4 * 2 + place % 2;
            const int output = (tile + which) * tile_rows + lane / 4 + place / 2 * 8;
            if (row >= given.rows.count || output >= given.width) continue;
            given.sums[(before + row) * given.width + output] = totals[which][group][place];
        }
    }
};

}  // namespace octavo
