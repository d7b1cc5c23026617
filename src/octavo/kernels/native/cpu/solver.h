// GPTQ's codes of a weight, column after column (docs/decisions/0006-native-library.md says how instruction sets are
// chosen). The same bits at every instruction set and number of threads.
#pragma once

#include <cstdint>

#include "isa.h"
#include "pool.h"

namespace octavo {

// The grid of a group of weights, and the search for it: quantization/grid.py is the definition.
struct GridRule {
    float largest_code;
    float middle;         // the zero of symmetric grids
    float smallest_zero;  // that the file can store
    bool symmetric;
    const float* shrinks;  // parts of the range to try, the whole first
    std::int64_t shrink_count;
};

// A weight and what its solution depends on: quantization/gptq.py is the definition.
struct SolverInput {
    const float* weight;        // [rows][columns]
    const float* factor;        // [columns][columns], upper, in solving order
    const float* importance;    // [columns], as stored
    const std::int64_t* order;  // [columns]: stored column of each position in solving order
    std::int64_t rows, columns, group_size;
    bool static_groups;  // groups as stored, their grids fixed before the first column; else in solving order
    GridRule rule;
};

struct SolverOutput {
    std::uint8_t* codes;  // [rows][columns], as stored
    float* scales;        // [rows][groups]; beyond the range of fp16 where a weight is
    float* zeros;
};

void solve_columns(const SolverInput& input, const SolverOutput& output, Pool& pool, Isa isa);

// Rows are independent of each other; they are solved in strips of this many.
constexpr int strip_rows = 64;

// What each instruction set brings; it is serial.
struct SolverKernels {
    void (*solve_strip)(const SolverInput& input, const SolverOutput& output, std::int64_t strip);
};

// Throws std::invalid_argument where this machine cannot run `isa`.
const SolverKernels& solver_kernels(Isa isa);

}  // namespace octavo
