// Products of ragged matrices at every instruction set: the same bits as in portable C++, by any split of rows and
// panels, and no byte touched that is not theirs.
#include "matrix.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "guarded.h"

using namespace octavo;

namespace {

struct Shape {
    std::int64_t outputs, columns, rows, group_size;
};

constexpr Shape shapes[] = {{1, 1, 1, 1},      {16, 16, 8, 16},    {17, 33, 3, 32},   {31, 300, 9, 128},
                            {33, 70, 16, 7},   {48, 576, 21, 128}, {50, 64, 40, 64},  {15, 515, 18, 515},
                            {64, 1000, 5, 96}, {5, 257, 33, 256},  {0, 20, 4, 8},     {20, 40, 0, 8}};

std::mt19937 random_bits(0);

template <class Value>
Value between(int low, int high) {
    return static_cast<Value>(std::uniform_int_distribution<int>(low, high)(random_bits));
}

// Arrays of exactly the size that they must have, so that sanitizers see what reads beyond.
Matrix random_codes(const Shape& shape, int bits, bool act_order, Pool& pool) {
    const std::int64_t groups = (shape.columns + shape.group_size - 1) / shape.group_size;
    const auto size = [](std::int64_t count) { return static_cast<std::size_t>(count); };
    std::vector<std::uint8_t> codes(size(shape.outputs * shape.columns));
    std::vector<std::uint16_t> scales(size(shape.outputs * groups));
    std::vector<std::int16_t> zeros(scales.size());
    std::vector<std::int32_t> group_of_column(size(shape.columns));
    for (auto& code : codes) code = between<std::uint8_t>(0, (1 << bits) - 1);
    for (auto& scale : scales) scale = between<std::uint16_t>(0x2000, 0x2fff);
    for (auto& zero : zeros) zero = between<std::int16_t>(-1, 1 << bits);
    for (std::size_t i = 0; i < group_of_column.size(); ++i) {
        group_of_column[i] = static_cast<std::int32_t>(static_cast<std::int64_t>(i) / shape.group_size);
    }
    if (act_order) std::shuffle(group_of_column.begin(), group_of_column.end(), random_bits);
    return prepare_codes({codes.data(), scales.data(), zeros.data(), group_of_column.data(), shape.outputs,
                          shape.columns, groups, bits},
                         pool);
}

Matrix random_dense(const Shape& shape, Storage storage, Pool& pool) {
    const auto count = static_cast<std::size_t>(shape.outputs * shape.columns);
    if (storage == Storage::float32) {
        std::vector<float> values(count);
        for (float& value : values) value = static_cast<float>(between<int>(-1000, 1000)) * 1e-3f;
        return prepare_dense(values.data(), storage, shape.outputs, shape.columns, pool);
    }
    std::vector<std::uint16_t> values(count);
    for (auto& value : values) value = between<std::uint16_t>(0x2000, 0x3fff);
    return prepare_dense(values.data(), storage, shape.outputs, shape.columns, pool);
}

// The product by whole calls or, to show that parts add up to it, row by row and panel by panel.
void multiply(const Matrix& matrix, RowsAt<const float> inputs, RowsAt<float> outputs, std::int64_t rows, Isa isa,
              bool in_parts) {
    const MatrixKernels& kernels = matrix_kernels(isa);
    Encoded encoded;
    encoded.resize(matrix.form, rows);
    if (!in_parts) {
        kernels.encode(matrix.form, inputs, {0, rows}, encoded);
        kernels.multiply(matrix, encoded, {0, rows}, {0, matrix.panels()}, outputs);
        return;
    }
    for (std::int64_t row = rows; row-- > 0;) {
        kernels.encode(matrix.form, inputs, {row, row + 1}, encoded);
        for (std::int64_t panel = 0; panel < matrix.panels(); ++panel) {
            kernels.multiply(matrix, encoded, {row, row + 1}, {panel, panel + 1}, outputs);
        }
    }
}

void test_bits(const Matrix& matrix, const Shape& shape) {
    const std::int64_t rows = shape.rows, gap = 3;  // rows need not follow each other
    const std::int64_t input_stride = shape.columns + gap, output_stride = shape.outputs + gap;
    const auto extent = [&](std::int64_t stride, std::int64_t width) {
        return rows == 0 ? 0 : (rows - 1) * stride + width;
    };
    std::vector<float> expected;
    for (const Against against : {Against::front, Against::back}) {
        const Guarded<float> inputs(extent(input_stride, shape.columns), against);
        std::mt19937 same_bits(1);
        for (std::int64_t i = 0; i < extent(input_stride, shape.columns); ++i) {
            inputs[i] = std::normal_distribution<float>()(same_bits);
        }
        for (const Isa isa : available_isas()) {
            for (const bool in_parts : {false, true}) {
                const std::int64_t size = extent(output_stride, shape.outputs);
                const Guarded<float> outputs(size, against);
                for (std::int64_t i = 0; i < size; ++i) outputs[i] = -7.0f;  // what lies between rows must stay
                multiply(matrix, {inputs.data(), input_stride}, {outputs.data(), output_stride}, rows, isa, in_parts);
                if (expected.empty()) expected.assign(outputs.data(), outputs.data() + size);
                const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(float);
                require(bytes == 0 || std::memcmp(outputs.data(), expected.data(), bytes) == 0, name_of(isa));
                for (std::int64_t i = 0; i < size; ++i) {
                    require(i % output_stride < shape.outputs || outputs[i] == -7.0f, "bytes between rows");
                }
            }
        }
    }
}

void test_pool() {
    for (const int threads : {1, 2, 3, 5}) {
        Pool pool(threads);
        for (int repeat = 0; repeat < 200; ++repeat) {
            std::vector<int> visits(static_cast<std::size_t>(threads), 0);
            pool.run([&](int part, int parts) { visits[static_cast<std::size_t>(part)] += parts; });
            for (const int visit : visits) require(visit == threads, "each part runs once");
        }
    }
}

}  // namespace

int main() {
    Pool pool(2);
    for (const Shape& shape : shapes) {
        for (const int bits : {2, 3, 4, 8}) {
            for (const bool act_order : {false, true}) test_bits(random_codes(shape, bits, act_order, pool), shape);
        }
        for (const Storage storage : {Storage::float32, Storage::float16, Storage::bfloat16}) {
            test_bits(random_dense(shape, storage, pool), shape);
        }
    }
    test_pool();
}
