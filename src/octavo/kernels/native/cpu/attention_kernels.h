// Cached attention over the lanes of an instruction set. Included by one source per set.
//
// A *line* is one row and one of the heads that share a key; the lines of a task see the same keys and values. What
// is computed for a line does not depend on the lines beside it: scores are summed over the dimensions in order,
// weights over the lanes and then as a tree, values over the positions in order.
#pragma once

#include <cstdint>
#include <cstring>

#include "memory.h"
#include "vector_kernels.h"

namespace octavo {
namespace {

constexpr float minus_infinity = -__builtin_inff();
constexpr std::int64_t cache_line = 64;  // bytes

// The positions of a block in the cache, and what is worked out for it.
struct AttentionMemory {
    RowsAt<float> queries;                        // [lines][head_dim], normed, rotated, scaled by 1 / sqrt(head_dim)
    RowsAt<float> keys;                           // [head_dim][key_stride]
    RowsAt<float> decoded_keys;                   // [lane_count][head_dim], where the cache is in 8 bits
    RowsAt<float> decoded_values;                 // [block_positions][head_dim], likewise
    RowsAt<float> weights;                        // [lines][block_positions]
    RowsAt<float> sums;                           // [lines][state_size], of the block at hand
    RowsAt<float> merged;                         // [lines][state_size], of those before it

    AttentionMemory(const HeadShape& shape, std::int64_t lines, float* memory) {
        const auto rows = [&](std::int64_t count, std::int64_t size) {
            const RowsAt<float> taken{memory, size};
            memory += count * size;
            return taken;
        };
        queries = rows(lines, shape.padded_dim());
        keys = rows(shape.head_dim, key_stride);
        decoded_keys = rows(lane_count, shape.head_dim);
        decoded_values = rows(block_positions, shape.head_dim);
        weights = rows(lines, block_positions);
        sums = rows(lines, shape.state_size());
        merged = rows(lines, shape.state_size());
    }
};

enum class Sums { added, set };  // to what was there, or in its place

// products[l][c] += sum over k, in order, of left[l][k] * right[k][c], for `count` columns c from `column` on: one
// vector of them that may be shorter, or `vectors` whole ones.
template <class Floats, int lines, int vectors, Sums how, class Right>
[[gnu::always_inline]] inline void multiply_tile(RowsAt<const float> left, Right right, Range k,
                                                 RowsAt<float> products, std::int64_t column, int count) {
    const auto load = [&](const float* values, int v) {
        return vectors == 1 ? Floats::load_first(values, count) : Floats::load(values + v * lane_count);
    };
    Floats sums[lines][vectors];
    for (int l = 0; l < lines; ++l) {
        for (int v = 0; v < vectors; ++v) {
            sums[l][v] = how == Sums::set ? Floats::broadcast(0.0f)
                                          : Floats::load(products[l] + column + v * lane_count);
        }
    }
    for (std::int64_t i = k.begin; i < k.end; ++i) {
        Floats factors[vectors];
        for (int v = 0; v < vectors; ++v) factors[v] = load(right[i] + column, v);
        for (int l = 0; l < lines; ++l) {
            const Floats factor = Floats::broadcast(left[l][i]);
            for (int v = 0; v < vectors; ++v) sums[l][v] = multiply_add(factor, factors[v], sums[l][v]);
        }
    }
    for (int l = 0; l < lines; ++l) {
        for (int v = 0; v < vectors; ++v) sums[l][v].store(products[l] + column + v * lane_count);
    }
}

// The same for `count` lines, 1 … `most`, and columns `columns.begin` …; products have room for whole vectors.
template <class Floats, Sums how, int most = Floats::tile_lines, class Right>
void multiply_lines(std::int64_t count, RowsAt<const float> left, Right right, Range k, RowsAt<float> products,
                    Range columns) {
    if constexpr (most > 1) {
        if (count < most) return multiply_lines<Floats, how, most - 1>(count, left, right, k, products, columns);
    }
    constexpr int at_once = Floats::tile_vectors * lane_count;
    std::int64_t column = columns.begin;
    for (; column + at_once <= columns.end; column += at_once) {
        multiply_tile<Floats, most, Floats::tile_vectors, how>(left, right, k, products, column, at_once);
    }
    for (; column + lane_count <= columns.end; column += lane_count) {
        multiply_tile<Floats, most, 1, how>(left, right, k, products, column, lane_count);
    }
    if (column < columns.end) {
        multiply_tile<Floats, most, 1, how>(left, right, k, products, column, static_cast<int>(columns.end - column));
    }
}

// Codes of 8 bits: the largest magnitude is 127, halves are rounded to even. A scale is at least the smallest normal
// number, so that zeros are codes of 0, and no number where one of the values is none.
template <class Floats>
void encode_head(const float* values, std::int64_t size, std::int8_t* codes, float* scale) {
    const Floats zero = Floats::broadcast(0.0f);
    Floats magnitude = zero, vanishing = zero;
    by_lanes(size, [&](std::int64_t d, int count) {
        const Floats value = Floats::load_first(values + d, count);
        magnitude = larger(larger(value, zero - value), magnitude);
        vanishing = vanishing + zero * value;  // NaN where a value is not finite, which `larger` may lose
    });
    const float smallest = 1.17549435e-38f, wanted = largest(magnitude) / 127.0f;
    *scale = (wanted > smallest ? wanted : smallest) + sum(vanishing);
    const Floats divisor = Floats::broadcast(*scale), shift = Floats::broadcast(12582912.0f);  // 1.5 * 2^23
    by_lanes(size, [&](std::int64_t d, int count) {
        float rounded[lane_count];  // its lowest byte is the code
        (Floats::load_first(values + d, count) / divisor + shift).store(rounded);
        for (int i = 0; i < count; ++i) std::memcpy(codes + d + i, rounded + i, 1);
    });
}

template <class Floats>
[[gnu::always_inline]] inline void decode_head(const std::int8_t* codes, float scale, std::int64_t size, float* values) {
    const Floats factor = Floats::broadcast(scale);
    by_lanes(size, [&](std::int64_t d, int count) {
        (Floats::load_codes(codes + d, count) * factor).store_first(values + d, count);
    });
}

// A head in the cache, counted from its first: its floats as they lie there, or its codes decoded.
template <class Floats>
[[gnu::always_inline]] inline const float* cached_head(const CacheMemory& cache, std::int64_t head,
                                                       std::int64_t head_dim, float* decoded) {
    if (cache.codes == nullptr) return cache.floats + head * head_dim;
    decode_head<Floats>(cache.codes + head * head_dim, cache.scales[head], head_dim, decoded);
    return decoded;
}

// Writes a head to the cache: floats where they belong, or by way of a row of the thread's own to codes.
template <class Floats, class Compute>
void write_head(const CacheMemory& cache, std::int64_t head, std::int64_t head_dim, Compute compute) {
    if (cache.codes == nullptr) return compute(cache.floats + head * head_dim);
    const auto bytes = head_dim * static_cast<std::int64_t>(sizeof(float));
    float* row = reinterpret_cast<float*>(thread_scratch(bytes));
    compute(row);
    encode_head<Floats>(row, head_dim, cache.codes + head * head_dim, cache.scales + head);
}

template <class Floats>
void write_cache(const Attention& attention, Range rows, Range kv_heads) {
    const HeadShape& shape = attention.shape;
    const std::int64_t half = shape.head_dim / 2;
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        for (std::int64_t head = kv_heads.begin; head < kv_heads.end; ++head) {
            const std::int64_t place = attention.places.of(attention.write_slots[row], head);
            const float* key = attention.keys[row - attention.first_row] + head * shape.head_dim;
            const float* value = attention.values[row - attention.first_row] + head * shape.head_dim;
            write_head<Floats>(attention.cached_keys, place, shape.head_dim, [&](float* cached) {
                if (attention.key_norm.weight != nullptr) {
                    normalize<Floats>(key, shape.head_dim, attention.key_norm, cached);
                    key = cached;
                }
                rotate<Floats>(key, attention.cosine + row * half, attention.sine + row * half, half, 1.0f, cached);
            });
            write_head<Floats>(attention.cached_values, place, shape.head_dim, [&](float* cached) {
                by_lanes(shape.head_dim, [&](std::int64_t d, int count) {
                    Floats::load_first(value + d, count).store_first(cached + d, count);
                });
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

// A head in the cache is read ahead of its use, by loads: of prefetches, a processor drops those beyond its few
// buffers.
[[gnu::always_inline]] inline void touch_head(const CacheMemory& cache, std::int64_t head, std::int64_t head_dim) {
    const bool coded = cache.codes != nullptr;
    const auto size = static_cast<std::int64_t>(coded ? sizeof(std::int8_t) : sizeof(float)) * head_dim;
    const char* bytes = coded ? reinterpret_cast<const char*>(cache.codes) : reinterpret_cast<const char*>(cache.floats);
    for (std::int64_t i = 0; i < size; i += cache_line) asm volatile("" : : "r"(bytes[head * size + i]));
    if (coded) asm volatile("" : : "r"(cache.scales[head]));
}

// The heads of a block's positions in the cache, counted from its first.
inline void find_heads(const Attention& attention, const AttentionTask& task, std::int64_t block, Range positions,
                       std::int64_t* heads) {
    const std::int64_t head_dim = attention.shape.head_dim;
    const std::int64_t first = block * block_positions + positions.begin;
    std::int64_t page = first / attention.page_size, within = first % attention.page_size;
    for (std::int64_t position = positions.begin; position < positions.end; ++position) {
        heads[position] = attention.places.of(task.page_slots[page] + within, task.kv_head);
        touch_head(attention.cached_keys, heads[position], head_dim);
        touch_head(attention.cached_values, heads[position], head_dim);
        if (++within == attention.page_size) {
            within = 0;
            ++page;
        }
    }
}

// The keys of a block by dimension, so that scores are computed for sixteen positions side by side. Lanes of positions
// that no line sees get any others.
template <class Floats>
void transpose_keys(const CacheMemory& cache, std::int64_t head_dim, Range positions, const std::int64_t* heads,
                    const AttentionMemory& memory) {
    for (std::int64_t p = positions.begin / lane_count * lane_count; p < positions.end; p += lane_count) {
        const float* keys[lane_count];
        for (int i = 0; i < lane_count; ++i) {
            const bool seen = positions.begin <= p + i && p + i < positions.end;
            keys[i] = cached_head<Floats>(cache, heads[seen ? p + i : positions.begin], head_dim,
                                          memory.decoded_keys[i]);
        }
        by_lanes(head_dim, [&](std::int64_t d, int count) {
            Floats::transpose(keys, d, count, memory.keys[d] + p, memory.keys.stride);
        });
    }
}

// Scores to weights, e^(score - maximum), zero where nothing is seen; the maximum and the sum of weights to `sums`.
template <class Floats>
void weigh(Range seen, float* weights, float* sums) {
    const auto visible = [&](std::int64_t p, Floats inside, float outside) {
        if (seen.begin <= p && p + lane_count <= seen.end) return inside;
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

// Adds the weighted values of `count` lines in some of the columns. Each goes through the positions it sees and no
// others, in order; those that all of them see are gone through together.
template <class Floats>
void add_values(std::int64_t count, const Range* seen, RowsAt<const float> weights, const float* const* values,
                RowsAt<float> sums, Range columns) {
    Range common = seen[0];
    for (std::int64_t l = 1; l < count; ++l) {
        if (seen[l].begin > common.begin) common.begin = seen[l].begin;
        if (seen[l].end < common.end) common.end = seen[l].end;
    }
    const auto alone = [&](std::int64_t l, std::int64_t begin, std::int64_t end) {
        if (begin >= end) return;
        multiply_lines<Floats, Sums::added, 1>(1, {weights[l], 0}, values, {begin, end}, {sums[l], 0}, columns);
    };
    if (common.begin >= common.end) {
        for (std::int64_t l = 0; l < count; ++l) alone(l, seen[l].begin, seen[l].end);
        return;
    }
    for (std::int64_t l = 0; l < count; ++l) alone(l, seen[l].begin, common.begin);
    multiply_lines<Floats, Sums::added>(count, weights, values, common, sums, columns);
    for (std::int64_t l = 0; l < count; ++l) alone(l, common.end, seen[l].end);
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

// Calls body(line, count, columns) for tiles of lines and columns: all lines for some columns before the next ones,
// so that what is read of these columns stays in the first-level cache.
template <class Floats, class Body>
void by_tiles(std::int64_t lines, Range columns, Body body) {
    constexpr std::int64_t at_once = Floats::tile_vectors * lane_count;
    for (std::int64_t first = columns.begin; first < columns.end; first += at_once) {
        const Range some{first, columns.end - first < at_once ? columns.end : first + at_once};
        for (std::int64_t line = 0; line < lines; line += Floats::tile_lines) {
            body(line, lines - line < Floats::tile_lines ? lines - line : Floats::tile_lines, some);
        }
    }
}

// The sums of one block, for the lines that see some of it, to memory.sums.
template <class Floats>
void sum_block(const Attention& attention, const AttentionTask& task, std::int64_t block,
               const AttentionMemory& memory) {
    const HeadShape& shape = attention.shape;
    const std::int64_t each = shape.heads_each(), lines = task.rows.size() * each;
    const Range positions = seen_by_any(attention, task, block);
    std::int64_t heads[block_positions];
    const float* values[block_positions];
    find_heads(attention, task, block, positions, heads);
    transpose_keys<Floats>(attention.cached_keys, shape.head_dim, positions, heads, memory);
    for (std::int64_t p = positions.begin; p < positions.end; ++p) {
        values[p] =
            cached_head<Floats>(attention.cached_values, heads[p], shape.head_dim, memory.decoded_values[p]);
    }
    const Range scored{positions.begin / lane_count * lane_count,
                       (positions.end + lane_count - 1) / lane_count * lane_count};
    const auto seen_by_line = [&](std::int64_t line) { return seen_by(attention, task.rows.begin + line / each, block); };
    const Floats zero = Floats::broadcast(0.0f);
    for (std::int64_t line = 0; line < lines; ++line) {
        for (std::int64_t d = 0; d < shape.state_size(); d += lane_count) zero.store(memory.sums[line] + d);
    }
    by_tiles<Floats>(lines, scored, [&](std::int64_t line, std::int64_t count, Range columns) {
        multiply_lines<Floats, Sums::set>(count, {memory.queries[line], memory.queries.stride}, memory.keys,
                                          {0, shape.head_dim}, {memory.weights[line], memory.weights.stride}, columns);
    });
    for (std::int64_t line = 0; line < lines; ++line) {
        weigh<Floats>(seen_by_line(line), memory.weights[line], memory.sums[line]);
    }
    by_tiles<Floats>(lines, {0, shape.head_dim}, [&](std::int64_t line, std::int64_t count, Range columns) {
        Range seen[Floats::tile_lines];
        for (std::int64_t l = 0; l < count; ++l) seen[l] = seen_by_line(line + l);
        add_values<Floats>(count, seen, {memory.weights[line], memory.weights.stride}, values,
                           {memory.sums[line] + lane_count, memory.sums.stride}, columns);
    });
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
