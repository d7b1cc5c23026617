// The sum of x^T x over calibration inputs, which is GPTQ's Hessian, in whole numbers: the same bits at every
// instruction set and number of threads.
//
// The tokens are taken 128 at a time, and in such a chunk each column is rounded to integers of 12 bits and a sign,
// with a scale of its own. As a vector over the chunk's tokens it is then off by some 0.0002 of its length, and by less
// than 0.0014 whatever it holds; bfloat16 would cost 0.0017. Products of integers are exact, and twice as fast as those
// of floats.
#pragma once

#include <cstdint>

#include "isa.h"
#include "memory.h"
#include "pool.h"

namespace octavo {

// The Gram matrix is cut into panels of this many columns, and of each panel the rows down to its diagonal are kept.
constexpr int gram_panel = 64;

constexpr int gram_tokens = 128;           // of a chunk
constexpr int largest_gram_code = 4095;    // gram_tokens products of two are less than 2^31

// Adds inputs^T inputs to `total` [columns][columns], in the panels on and above the diagonal; below it `total` is
// left as it is. `inputs` is [tokens][columns]. Columns that hold Inf or NaN make their rows and columns NaN.
void add_gram(float* total, const float* inputs, std::int64_t tokens, std::int64_t columns, Pool& pool, Isa isa);

// Inputs in whole numbers.
struct GramCodes {
    std::int64_t tokens, columns;
    Buffer<std::uint32_t> pairs;  // [chunk][panel][gram_tokens / 2][gram_panel], two tokens of a column in each
    Buffer<float> scales;         // [chunk][panel][gram_panel]

    std::int64_t panels() const { return (columns + gram_panel - 1) / gram_panel; }
    std::int64_t chunks() const { return (tokens + gram_tokens - 1) / gram_tokens; }
    std::int64_t tokens_of(std::int64_t chunk) const {
        const std::int64_t left = tokens - chunk * gram_tokens;
        return left < gram_tokens ? left : gram_tokens;
    }
    std::int64_t columns_of(std::int64_t panel) const {
        const std::int64_t left = columns - panel * gram_panel;
        return left < gram_panel ? left : gram_panel;
    }
    std::int64_t first_pair(std::int64_t chunk, std::int64_t panel) const {
        return (chunk * panels() + panel) * (gram_tokens / 2 * gram_panel);
    }
    std::int64_t first_scale(std::int64_t chunk, std::int64_t panel) const {
        return (chunk * panels() + panel) * gram_panel;
    }
};

// What each instruction set brings; both are serial.
struct GramKernels {
    void (*encode)(const float* inputs, Range panels, GramCodes& codes);
    // The part `tiles` of the Gram matrix; tile t(t + 1) / 2 + s, s <= t, has the rows of panel s in panel t.
    void (*add)(float* total, const GramCodes& codes, Range tiles);
};

// Throws std::invalid_argument where this machine cannot run `isa`.
const GramKernels& gram_kernels(Isa isa);

}  // namespace octavo
