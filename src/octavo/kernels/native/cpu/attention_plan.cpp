#include "attention_plan.h"

#include <algorithm>

namespace octavo {
namespace {

// Rows times heads that go through the keys and values of a block while these are near.
constexpr std::int64_t lines_of_piece = 128;

// Calls body(rows, page_slots) for each sequence that owns some of `rows`.
template <class Body>
void by_sequence(const Step& step, Range rows, Body body) {
    for (std::size_t i = 0; i < step.sequences().size(); ++i) {
        const Sequence& sequence = step.sequences()[i];
        const Range own{std::max(rows.begin, sequence.first_row),
                        std::min(rows.end, sequence.first_row + sequence.rows)};
        if (own.begin < own.end) body(own, step.page_slots(static_cast<std::int64_t>(i)));
    }
}

}  // namespace

AttentionPlan plan_by_block(const Attention& attention, const Step& step, Range rows) {
    AttentionPlan plan;
    const HeadShape& shape = attention.shape;
    const std::int64_t sums_of_block = shape.heads * shape.state_size();
    by_sequence(step, rows, [&](Range own, const std::int64_t* page_slots) {
        const Range blocks{attention.blocks_of(own.begin).begin, attention.blocks_of(own.end - 1).end};
        const std::int64_t row_stride = blocks.size() * sums_of_block;
        const auto sum_of = [&](std::int64_t block) { return plan.sums + (block - blocks.begin) * sums_of_block; };
        for (std::int64_t block = blocks.begin; block < blocks.end; ++block) {
            for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
                plan.work.push_back({{head, own, page_slots}, block, sum_of(block), row_stride});
            }
        }
        for (std::int64_t row = own.begin; row < own.end; ++row) {
            const Range seen = attention.blocks_of(row);
            plan.row_sums.push_back({sum_of(seen.begin) + (row - own.begin) * row_stride, seen.size()});
        }
        plan.sums += own.size() * row_stride;
        plan.most_lines = std::max(plan.most_lines, own.size() * shape.heads_each());
    });
    return plan;
}

AttentionPlan plan_by_rows(const Attention& attention, const Step& step, Range rows, std::int64_t pieces) {
    AttentionPlan plan;
    const HeadShape& shape = attention.shape;
    const std::int64_t fitting = std::max(lines_of_piece / shape.heads_each(), std::int64_t{1});
    const std::int64_t most = std::clamp(rows.size() * shape.kv_heads / pieces, std::int64_t{1}, fitting);
    by_sequence(step, rows, [&](Range own, const std::int64_t* page_slots) {
        for (std::int64_t end = own.end; end > own.begin; end -= most) {
            const Range some{std::max(end - most, own.begin), end};
            for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
                plan.work.push_back({{head, some, page_slots}, -1, 0, 0});
            }
            plan.most_lines = std::max(plan.most_lines, some.size() * shape.heads_each());
        }
    });
    return plan;
}

}  // namespace octavo
