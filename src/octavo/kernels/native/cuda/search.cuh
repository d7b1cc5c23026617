// The grid of each group of weights: scale and zero of the shrunken range with the least squared rounding error, weighted
// by column. The definition is quantization/grid.py; candidates are compared in float64, as there.
#pragma once

#include "hardware.cuh"

namespace octavo {

struct SearchArguments {
    const float *values;  // of row r and column c: values[r * row_stride + c * column_stride]
    long long row_stride;
    long long column_stride;
    const float *importance;  // [columns]
    float *scales;            // [groups, rows]
    float *zeros;             // [groups, rows]
    const float *shrinks;     // parts of the range to try, the whole first
    int shrink_count;
    int rows;
    int columns;
    int group_size;
    int largest_code;
    int smallest_zero;
    int middle;  // the zero of every group; -1 where each group has its own
};

constexpr float smallest_scale = 1.0f / 16384;  // the smallest normal half

struct Grid {
    float scale, zero;
};

// Block (x, y): rows from x * warps on, a warp each; group y.
struct Search {
    static constexpr int lanes = 32;
    static constexpr int warps = 8;
    static constexpr int threads = warps * lanes;

    const SearchArguments &given;
    const int row, first, last;

    __device__ static void run(const SearchArguments &given) {
        const int row = blockIdx.x * warps + threadIdx.x / lanes, group = blockIdx.y;
        wait_for_producers();
        if (row >= given.rows) return;
        const int first = group * given.group_size;
        const Grid best = Search{given, row, first, min(first + given.group_size, given.columns)}.best();
        if (threadIdx.x % lanes != 0) return;
        given.scales[static_cast<long long>(group) * given.rows + row] = best.scale;
        given.zeros[static_cast<long long>(group) * given.rows + row] = best.zero;
    }

    __device__ float value(int column) const {
        return given.values[row * given.row_stride + column * given.column_stride];
    }

    __device__ Grid best() const {
        float lowest = 0, highest = 0, tainted = 0;  // NaN where a value is not finite, else 0
        for (int column = first + threadIdx.x % lanes; column < last; column += lanes) {
            const float here = value(column);
            lowest = here < lowest ? here : lowest;
            highest = here > highest ? here : highest;
            tainted += here - here;
        }
        for (int distance = 1; distance < lanes; distance *= 2) {
            const float low = from_lane(lowest, threadIdx.x % lanes ^ distance);
            const float high = from_lane(highest, threadIdx.x % lanes ^ distance);
            lowest = low < lowest ? low : lowest;
            highest = high > highest ? high : highest;
            tainted += from_lane(tainted, threadIdx.x % lanes ^ distance);
        }
        if (given.middle >= 0) {
            highest = -lowest > highest ? -lowest : highest;
            lowest = -highest;
        }
        if (lowest == highest) lowest = -1, highest = 1;
        highest += tainted;
        Grid best = grid_of(lowest, highest);
        double least = error_of(best);
        for (int i = 1; i < given.shrink_count; ++i) {
            const Grid grid = grid_of(lowest * given.shrinks[i], highest * given.shrinks[i]);
            const double error = error_of(grid);
            if (error < least) best = grid, least = error;
        }
        return best;
    }

    // The grid whose codes span a range; see `_grid_of_range` there.
    __device__ Grid grid_of(float lowest, float highest) const {
        const float scale = as_stored((highest - lowest) / given.largest_code);
        if (given.middle >= 0) return {scale, static_cast<float>(given.middle)};
        const float zero = clamped(rintf(-lowest / scale));
        if (zero >= given.smallest_zero) return {scale, zero};
        const float raised = as_stored(highest / (given.largest_code - given.smallest_zero));
        return {raised, static_cast<float>(given.smallest_zero)};
    }

    // NaN, and what a half cannot hold, stay what they are: the host refuses them.
    __device__ static float as_stored(float scale) {
        return float_of_half(half_of_float(scale < smallest_scale ? smallest_scale : scale));
    }

    __device__ float clamped(float code) const {
        return code < 0 ? 0 : code > given.largest_code ? given.largest_code : code;
    }

    __device__ double error_of(const Grid &grid) const {
        double sum = 0;
        for (int column = first + threadIdx.x % lanes; column < last; column += lanes) {
            const float here = value(column);
            const float code = clamped(rintf(here / grid.scale) + grid.zero);
            const float error = (code - grid.zero) * grid.scale - here;
            sum += error * error * given.importance[column];
        }
        for (int distance = 1; distance < lanes; distance *= 2) {
            sum += from_lane(sum, threadIdx.x % lanes ^ distance);
        }
        return sum;
    }
};

}  // namespace octavo
