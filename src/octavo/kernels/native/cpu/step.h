// What the layers of one forward pass share: whose rows they are, where the past of each sequence lies, and the
// rotation of each row. Checked and worked out once, before the first layer.
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"

namespace octavo {

// Plain arrays, as `kernels.blocks.Rows` has them.
struct StepArrays {
    const float* angles;             // [rows][half_head], radians
    const std::int64_t* write_slots;  // [rows]
    const std::int64_t* lengths;      // [sequences]
    const std::int64_t* row_starts;   // [sequences + 1]
    const std::int64_t* page_table;   // [sequences][pages]
    std::int64_t rows, half_head, sequences, pages, page_size;
    float temperature;
};

struct Sequence {
    std::int64_t first_row, rows, length;
};

class Step {
public:
    // Copies what it needs. Throws std::invalid_argument where the arrays contradict one another.
    explicit Step(const StepArrays& arrays);

    std::int64_t rows() const { return static_cast<std::int64_t>(positions_.size()); }
    std::int64_t half_head() const { return half_head_; }
    const std::vector<Sequence>& sequences() const { return sequences_; }
    // One more than the largest slot that a layer reads or writes.
    std::int64_t slots() const { return slots_; }
    // Of each row within its sequence, counted from 0.
    const std::int64_t* positions() const { return positions_.data(); }
    const std::int64_t* write_slots() const { return write_slots_.data(); }
    std::int64_t page_size() const { return page_size_; }
    // The first slot of each page of a sequence.
    const std::int64_t* page_slots(std::int64_t sequence) const { return page_slots_.data() + sequence * pages_; }
    // [rows][half_head], times the temperature.
    const float* cosine() const { return cosine_.data(); }
    const float* sine() const { return sine_.data(); }

private:
    void add_sequence(const StepArrays& arrays, std::int64_t index);

    std::int64_t half_head_, pages_, page_size_, slots_ = 0;
    std::vector<Sequence> sequences_;
    std::vector<std::int64_t> positions_, write_slots_, page_slots_;
    Buffer<float> cosine_, sine_;
};

}  // namespace octavo
