// Whole layers and heads of ragged shapes at every instruction set and number of threads: the same bits as in portable
// C++ on one thread, by any cut of the sequences into calls, and no byte touched that is not theirs.
#include "layer.h"

#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "guarded.h"

using namespace octavo;

namespace {

struct Shape {
    std::int64_t hidden, heads, kv_heads, head_dim, mlp, window;
    bool head_norms;
};

constexpr Shape shapes[] = {{16, 1, 1, 2, 16, 0, false},  {23, 3, 1, 10, 17, 0, false}, {40, 4, 2, 34, 50, 5, true},
                            {33, 2, 2, 64, 129, 3, true}, {64, 6, 2, 16, 70, 0, true}};
constexpr std::int64_t lengths[] = {1, 5, 139};  // of the sequences; the last crosses a block of positions
constexpr std::int64_t page_size = 3;

std::mt19937 random_bits(0);

std::vector<float> random_floats(std::int64_t count, float deviation) {
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) value = std::normal_distribution<float>(0.0f, deviation)(random_bits);
    return values;
}

SharedMatrix random_matrix(std::int64_t outputs, std::int64_t columns, int bits, Pool& pool) {
    const std::int64_t group_size = 7, groups = (columns + group_size - 1) / group_size;
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(outputs * columns));
    for (auto& code : codes) code = static_cast<std::uint8_t>(random_bits() % (1u << bits));
    const std::vector<std::uint16_t> scales(static_cast<std::size_t>(outputs * groups), bits == 8 ? 0x1400 : 0x2400);
    const std::vector<std::int16_t> zeros(scales.size(), static_cast<std::int16_t>(1 << (bits - 1)));
    std::vector<std::int32_t> group_of_column(static_cast<std::size_t>(columns));
    for (std::size_t i = 0; i < group_of_column.size(); ++i) group_of_column[i] = static_cast<std::int32_t>(i / 7);
    return std::make_shared<const Matrix>(prepare_codes(
        {codes.data(), scales.data(), zeros.data(), group_of_column.data(), outputs, columns, groups, bits}, pool));
}

Layer random_layer(const Shape& shape, Pool& pool) {
    const auto norm = [](std::int64_t size) { return std::vector<float>(static_cast<std::size_t>(size), 1.5f); };
    const std::vector<float> of_hidden = norm(shape.hidden), of_heads = norm(shape.head_dim);
    const float* head_norm = shape.head_norms ? of_heads.data() : nullptr;
    const std::int64_t queries = shape.heads * shape.head_dim, keys = shape.kv_heads * shape.head_dim;
    return Layer({of_hidden.data(), of_hidden.data(), head_norm, head_norm,
                  random_matrix(queries, shape.hidden, 8, pool), random_matrix(keys, shape.hidden, 8, pool),
                  random_matrix(keys, shape.hidden, 8, pool), random_matrix(shape.hidden, queries, 4, pool),
                  random_matrix(shape.mlp, shape.hidden, 4, pool), random_matrix(shape.mlp, shape.hidden, 4, pool),
                  random_matrix(shape.hidden, shape.mlp, 2, pool), shape.head_dim, shape.window, 1e-5f});
}

// All sequences, their pages one after another, and a cache that ends with the last page.
class Sequences {
public:
    explicit Sequences(const Shape& shape) : shape_(shape) {
        std::int64_t rows = 0;
        for (const std::int64_t length : lengths) {
            first_rows_.push_back(rows);
            rows += length;
            const std::int64_t pages = (length - 1) / page_size + 1;
            most_pages_ = std::max(most_pages_, pages);
            first_pages_.push_back(pages_);
            pages_ += pages;
        }
        hidden_ = random_floats(rows * shape.hidden, 1.0f);
        angles_ = random_floats(rows * shape.head_dim / 2, 3.0f);
    }

    // The outputs of all rows, `most` rows of each sequence in a call.
    std::vector<float> run(const Layer& layer, std::int64_t most, Against against, Pool& pool, Isa isa) const {
        const std::int64_t slots = pages_ * page_size, place = shape_.kv_heads * shape_.head_dim;
        const Guarded<float> keys(slots * place, against), values(slots * place, against);
        return run_over({keys.data(), values.data(), {1, slots}, slots}, layer, most, against, pool, isa);
    }

    // The same over a cache in 8 bits.
    std::vector<float> run_coded(const Layer& layer, std::int64_t most, Against against, Pool& pool, Isa isa) const {
        const std::int64_t slots = pages_ * page_size, heads = slots * shape_.kv_heads;
        const Guarded<std::int8_t> keys(heads * shape_.head_dim, against), values(heads * shape_.head_dim, against);
        const Guarded<float> key_scales(heads, against), value_scales(heads, against);
        const Cache cache{
            {keys.data(), key_scales.data()}, {values.data(), value_scales.data()}, {1, slots}, slots};
        return run_over(cache, layer, most, against, pool, isa);
    }

private:
    std::vector<float> run_over(Cache cache, const Layer& layer, std::int64_t most, Against against, Pool& pool,
                                Isa isa) const {
        std::vector<float> results(hidden_.size());
        for (std::int64_t begin = 0; begin < lengths[std::size(lengths) - 1]; begin += most) {
            run_rows(layer, {begin, begin + most}, cache, against, pool, isa, results);
        }
        return results;
    }

    // The rows of each sequence that lie in `range`.
    void run_rows(const Layer& layer, Range range, Cache cache, Against against, Pool& pool, Isa isa,
                  std::vector<float>& results) const {
        std::vector<std::int64_t> rows, slots, ends, starts{0};
        for (std::size_t s = 0; s < std::size(lengths); ++s) {
            const std::int64_t end = std::min(range.end, lengths[s]);
            for (std::int64_t position = range.begin; position < end; ++position) {
                rows.push_back(first_rows_[s] + position);
                slots.push_back(first_pages_[s] * page_size + position);
            }
            ends.push_back(std::max<std::int64_t>(end, 1));
            starts.push_back(static_cast<std::int64_t>(rows.size()));
        }
        const auto count = static_cast<std::int64_t>(rows.size()), half = shape_.head_dim / 2;
        const std::vector<std::int64_t> table = page_table();
        const Guarded<float> hidden(count * shape_.hidden, against), outputs(count * shape_.hidden, against);
        const Guarded<float> angles(count * half, against);
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t row = rows[static_cast<std::size_t>(i)];
            std::copy_n(hidden_.data() + row * shape_.hidden, shape_.hidden, hidden.data() + i * shape_.hidden);
            std::copy_n(angles_.data() + row * half, half, angles.data() + i * half);
        }
        const Step step({angles.data(), slots.data(), ends.data(), starts.data(), table.data(), count, half,
                         static_cast<std::int64_t>(ends.size()), most_pages_, page_size, 1.0f});
        run_layer(layer, step, cache, hidden.data(), outputs.data(), pool, isa);
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t row = rows[static_cast<std::size_t>(i)];
            std::copy_n(outputs.data() + i * shape_.hidden, shape_.hidden, results.data() + row * shape_.hidden);
        }
    }

    std::vector<std::int64_t> page_table() const {
        std::vector<std::int64_t> table(std::size(lengths) * static_cast<std::size_t>(most_pages_), 0);
        for (std::size_t s = 0; s < std::size(lengths); ++s) {
            for (std::int64_t page = 0; page <= (lengths[s] - 1) / page_size; ++page) {
                table[s * static_cast<std::size_t>(most_pages_) + static_cast<std::size_t>(page)] =
                    first_pages_[s] + page;
            }
        }
        return table;
    }

    Shape shape_;
    std::vector<std::int64_t> first_rows_, first_pages_;
    std::int64_t pages_ = 0, most_pages_ = 0;
    std::vector<float> hidden_, angles_;
};

bool same_bits(const std::vector<float>& one, const std::vector<float>& other) {
    return std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
}

void test_layer(const Shape& shape) {
    Pool alone(1), pair(2), three(3);
    const Layer layer = random_layer(shape, alone);
    const Sequences sequences(shape);
    const std::vector<float> expected = sequences.run(layer, 1000, Against::back, alone, Isa::portable);
    const std::vector<float> coded = sequences.run_coded(layer, 1000, Against::back, alone, Isa::portable);
    for (const float value : expected) require(value == value, "a finite layer has finite outputs");
    require(!same_bits(coded, expected), "8 bits leave a trace");
    for (const Isa isa : available_isas()) {
        for (Pool* pool : {&alone, &pair, &three}) {
            for (const std::int64_t most : {std::int64_t{1000}, std::int64_t{20}}) {
                require(same_bits(sequences.run(layer, most, Against::back, *pool, isa), expected), name_of(isa));
            }
        }
        require(same_bits(sequences.run(layer, 1, Against::front, pair, isa), expected), "a row at a time");
        require(same_bits(sequences.run_coded(layer, 1000, Against::back, pair, isa), coded), "8 bits");
        require(same_bits(sequences.run_coded(layer, 1, Against::front, three, isa), coded), "8 bits by rows");
    }
}

void test_head(std::int64_t hidden, std::int64_t outputs) {
    Pool alone(1), pair(2);
    const std::vector<float> norm(static_cast<std::size_t>(hidden), 0.5f);
    const Head head(norm.data(), 1e-6f, random_matrix(outputs, hidden, 8, alone));
    const std::int64_t rows = 19;
    const std::vector<float> inputs = random_floats(rows * hidden, 1.0f);
    std::vector<float> expected;
    for (const Isa isa : available_isas()) {
        for (Pool* pool : {&alone, &pair}) {
            for (const Against against : {Against::front, Against::back}) {
                const Guarded<float> states(rows * hidden, against), logits(rows * outputs, against);
                std::copy(inputs.begin(), inputs.end(), states.data());
                run_head(head, states.data(), rows, logits.data(), *pool, isa);
                const std::vector<float> got(logits.data(), logits.data() + rows * outputs);
                if (expected.empty()) expected = got;
                require(same_bits(got, expected), name_of(isa));
            }
        }
    }
}

}  // namespace

int main() {
    for (const Shape& shape : shapes) test_layer(shape);
    test_head(23, 37);
    test_head(64, 128);
}
