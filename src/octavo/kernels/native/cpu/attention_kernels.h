// Cached attention over the lanes of an instruction set. Included by one source per set.
//
// A *line* is one row and one of the heads that share a key; the lines of a task see the same keys and values. What
// is computed for a line does not depend on the lines beside it: scores are summed over the dimensions in order,
// weights over the lanes and then as a tree, values over the positions in order.
#pragma once

#include <cstdint>

#include "vector_kernels.h"

namespace octavo {
namespace {

constexpr float minus_infinity = -__builtin_inff();

struct AttentionMemory {
    RowsAt<float> queries;  // [lines][padded_dim], normed, rotated, and scaled by 1 / sqrt(head_dim)
    RowsAt<float> keys;     // [head_dim][block_positions]
    RowsAt<float> values;   // [block_positions][padded_dim]
    RowsAt<float> weights;  // [lines][block_positions]
    RowsAt<float> sums;     // [lines][state_size], of the block at hand
    RowsAt<float> merged;   // [lines][state_size], of those before it

    AttentionMemory(const HeadShape& shape, std::int64_t lines, float* memory) {
        const auto rows = [&](std::int64_t count, std::int64_t size) {
            const RowsAt<float> taken{memory, size};
            memory += count * size;
            return taken;
        };
        queries = rows(lines, shape.padded_dim());
        keys = rows(shape.head_dim, block_positions);
        values = rows(block_positions, shape.padded_dim());
        weights = rows(lines, block_positions);
        sums = rows(lines, shape.state_size());
        merged = rows(lines, shape.state_size());
    }
};

// products[l][16 v …] += sum over k, in order, of left[l][k] * right[k][16 v …].
template <class Floats, int lines, int vectors>
void multiply_tile(RowsAt<const float> left, RowsAt<const float> right, Range k, RowsAt<float> products) {
    Floats sums[lines][vectors];
    for (int l = 0; l < lines; ++l) {
        for (int v = 0; v < vectors; ++v) sums[l][v] = Floats::load(products[l] + v * lane_count);
    }
    for (std::int64_t i = k.begin; i < k.end; ++i) {
        Floats factors[vectors];
        for (int v = 0; v < vectors; ++v) factors[v] = Floats::load(right[i] + v * lane_count);
        for (int l = 0; l < lines; ++l) {
            const Floats factor = Floats::broadcast(left[l][i]);
            for (int v = 0; v < vectors; ++v) sums[l][v] = multiply_add(factor, factors[v], sums[l][v]);
        }
    }
    for (int l = 0; l < lines; ++l) {
        for (int v = 0; v < vectors; ++v) sums[l][v].store(products[l] + v * lane_count);
    }
}

// The same for `count` lines, 1 … `most`, and any number of vectors.
template <class Floats, int most = Floats::tile_lines>
void multiply_lines(std::int64_t count, RowsAt<const float> left, RowsAt<const float> right, Range k,
                    RowsAt<float> products, std::int64_t vectors) {
    if constexpr (most > 1) {
        if (count < most) return multiply_lines<Floats, most - 1>(count, left, right, k, products, vectors);
    }
    std::int64_t v = 0;
    for (; v + Floats::tile_vectors <= vectors; v += Floats::tile_vectors) {
        multiply_tile<Floats, most, Floats::tile_vectors>(left, {right.first + v * lane_count, right.stride}, k,
                                                          {products.first + v * lane_count, products.stride});
    }
    for (; v < vectors; ++v) {
        multiply_tile<Floats, most, 1>(left, {right.first + v * lane_count, right.stride}, k,
                                       {products.first + v * lane_count, products.stride});
    }
}

template <class Floats>
void write_cache(const Attention& attention, Range rows, Range kv_heads) {
    const HeadShape& shape = attention.shape;
    const std::int64_t half = shape.head_dim / 2;
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        for (std::int64_t head = kv_heads.begin; head < kv_heads.end; ++head) {
            const std::int64_t place = (attention.write_slots[row] * shape.kv_heads + head) * shape.head_dim;
            const float* key = attention.keys[row - attention.first_row] + head * shape.head_dim;
            const float* value = attention.values[row - attention.first_row] + head * shape.head_dim;
            float* cached = attention.cached_keys + place;
            if (attention.key_norm.weight != nullptr) {
                normalize<Floats>(key, shape.head_dim, attention.key_norm, cached);
                key = cached;
            }
            rotate<Floats>(key, attention.cosine + row * half, attention.sine + row * half, half, 1.0f, cached);
            by_lanes(shape.head_dim, [&](std::int64_t d, int count) {
                Floats::load_first(value + d, count).store_first(attention.cached_values + place + d, count);
            });
        }
    }
}

template <class Floats>
void load_queries(const Attention& attention, const AttentionTask& task, RowsAt<float> queries) {
    const HeadShape& shape = attention.shape;
    const std::int64_t half = shape.head_dim / 2, each = shape.heads_each();
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(shape.head_dim));
    std::int64_t line = 0;
    for (std::int64_t row = task.rows.begin; row < task.rows.end; ++row) {
        for (std::int64_t head = task.kv_head * each; head < (task.kv_head + 1) * each; ++head, ++line) {
            const float* query = attention.queries[row - attention.first_row] + head * shape.head_dim;
            if (attention.query_norm.weight != nullptr) {
                normalize<Floats>(query, shape.head_dim, attention.query_norm, queries[line]);
                query = queries[line];
            }
            rotate<Floats>(query, attention.cosine + row * half, attention.sine + row * half, half, scale,
                           queries[line]);
        }
    }
}

// The positions of a block that a row sees, counted from the block's first; empty where it sees none.
inline Range seen_by(const Attention& attention, std::int64_t row, std::int64_t block) {
    const std::int64_t first = block * block_positions;
    const std::int64_t begin = attention.first_visible(row) - first, end = attention.positions[row] + 1 - first;
    const Range seen{begin < 0 ? 0 : begin, end > block_positions ? block_positions : end};
    return seen.begin < seen.end ? seen : Range{0, 0};
}

// Brings the keys and values of a block's positions near: keys by dimension, values by position.
template <class Floats>
void gather_block(const Attention& attention, const AttentionTask& task, std::int64_t block, Range positions,
                  const AttentionMemory& memory) {
    const HeadShape& shape = attention.shape;
    const std::int64_t first = block * block_positions;
    std::int64_t page = (first + positions.begin) / attention.page_size;
    std::int64_t within = (first + positions.begin) % attention.page_size;
    const float* keys[block_positions] = {};
    for (std::int64_t position = positions.begin; position < positions.end; ++position) {
        const std::int64_t slot = task.page_slots[page] + within;
        const std::int64_t place = (slot * shape.kv_heads + task.kv_head) * shape.head_dim;
        keys[position] = attention.cached_keys + place;
        by_lanes(shape.head_dim, [&](std::int64_t d, int count) {
            Floats::load_first(attention.cached_values + place + d, count).store(memory.values[position] + d);
        });
        if (++within == attention.page_size) {
            within = 0;
            ++page;
        }
    }
    for (std::int64_t p = positions.begin / lane_count * lane_count; p < positions.end; p += lane_count) {
        by_lanes(shape.head_dim, [&](std::int64_t d, int count) {
            const float* columns[lane_count];
            for (int i = 0; i < lane_count; ++i) columns[i] = keys[p + i] == nullptr ? nullptr : keys[p + i] + d;
            Floats::transpose(columns, count, memory.keys[d] + p, memory.keys.stride);
        });
    }
}

// Scores to weights, e^(score - maximum), zero where nothing is seen; the maximum and the sum of weights to `sums`.
template <class Floats>
void weigh(Range seen, float* weights, float* sums) {
    const auto visible = [&](std::int64_t p, Floats inside, float outside) {
        const auto bound = [&](std::int64_t to) {
            return static_cast<int>(to < p ? 0 : to > p + lane_count ? lane_count : to - p);
        };
        return between(bound(seen.begin), bound(seen.end), inside, Floats::broadcast(outside));
    };
    const std::int64_t first = seen.begin / lane_count * lane_count;
    Floats highest = Floats::broadcast(minus_infinity);
    for (std::int64_t p = first; p < seen.end; p += lane_count) {
        highest = larger(highest, visible(p, Floats::load(weights + p), minus_infinity));
    }
    const float maximum = largest(highest);
    Floats total = Floats::broadcast(0.0f);
    for (std::int64_t p = first; p < seen.end; p += lane_count) {
        const Floats weight =
            visible(p, exponential(Floats::load(weights + p) - Floats::broadcast(maximum)), 0.0f);
        weight.store(weights + p);
        total = total + weight;
    }
    sums[0] = maximum;
    sums[1] = sum(total);
}

// Adds the weighted values of `count` lines. Each goes through the positions it sees and no others, in order; those
// that all of them see are gone through together.
template <class Floats>
void add_values(std::int64_t count, const Range* seen, RowsAt<const float> weights, RowsAt<const float> values,
                RowsAt<float> sums, std::int64_t vectors) {
    Range common = seen[0];
    for (std::int64_t l = 1; l < count; ++l) {
        if (seen[l].begin > common.begin) common.begin = seen[l].begin;
        if (seen[l].end < common.end) common.end = seen[l].end;
    }
    const auto alone = [&](std::int64_t begin_of(Range, Range), std::int64_t end_of(Range, Range)) {
        for (std::int64_t l = 0; l < count; ++l) {
            const Range own{begin_of(seen[l], common), end_of(seen[l], common)};
            if (own.begin < own.end) {
                multiply_lines<Floats, 1>(1, {weights[l], 0}, values, own, {sums[l], 0}, vectors);
            }
        }
    };
    if (common.begin >= common.end) {
        alone([](Range own, Range) { return own.begin; }, [](Range own, Range) { return own.end; });
        return;
    }
    alone([](Range own, Range) { return own.begin; }, [](Range, Range all) { return all.begin; });
    multiply_lines<Floats>(count, weights, values, common, sums, vectors);
    alone([](Range, Range all) { return all.end; }, [](Range own, Range) { return own.end; });
}

// The positions of a block that the rows of a task see, taken together.
inline Range seen_by_any(const Attention& attention, const AttentionTask& task, std::int64_t block) {
    Range seen = seen_by(attention, task.rows.begin, block);
    for (std::int64_t row = task.rows.begin + 1; row < task.rows.end; ++row) {
        const Range own = seen_by(attention, row, block);
        if (own.begin == own.end) continue;
        if (seen.begin == seen.end) seen = own;
        if (own.begin < seen.begin) seen.begin = own.begin;
        if (own.end > seen.end) seen.end = own.end;
    }
    return seen;
}

// The sums of one block, for the lines that see some of it, to memory.sums.
template <class Floats>
void sum_block(const Attention& attention, const AttentionTask& task, std::int64_t block,
               const AttentionMemory& memory) {
    const HeadShape& shape = attention.shape;
    const std::int64_t each = shape.heads_each(), lines = task.rows.size() * each;
    const Range positions = seen_by_any(attention, task, block);
    gather_block<Floats>(attention, task, block, positions, memory);
    const std::int64_t first = positions.begin / lane_count * lane_count;
    const std::int64_t vectors = (positions.end - first + lane_count - 1) / lane_count;
    const Floats zero = Floats::broadcast(0.0f);
    for (std::int64_t line = 0; line < lines; line += Floats::tile_lines) {
        const std::int64_t count = lines - line < Floats::tile_lines ? lines - line : Floats::tile_lines;
        Range seen[Floats::tile_lines];
        for (std::int64_t l = 0; l < count; ++l) {
            seen[l] = seen_by(attention, task.rows.begin + (line + l) / each, block);
            for (std::int64_t v = 0; v < vectors; ++v) zero.store(memory.weights[line + l] + first + v * lane_count);
            for (std::int64_t d = 0; d < shape.state_size(); d += lane_count) zero.store(memory.sums[line + l] + d);
        }
        multiply_lines<Floats>(count, {memory.queries[line], memory.queries.stride},
                               {memory.keys.first + first, memory.keys.stride}, {0, shape.head_dim},
                               {memory.weights[line] + first, memory.weights.stride}, vectors);
        for (std::int64_t l = 0; l < count; ++l) {
            weigh<Floats>(seen[l], memory.weights[line + l], memory.sums[line + l]);
        }
        add_values<Floats>(count, seen, {memory.weights[line], memory.weights.stride},
                           {memory.values.first, memory.values.stride},
                           {memory.sums[line] + lane_count, memory.sums.stride}, shape.padded_dim() / lane_count);
    }
}

// merged = merged and then sums, both brought to the larger of their maxima.
template <class Floats>
void merge(const HeadShape& shape, const float* sums, float* merged) {
    const float maximum = merged[0] > sums[0] ? merged[0] : sums[0];
    float factors[lane_count] = {merged[0] - maximum, sums[0] - maximum};
    exponential(Floats::load(factors)).store(factors);
    const Floats kept = Floats::broadcast(factors[0]), added = Floats::broadcast(factors[1]);
    merged[0] = maximum;
    merged[1] = merged[1] * factors[0] + sums[1] * factors[1];
    for (std::int64_t d = lane_count; d < shape.state_size(); d += lane_count) {
        multiply_add(Floats::load(sums + d), added, Floats::load(merged + d) * kept).store(merged + d);
    }
}

template <class Floats>
void copy_sums(const HeadShape& shape, const float* sums, float* target) {
    for (std::int64_t d = 0; d < shape.state_size(); d += lane_count) Floats::load(sums + d).store(target + d);
}

// The weighted mean of the values.
template <class Floats>
void finish(const HeadShape& shape, const float* merged, float* output) {
    const Floats total = Floats::broadcast(merged[1]);
    by_lanes(shape.head_dim, [&](std::int64_t d, int count) {
        (Floats::load(merged + lane_count + d) / total).store_first(output + d, count);
    });
}

template <class Floats>
void attend(const Attention& attention, const AttentionTask& task, float* workspace, RowsAt<float> outputs) {
    const HeadShape& shape = attention.shape;
    const std::int64_t each = shape.heads_each(), lines = task.rows.size() * each;
    const AttentionMemory memory(shape, lines, workspace);
    load_queries<Floats>(attention, task, memory.queries);
    const std::int64_t first = attention.blocks_of(task.rows.begin).begin;
    const std::int64_t end = attention.blocks_of(task.rows.end - 1).end;
    for (std::int64_t block = first; block < end; ++block) {
        sum_block<Floats>(attention, task, block, memory);
        for (std::int64_t line = 0; line < lines; ++line) {
            const Range own = attention.blocks_of(task.rows.begin + line / each);
            if (block == own.begin) copy_sums<Floats>(shape, memory.sums[line], memory.merged[line]);
            if (own.begin < block && block < own.end) merge<Floats>(shape, memory.sums[line], memory.merged[line]);
        }
    }
    for (std::int64_t line = 0; line < lines; ++line) {
        const std::int64_t row = task.rows.begin + line / each - attention.first_row;
        finish<Floats>(shape, memory.merged[line],
                       outputs[row] + (task.kv_head * each + line % each) * shape.head_dim);
    }
}

template <class Floats>
void attend_block(const Attention& attention, const AttentionTask& task, std::int64_t block, float* workspace,
                  BlockSums sums) {
    const HeadShape& shape = attention.shape;
    const std::int64_t each = shape.heads_each(), lines = task.rows.size() * each;
    const AttentionMemory memory(shape, lines, workspace);
    load_queries<Floats>(attention, task, memory.queries);
    sum_block<Floats>(attention, task, block, memory);
    for (std::int64_t line = 0; line < lines; ++line) {
        const std::int64_t head = task.kv_head * each + line % each;
        copy_sums<Floats>(shape, memory.sums[line],
                          sums.first + line / each * sums.row_stride + head * shape.state_size());
    }
}

template <class Floats>
void merge_blocks(const HeadShape& shape, RowsAt<const float> blocks, std::int64_t count, float* workspace,
                  float* output) {
    copy_sums<Floats>(shape, blocks[0], workspace);
    for (std::int64_t block = 1; block < count; ++block) merge<Floats>(shape, blocks[block], workspace);
    finish<Floats>(shape, workspace, output);
}

}  // namespace
}  // namespace octavo
