// The parts of a decoder layer that are no product with a weight: norm, rotation, attention, gating. The same bits
// from every instruction set, for a row alone or among others.
//
// That is so because each number is computed in one order. Squares, and the weights of a block of positions, are
// summed through sixteen lanes, which are then added as a tree, lane i and i + 8, 4, 2, 1. A score is summed over the
// dimensions of a head in order, weighted values over the positions of a block, and blocks are merged in order.
#pragma once

#include <cstdint>

#include "isa.h"
#include "matrix.h"
#include "pool.h"

namespace octavo {

// Attention goes through the positions of a sequence in blocks, counted from its first position: each block is
// summed by itself, and the sums are merged in order. So a block may be another thread's work.
constexpr int block_positions = 128;
constexpr int key_stride = block_positions + 16;  // floats: rows of a power of two would meet in few sets of a cache

struct HeadShape {
    std::int64_t heads, kv_heads, head_dim;
    std::int64_t window;  // positions that a row sees, itself included; 0: all

    [[gnu::always_inline]] std::int64_t heads_each() const { return heads / kv_heads; }  // that share a key
    [[gnu::always_inline]] std::int64_t padded_dim() const {
        return (head_dim + panel_outputs - 1) / panel_outputs * panel_outputs;
    }
    // Floats of what a block leaves behind for a row and head: its maximum and sum, then its weighted values.
    [[gnu::always_inline]] std::int64_t state_size() const { return panel_outputs + padded_dim(); }
};

// A vector is divided by its root mean square and multiplied by `weight`.
struct Norm {
    const float* weight;
    float epsilon;
};

// The keys or the values of a layer, head by head: floats, or codes of 8 bits with a scale for each slot and head,
// where a float is its code times the scale. octavo.kernels.attention defines the codes of a row.
struct CacheMemory {
    float* floats = nullptr;  // null where there are codes
    std::int8_t* codes = nullptr;
    float* scales = nullptr;

    CacheMemory(float* all) : floats(all) {}
    CacheMemory(std::int8_t* all, float* of_heads) : codes(all), scales(of_heads) {}
};

// Which head of a cache belongs to a slot and a head of keys: [slots][kv_heads] of them, or [kv_heads][slots], where
// those that are read one after the other lie so.
struct HeadPlaces {
    std::int64_t slot_stride, head_stride;  // in heads

    [[gnu::always_inline]] std::int64_t of(std::int64_t slot, std::int64_t kv_head) const {
        return slot * slot_stride + kv_head * head_stride;
    }
};

// What attention reads and writes in one layer, for the rows of a call from `first_row` on; the arrays by row that
// come from a `Step` count all rows of the call.
struct Attention {
    HeadShape shape;
    Norm query_norm, key_norm;  // of heads; no weight: none
    std::int64_t first_row;
    RowsAt<const float> queries, keys, values;  // of the rows, before norm and rotation
    CacheMemory cached_keys, cached_values;
    HeadPlaces places;
    const std::int64_t* positions;    // [rows]
    const std::int64_t* write_slots;  // [rows]
    const float* cosine;              // [rows][head_dim / 2]
    const float* sine;
    std::int64_t page_size;

    [[gnu::always_inline]] std::int64_t first_visible(std::int64_t row) const {
        const std::int64_t first = positions[row] + 1 - shape.window;
        return shape.window == 0 || first < 0 ? 0 : first;
    }
    // The blocks of positions that a row sees some of.
    [[gnu::always_inline]] Range blocks_of(std::int64_t row) const {
        return {first_visible(row) / block_positions, positions[row] / block_positions + 1};
    }
};

// The heads of one key, for neighbouring rows of one sequence.
struct AttentionTask {
    std::int64_t kv_head;
    Range rows;
    const std::int64_t* page_slots;  // of the sequence
};

// Where the sums of a block go for each row and head: at first + row * row_stride + head * state_size.
struct BlockSums {
    float* first;
    std::int64_t row_stride;
};

struct VectorKernels {
    void (*normalize)(const float* inputs, std::int64_t size, Norm norm, float* outputs);
    // outputs = silu(gates) * ups (https://arxiv.org/abs/2002.05202)
    void (*gate)(const float* gates, const float* ups, std::int64_t size, float* outputs);
    // Norm and rotation of the keys of `rows`, written with their values to the cache.
    void (*write_cache)(const Attention& attention, Range rows, Range kv_heads);
    // All blocks of a task, merged: outputs[row - first_row] has the heads side by side.
    void (*attend)(const Attention& attention, const AttentionTask& task, float* workspace, RowsAt<float> outputs);
    // One block of a task, for the rows that see some of it.
    void (*attend_block)(const Attention& attention, const AttentionTask& task, std::int64_t block, float* workspace,
                         BlockSums sums);
    // The sums of neighbouring blocks, one in each row of `blocks`, merged in order to the output of a row and head.
    void (*merge_blocks)(const HeadShape& shape, RowsAt<const float> blocks, std::int64_t count, float* workspace,
                         float* output);
    // For tests: e^x, 16 floats at a time.
    void (*exponentials)(const float* inputs, std::int64_t size, float* outputs);
};

// Throws std::invalid_argument where this machine cannot run `isa`.
const VectorKernels& vector_kernels(Isa isa);

// Floats of workspace that attention over `lines` rows and heads needs.
std::int64_t attention_workspace(const HeadShape& shape, std::int64_t lines);

}  // namespace octavo
