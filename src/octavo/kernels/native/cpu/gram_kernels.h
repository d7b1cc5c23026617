// The kernels of gram.h over the lanes of an instruction set. Included by one source per set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "gram.h"
#include "integer_lanes.h"
#include "matrix.h"
#include "rounding.h"
#include "unrolled.h"

namespace octavo {
namespace {

constexpr int pairs_at_once = 4;

// Pairs that hold so many tokens, and zeros behind them.
inline std::int64_t pairs_of(std::int64_t tokens) {
    return (tokens + 2 * pairs_at_once - 1) / (2 * pairs_at_once) * pairs_at_once;
}

// Sixteen columns of a chunk, of which `count` exist; `inputs` is their first token.
template <class Lanes>
void encode_columns(RowsAt<const float> inputs, int count, std::int64_t tokens, std::uint32_t* pairs, float* scales) {
    using Floats = typename Lanes::Floats;
    const Floats zero = Floats::broadcast(0.0f);
    Floats magnitude = zero, vanishing = zero;
    for (std::int64_t token = 0; token < tokens; ++token) {
        const Floats values = Floats::load_first(inputs[token], count);
        magnitude = larger(larger(values, zero - values), magnitude);
        vanishing = vanishing + zero * values;  // NaN where a value is not finite, which `larger` may lose
    }
    float largest[lane_count], factors[lane_count];
    (magnitude + vanishing).store(largest);
    for (int i = 0; i < lane_count; ++i) {
        const Rounding rounding = rounding_for(largest[i], largest_gram_code);
        factors[i] = rounding.factor;
        scales[i] = rounding.scale;
    }
    const Floats factor = Floats::load(factors), limit = Floats::broadcast(static_cast<float>(largest_gram_code));
    const auto rounded = [&](std::int64_t token) {
        if (token >= tokens) return Lanes::broadcast(0);
        // NaN is no integer; its column has a scale that says so.
        return Lanes::round(smaller(Floats::load_first(inputs[token], count) * factor, limit));
    };
    for (std::int64_t pair = 0; pair < pairs_of(tokens); ++pair) {
        Lanes::store(pairs + pair * gram_panel, Lanes::pair(rounded(2 * pair), rounded(2 * pair + 1)));
    }
}

template <class Lanes>
void encode_panels(const float* inputs, Range panels, GramCodes& codes) {
    for (std::int64_t chunk = 0; chunk < codes.chunks(); ++chunk) {
        const float* tokens = inputs + chunk * gram_tokens * codes.columns;
        for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
            const std::int64_t exist = codes.columns_of(panel);
            for (int column = 0; column < gram_panel; column += lane_count) {
                const int count = static_cast<int>(std::clamp<std::int64_t>(exist - column, 0, lane_count));
                const float* first = count > 0 ? tokens + panel * gram_panel + column : tokens;
                encode_columns<Lanes>({first, codes.columns}, count, codes.tokens_of(chunk),
                                      codes.pairs.data() + codes.first_pair(chunk, panel) + column,
                                      codes.scales.data() + codes.first_scale(chunk, panel) + column);
            }
        }
    }
}

// sums[line][column] = sum over the tokens of left[line] * right[column], exact; `pairs` is a multiple of pairs_at_once.
template <class Lanes, int lines, int vectors>
void gram_tile(const std::uint32_t* left, const std::uint32_t* right, std::int64_t pairs,
               std::uint32_t (*sums)[vectors * lane_count]) {
    typename Lanes::Integers products[lines][vectors];
    unrolled<lines>([&](auto line) {
        unrolled<vectors>([&](auto v) { products[line][v] = Lanes::broadcast(0); });
    });
    for (std::int64_t pair = 0; pair < pairs; pair += pairs_at_once) {
        unrolled<pairs_at_once>([&](auto) {
            typename Lanes::Integers columns[vectors];
            unrolled<vectors>([&](auto v) { columns[v] = Lanes::load(right + v * lane_count); });
            unrolled<lines>([&](auto line) {
                const auto value = Lanes::broadcast(static_cast<std::int32_t>(left[line]));
                unrolled<vectors>([&](auto v) {
                    products[line][v] = Lanes::dot(products[line][v], value, columns[v]);
                });
            });
            left += gram_panel;
            right += gram_panel;
        });
    }
    unrolled<lines>([&](auto line) {
        unrolled<vectors>([&](auto v) { Lanes::store(sums[line] + v * lane_count, products[line][v]); });
    });
}

using GramSquare = float[gram_panel][gram_panel];

// Adds one chunk to a square: the rows of panel `left` in panel `right`.
template <class Lanes>
void add_chunk(const GramCodes& codes, std::int64_t chunk, std::int64_t left, std::int64_t right, GramSquare& square) {
    using Floats = typename Lanes::Floats;
    constexpr int lines = Floats::tile_lines, vectors = Floats::tile_vectors;
    const std::uint32_t* left_pairs = codes.pairs.data() + codes.first_pair(chunk, left);
    const std::uint32_t* right_pairs = codes.pairs.data() + codes.first_pair(chunk, right);
    const float* left_scales = codes.scales.data() + codes.first_scale(chunk, left);
    const float* right_scales = codes.scales.data() + codes.first_scale(chunk, right);
    const std::int64_t rows = codes.columns_of(left), columns = codes.columns_of(right);
    const std::int64_t pairs = pairs_of(codes.tokens_of(chunk));
    for (std::int64_t line = 0; line < rows; line += lines) {
        for (std::int64_t column = 0; column < columns; column += vectors * lane_count) {
            alignas(64) std::uint32_t sums[lines][vectors * lane_count];
            gram_tile<Lanes, lines, vectors>(left_pairs + line, right_pairs + column, pairs, sums);
            unrolled<lines>([&](auto i) {
                const Floats scale = Floats::broadcast(left_scales[line + i]);
                unrolled<vectors>([&](auto v) {
                    float* to = square[line + i] + column + v * lane_count;
                    const Floats products = Lanes::to_floats(Lanes::load(sums[i] + v * lane_count));
                    const Floats scales = scale * Floats::load(right_scales + column + v * lane_count);
                    multiply_add(scales, products, Floats::load(to)).store(to);
                });
            });
        }
    }
}

template <class Lanes>
void add_tiles(float* total, const GramCodes& codes, Range tiles) {
    std::int64_t tile = 0;
    for (std::int64_t right = 0; right < codes.panels(); ++right) {
        for (std::int64_t left = 0; left <= right; ++left, ++tile) {
            if (tile < tiles.begin || tile >= tiles.end) continue;
            alignas(64) GramSquare square = {};
            for (std::int64_t chunk = 0; chunk < codes.chunks(); ++chunk) {
                add_chunk<Lanes>(codes, chunk, left, right, square);
            }
            for (std::int64_t line = 0; line < codes.columns_of(left); ++line) {
                float* row = total + (left * gram_panel + line) * codes.columns + right * gram_panel;
                for (std::int64_t column = 0; column < codes.columns_of(right); ++column) {
                    row[column] += square[line][column];
                }
            }
        }
    }
}

}  // namespace
}  // namespace octavo
