// The solver's loops on ragged shapes at every instruction set and number of threads: the same bits as in portable C++
// on one thread, and no byte touched that is not theirs.
#include "solver.h"

#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "gram.h"
#include "guarded.h"

using namespace octavo;

namespace {

void fill(const Guarded<float>& values, std::int64_t size, std::uint32_t seed) {
    std::mt19937 same_bits(seed);
    for (std::int64_t i = 0; i < size; ++i) values[i] = std::normal_distribution<float>()(same_bits);
}

template <class Value>
void require_equal(const Value* values, std::int64_t size, std::vector<Value>& expected, Isa isa) {
    if (expected.empty()) expected.assign(values, values + size);
    require(std::memcmp(values, expected.data(), static_cast<std::size_t>(size) * sizeof(Value)) == 0, name_of(isa));
}

void test_gram(std::int64_t tokens, std::int64_t columns, Pool& pool, std::vector<float>& expected) {
    for (const Isa isa : available_isas()) {
        for (const Against against : {Against::front, Against::back}) {
            const Guarded<float> inputs(tokens * columns, against), total(columns * columns, against);
            fill(inputs, tokens * columns, 1);
            fill(total, columns * columns, 2);
            add_gram(total.data(), inputs.data(), tokens, columns, pool, isa);
            require_equal(total.data(), columns * columns, expected, isa);
        }
    }
}

struct Problem {
    std::int64_t rows, columns, group_size;
    bool static_groups, symmetric;
};

void test_solution(const Problem& problem, Pool& pool, std::vector<std::uint8_t>& expected) {
    const auto [rows, columns, group_size, static_groups, symmetric] = problem;
    const std::int64_t groups = (columns + group_size - 1) / group_size;
    std::vector<std::int64_t> order(static_cast<std::size_t>(columns));
    std::iota(order.rbegin(), order.rend(), 0);
    const float shrinks[] = {1.0f, 0.9f, 0.8f};
    for (const Isa isa : available_isas()) {
        for (const Against against : {Against::front, Against::back}) {
            const Guarded<float> weight(rows * columns, against), factor(columns * columns, against);
            const Guarded<float> importance(columns, against), scales(rows * groups, against);
            const Guarded<float> zeros(rows * groups, against);
            const Guarded<std::uint8_t> codes(rows * columns, against);
            fill(weight, rows * columns, 3);
            fill(factor, columns * columns, 4);
            for (std::int64_t i = 0; i < columns; ++i) {
                factor[i * columns + i] = 20.0f;
                importance[i] = static_cast<float>(i % 5 + 1);
            }
            const GridRule rule{15.0f, 8.0f, 0.0f, symmetric, shrinks, 3};
            solve_columns({weight.data(), factor.data(), importance.data(), order.data(), rows, columns, group_size,
                           static_groups, rule},
                          {codes.data(), scales.data(), zeros.data()}, pool, isa);
            require_equal(codes.data(), rows * columns, expected, isa);
        }
    }
}

}  // namespace

int main() {
    Pool alone(1), pair(2), three(3);
    const std::int64_t sizes[][2] = {{1, 1}, {3, 17}, {127, 64}, {130, 65}, {257, 150}};
    for (const auto& [tokens, columns] : sizes) {
        std::vector<float> expected;
        for (Pool* pool : {&alone, &pair, &three}) test_gram(tokens, columns, *pool, expected);
    }
    const Problem problems[] = {{1, 1, 1, true, true},      {17, 33, 32, false, true},  {65, 150, 64, true, false},
                                {64, 129, 129, false, false}, {130, 200, 48, false, true}, {3, 300, 7, true, true}};
    for (const Problem& problem : problems) {
        std::vector<std::uint8_t> expected;
        for (Pool* pool : {&alone, &pair, &three}) test_solution(problem, *pool, expected);
    }
}
