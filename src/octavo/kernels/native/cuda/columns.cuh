// Codes of a block of columns, one after another, each column's error moved to those of the block that are left. A
// thread has a row of the weight to itself. The definition is quantization/columns.py, which also moves the errors on to
// the columns behind the block.
#pragma once

#include "hardware.cuh"

namespace octavo {

struct ColumnsArguments {
    float *remaining;     // [columns, rows], columns in the order of solving
    const float *factor;  // [columns, columns], the upper R of the inverse Hessian R^T R
    const int *groups;    // [columns]
    const float *scales;  // [groups, rows]
    const float *zeros;   // [groups, rows]
    unsigned char *codes;  // [columns, rows]
    float *errors;         // [columns of the block, rows]
    int rows;
    int columns;
    int first;  // of the block
    int count;  // at most `most_columns`
    int largest_code;
};

// Columns are solved in registers, `together` at a time; the rest of the block follows when these are done.
struct Columns {
    static constexpr int threads = 64;
    static constexpr int most_columns = 128;
    static constexpr int together = 32;

    const ColumnsArguments &given;
    const int row;

    __device__ static void run(const ColumnsArguments &given) {
        __shared__ float factors[most_columns][together];  // of later and earlier columns of the block
        wait_for_producers();
        const Columns columns{given, static_cast<int>(blockIdx.x * threads + threadIdx.x)};
        for (int base = 0; base < given.count; base += together) {
            __syncthreads();
            columns.load_factors(factors, base);
            __syncthreads();
            if (columns.row < given.rows) columns.solve(factors, base);
        }
    }

    __device__ void load_factors(float (&factors)[most_columns][together], int base) const {
        for (int i = threadIdx.x; i < together * most_columns; i += threads) {
            const int earlier = base + i / most_columns, later = i % most_columns;
            const bool there = earlier < given.count && later < given.count && later >= base;
            const long long at = static_cast<long long>(given.first + earlier) * given.columns + given.first + later;
            factors[later][i / most_columns] = there ? given.factor[at] : 0;
        }
    }

    __device__ long long place(int column) const {
        return static_cast<long long>(given.first + column) * given.rows + row;
    }

    __device__ void solve(const float (&factors)[most_columns][together], int base) const {
        float values[together], scales[together], zeros[together], errors[together];
#pragma unroll
        for (int i = 0; i < together; ++i) {
            if (base + i >= given.count) break;
            const long long grid = static_cast<long long>(given.groups[given.first + base + i]) * given.rows + row;
            values[i] = given.remaining[place(base + i)];
            scales[i] = given.scales[grid], zeros[i] = given.zeros[grid];
        }
#pragma unroll
        for (int i = 0; i < together; ++i) {
            errors[i] = 0;
            if (base + i >= given.count) continue;
            const float code = clamped(rintf(values[i] / scales[i]) + zeros[i]);
            const float rounded = (code - zeros[i]) * scales[i];
            errors[i] = (values[i] - rounded) / factors[base + i][i];
            given.codes[place(base + i)] = static_cast<unsigned char>(code);
            given.errors[static_cast<long long>(base + i) * given.rows + row] = errors[i];
#pragma unroll
            for (int later = i + 1; later < together; ++later) values[later] -= factors[base + later][i] * errors[i];
        }
        for (int column = base + together; column < given.count; ++column) {
            float value = given.remaining[place(column)];
#pragma unroll
            for (int i = 0; i < together; ++i) value -= factors[column][i] * errors[i];
            given.remaining[place(column)] = value;
        }
    }

    // What is not a number becomes the code zero; the host refuses its scale.
    __device__ float clamped(float code) const {
        return code > 0 ? (code < given.largest_code ? code : given.largest_code) : 0;
    }
};

}  // namespace octavo
