// The kernels of solver.h over the lanes of an instruction set. Included by one source per set.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "lanes.h"
#include "memory.h"
#include "solver.h"

namespace octavo {
namespace {

constexpr int block_columns = 128;   // columns between two updates of all that follow
constexpr int strip_vectors = strip_rows / lane_count;
constexpr float smallest_scale = 0x1p-14f;  // the smallest normal fp16
constexpr float largest_scale = 65504.0f;   // the largest fp16

// To the nearest whole number, ties to even, for magnitudes below 2^22.
template <class Floats>
[[gnu::always_inline]] inline Floats rounded(Floats x) {
    const Floats shift = Floats::broadcast(12582912.0f);  // 1.5 * 2^23
    return (x + shift) - shift;
}

// A grid for each lane; codes go from `lowest` to `highest` steps around zero.
template <class Floats>
struct LaneGrids {
    Floats scale, zero, lowest, highest;

    LaneGrids(Floats scale_, Floats zero_, float largest_code)
        : scale(scale_),
          zero(zero_),
          lowest(Floats::broadcast(0.0f) - zero_),
          highest(Floats::broadcast(largest_code) - zero_) {}

    // The whole number of steps nearest to each value.
    [[gnu::always_inline]] Floats steps(Floats values) const {
        return rounded(smaller(larger(lowest, values / scale), highest));
    }
};

// Each scale as fp16 will hold it. The bits are rounded by hand: there are only normal numbers.
template <class Floats>
Floats as_stored(Floats scale) {
    float lanes[lane_count];
    larger(Floats::broadcast(smallest_scale), scale).store(lanes);  // NaN stays NaN
    for (float& lane : lanes) {
        std::uint32_t bits;
        std::memcpy(&bits, &lane, sizeof bits);
        bits = (bits + 0xfffu + ((bits >> 13) & 1u)) & ~0x1fffu;
        if (lane <= largest_scale) std::memcpy(&lane, &bits, sizeof lane);
    }
    return Floats::load(lanes);
}

template <class Floats>
LaneGrids<Floats> grids_of_range(Floats lowest, Floats highest, const GridRule& rule) {
    const Floats codes = Floats::broadcast(rule.largest_code);
    const Floats scale = as_stored((highest - lowest) / codes);
    if (rule.symmetric) return {scale, Floats::broadcast(rule.middle), rule.largest_code};
    const Floats none = Floats::broadcast(0.0f), least = Floats::broadcast(rule.smallest_zero);
    const Floats zero = rounded(smaller(larger((none - lowest) / scale, none), codes));
    const Floats raised = as_stored(highest / Floats::broadcast(rule.largest_code - rule.smallest_zero));
    return {where_less(zero, least, raised, scale), larger(zero, least), rule.largest_code};
}

// Sixteen rows of a group: the weight of member m is at first + position(m) * strip_rows.
struct GroupMembers {
    const float* first;
    const std::int64_t* positions;   // of each member in the strip
    const float* importance;         // of each member
    std::int64_t count;

    const float* operator[](std::int64_t member) const { return first + positions[member] * strip_rows; }
};

// The squared rounding error of each row, weighted by column and summed in float64.
template <class Floats>
void rounding_errors(const GroupMembers& members, const LaneGrids<Floats>& grids, double (&errors)[lane_count]) {
    typename Floats::Doubles sums;
    for (std::int64_t member = 0; member < members.count; ++member) {
        const Floats values = Floats::load(members[member]);
        const Floats change = grids.steps(values) * grids.scale - values;
        sums.add(change * change * Floats::broadcast(members.importance[member]));
    }
    sums.store(errors);
}

// The best grid of each of sixteen rows.
template <class Floats>
void search_grids(const GroupMembers& members, const GridRule& rule, float* scales, float* zeros) {
    const Floats none = Floats::broadcast(0.0f), one = Floats::broadcast(1.0f);
    Floats lowest = none, highest = none;
    for (std::int64_t member = 0; member < members.count; ++member) {
        const Floats values = Floats::load(members[member]);
        lowest = smaller(values, lowest);
        highest = larger(values, highest);
    }
    if (rule.symmetric) {
        highest = larger(none - lowest, highest);
        lowest = none - highest;
    }
    const Floats empty_lowest = where_less(lowest, highest, lowest, none - one);
    highest = where_less(lowest, highest, highest, one);
    lowest = empty_lowest;

    double least[lane_count], errors[lane_count];
    for (std::int64_t index = 0; index < rule.shrink_count; ++index) {
        const Floats shrink = Floats::broadcast(rule.shrinks[index]);
        const auto grids = grids_of_range(lowest * shrink, highest * shrink, rule);
        float scale[lane_count], zero[lane_count];
        grids.scale.store(scale);
        grids.zero.store(zero);
        if (rule.shrink_count > 1) rounding_errors(members, grids, errors);
        for (int lane = 0; lane < lane_count; ++lane) {
            if (index > 0 && !(errors[lane] < least[lane])) continue;
            least[lane] = errors[lane];
            scales[lane] = scale[lane];
            zeros[lane] = zero[lane];
        }
    }
}

// One strip on its way: its weights in solving order, and the grids of its groups.
template <class Floats>
class Strip {
public:
    Strip(const SolverInput& input, const SolverOutput& output, std::int64_t strip)
        : input_(input),
          output_(output),
          first_row_(strip * strip_rows),
          rows_(std::min<std::int64_t>(strip_rows, input.rows - first_row_)),
          groups_((input.columns + input.group_size - 1) / input.group_size),
          weights_(input.columns * strip_rows),
          errors_(block_columns * strip_rows),
          scales_(groups_ * strip_rows),
          zeros_(groups_ * strip_rows),
          positions_(input.columns),
          importance_(input.columns) {
        for (std::int64_t row = 0; row < rows_; ++row) {
            const float* weight = input.weight + (first_row_ + row) * input.columns;
            for (std::int64_t i = 0; i < input.columns; ++i) weights_[i * strip_rows + row] = weight[input.order[i]];
        }
        // Members of a group are found in the order in which groups are formed.
        for (std::int64_t i = 0; i < input.columns; ++i) {
            positions_[input.static_groups ? input.order[i] : i] = i;
            importance_[i] = input.importance[input.static_groups ? i : input.order[i]];
        }
    }

    void solve() {
        if (input_.static_groups) {
            for (std::int64_t group = 0; group < groups_; ++group) find_grids(group);
        }
        for (std::int64_t begin = 0; begin < input_.columns;) {
            const std::int64_t end = end_of_block(begin);
            for (std::int64_t column = begin; column < end; ++column) solve_column(column, begin, end);
            update_rest(begin, end);
            begin = end;
        }
        store_grids();
    }

private:
    // About `block_columns` on; a group whose grid is found on the way starts inside a block only if it ends there,
    // so that all its columns have received every earlier update.
    std::int64_t end_of_block(std::int64_t begin) const {
        const std::int64_t size = input_.group_size;
        std::int64_t end = begin + block_columns;
        if (!input_.static_groups) {
            end = size < block_columns ? begin + block_columns / size * size : std::min(end, (begin / size + 1) * size);
        }
        return std::min(end, input_.columns);
    }

    void find_grids(std::int64_t group) {
        const std::int64_t first = group * input_.group_size;
        const std::int64_t count = std::min(input_.group_size, input_.columns - first);
        for (int lane = 0; lane < strip_rows; lane += lane_count) {
            const GroupMembers members{weights_.data() + lane, positions_.data() + first, importance_.data() + first,
                                       count};
            search_grids<Floats>(members, input_.rule, grid(scales_, group) + lane, grid(zeros_, group) + lane);
        }
    }

    void solve_column(std::int64_t column, std::int64_t begin, std::int64_t end) {
        const std::int64_t stored = input_.order[column];
        const std::int64_t group = (input_.static_groups ? stored : column) / input_.group_size;
        if (!input_.static_groups && column % input_.group_size == 0) find_grids(group);
        const float* factors = input_.factor + column * input_.columns;
        float* errors = errors_.data() + (column - begin) * strip_rows;
        float* weights = weights_.data() + column * strip_rows;
        float codes[strip_rows];
        for (int lane = 0; lane < strip_rows; lane += lane_count) {
            const LaneGrids<Floats> grids(Floats::load(grid(scales_, group) + lane),
                                          Floats::load(grid(zeros_, group) + lane), input_.rule.largest_code);
            const Floats values = Floats::load(weights + lane);
            const Floats steps = grids.steps(values);
            (steps + grids.zero).store(codes + lane);
            ((values - steps * grids.scale) / Floats::broadcast(factors[column])).store(errors + lane);
        }
        for (std::int64_t row = 0; row < rows_; ++row) {
            output_.codes[(first_row_ + row) * input_.columns + stored] = static_cast<std::uint8_t>(codes[row]);
        }
        for (std::int64_t next = column + 1; next < end; ++next) {
            const Floats factor = Floats::broadcast(factors[next]);
            for (int lane = 0; lane < strip_rows; lane += lane_count) {
                float* to = weights_.data() + next * strip_rows + lane;
                (Floats::load(to) - factor * Floats::load(errors + lane)).store(to);
            }
        }
    }

    // Columns behind a block receive its updates in the order of its columns, as if one by one.
    void update_rest(std::int64_t begin, std::int64_t end) {
        std::int64_t column = end;
        for (; column + Floats::tile_lines <= input_.columns; column += Floats::tile_lines) {
            update_columns<Floats::tile_lines>(column, begin, end);
        }
        for (; column < input_.columns; ++column) update_columns<1>(column, begin, end);
    }

    template <int lines>
    void update_columns(std::int64_t column, std::int64_t begin, std::int64_t end) {
        constexpr int vectors = Floats::tile_vectors;
        float* weights = weights_.data() + column * strip_rows;
        for (int lane = 0; lane < strip_rows; lane += vectors * lane_count) {
            Floats values[lines][vectors];
            for (int line = 0; line < lines; ++line) {
                for (int v = 0; v < vectors; ++v) {
                    values[line][v] = Floats::load(weights + line * strip_rows + lane + v * lane_count);
                }
            }
            const float* errors = errors_.data() + lane;
            const float* factors = input_.factor + begin * input_.columns + column;
            for (std::int64_t i = begin; i < end; ++i, errors += strip_rows, factors += input_.columns) {
                Floats error[vectors];
                for (int v = 0; v < vectors; ++v) error[v] = Floats::load(errors + v * lane_count);
                for (int line = 0; line < lines; ++line) {
                    const Floats factor = Floats::broadcast(factors[line]);
                    for (int v = 0; v < vectors; ++v) values[line][v] = values[line][v] - factor * error[v];
                }
            }
            for (int line = 0; line < lines; ++line) {
                for (int v = 0; v < vectors; ++v) {
                    values[line][v].store(weights + line * strip_rows + lane + v * lane_count);
                }
            }
        }
    }

    void store_grids() {
        for (std::int64_t row = 0; row < rows_; ++row) {
            for (std::int64_t group = 0; group < groups_; ++group) {
                output_.scales[(first_row_ + row) * groups_ + group] = grid(scales_, group)[row];
                output_.zeros[(first_row_ + row) * groups_ + group] = grid(zeros_, group)[row];
            }
        }
    }

    static float* grid(Buffer<float>& grids, std::int64_t group) { return grids.data() + group * strip_rows; }

    const SolverInput& input_;
    const SolverOutput& output_;
    const std::int64_t first_row_, rows_, groups_;
    Buffer<float> weights_;                 // [columns][strip_rows]
    Buffer<float> errors_;                  // [block_columns][strip_rows]
    Buffer<float> scales_, zeros_;          // [groups][strip_rows]
    Buffer<std::int64_t> positions_;        // of each column that groups count
    Buffer<float> importance_;              // likewise
};

template <class Floats>
void solve_strip(const SolverInput& input, const SolverOutput& output, std::int64_t strip) {
    Strip<Floats>(input, output, strip).solve();
}

}  // namespace
}  // namespace octavo
