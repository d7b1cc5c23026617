// How the attention of some rows falls into pieces of work that threads can take in any order.
#pragma once

#include <cstdint>
#include <vector>

#include "step.h"
#include "vectors.h"

namespace octavo {

// Attention of rows over one block of positions, or, where `block` is -1, over all that they see.
struct AttentionWork {
    AttentionTask task;
    std::int64_t block;
    std::int64_t first_sum, row_stride;  // where the sums of a block go
};

// The sums of the blocks that a row sees, `count` times heads times state_size of them.
struct RowSums {
    std::int64_t first, count;
};

struct AttentionPlan {
    std::vector<AttentionWork> work;
    std::vector<RowSums> row_sums;  // of plans by block
    std::int64_t sums = 0;          // floats that they take
    std::int64_t most_lines = 0;    // rows times heads of a piece
};

// Of few rows: a piece for each block and key. Only pieces that write a block's new keys read that block.
AttentionPlan plan_by_block(const Attention& attention, const Step& step, Range rows);

// Of many rows, whose keys are written: a piece for some rows and each key, at least `pieces` of them where there
// are as many rows; those with the longest past come first.
AttentionPlan plan_by_rows(const Attention& attention, const Step& step, Range rows, std::int64_t pieces);

}  // namespace octavo
