// Matrices in the layout that the kernels read, rows of inputs encoded for them, and their product, defined to the
// last bit: docs/decisions/0006-native-library.md.
//
// A panel is 16 neighbouring outputs; its values lie together, column after column, so that a product reads one
// stream. A quantized matrix orders its columns so that those of a group are neighbours, and cuts each group into
// segments of at most 256 columns, each padded to a multiple of 16 with codes that meet zeros.
#pragma once

#include <cstdint>
#include <vector>

#include "isa.h"
#include "memory.h"
#include "pool.h"

namespace octavo {

constexpr int panel_outputs = 16;
constexpr int column_unit = 16;      // segments are padded to whole units
constexpr int segment_columns = 256;  // 256 * 256 * 32767, the largest sum of a segment, fits 32 bits
constexpr int largest_input = 32767;

enum class Storage : std::uint8_t { codes8, codes4, codes2, float32, float16, bfloat16 };

// How a matrix wants its inputs. Matrices with equal forms can share one `Encoded`.
struct InputForm {
    std::int64_t columns = 0;  // of the inputs as they come
    bool quantized = false;    // encoded as int16, else taken as they are
    // Of quantized forms only. `sources` is the input of each padded column, -1 for a zero; empty where the inputs
    // stay in order, with zeros behind them.
    std::vector<std::int32_t> segment_ends;  // in padded columns
    std::vector<std::int32_t> sources;

    std::int64_t segments() const { return static_cast<std::int64_t>(segment_ends.size()); }
    std::int64_t padded_columns() const {
        if (!quantized) return columns;
        return segment_ends.empty() ? 0 : segment_ends.back();
    }
    bool operator==(const InputForm& other) const;
};

struct Matrix {
    std::int64_t outputs = 0;
    Storage storage{};
    InputForm form;
    Buffer<std::uint8_t> values;   // panels; see `matrix.cpp` for the order within one
    Buffer<std::uint16_t> scales;  // [panels][segments][16], float16; of quantized matrices only
    Buffer<std::int16_t> zeros;    // likewise; empty where all are `common_zero`
    std::int32_t common_zero = 0;
    Buffer<float> bias;            // [panels][16], or empty

    std::int64_t panels() const { return (outputs + panel_outputs - 1) / panel_outputs; }
    std::int64_t panel_bytes() const;
};

inline bool same_form(const Matrix& one, const Matrix& other) { return one.form == other.form; }

// What a checkpoint says of a quantized weight, as plain arrays.
struct Codes {
    const std::uint8_t* codes;           // [outputs][columns]
    const std::uint16_t* scales;         // [outputs][groups], float16
    const std::int16_t* zeros;           // [outputs][groups]
    const std::int32_t* group_of_column;  // [columns]
    std::int64_t outputs, columns, groups;
    int bits;  // 2, 3, 4 or 8; 3 is stored as 4
};

// Throws std::invalid_argument for bits, groups, zeros or codes out of range.
Matrix prepare_codes(const Codes& codes, Pool& pool);

// `values` [outputs][columns], of `storage` float32, float16 or bfloat16.
Matrix prepare_dense(const void* values, Storage storage, std::int64_t outputs, std::int64_t columns, Pool& pool);

// `bias` [outputs] is added to each row of products.
void set_bias(Matrix& matrix, const float* bias);

// Rows of inputs, encoded for matrices of one form. The same at every instruction set.
struct Encoded {
    std::int64_t columns = 0, segments = 0;  // padded, as those of the form
    Buffer<std::int16_t> integers;           // [rows][columns]
    Buffer<std::int32_t> sums;               // [rows][segments], of the integers
    Buffer<float> scales;                    // [rows]
    Buffer<float> floats;                    // [rows][columns]; alone in use for forms that are not quantized

    // Makes room for `rows` rows of a form; not to be called while other threads encode.
    void resize(const InputForm& form, std::int64_t rows);
};

// Rows in memory: `stride` counts floats from one row to the next.
template <class Value>
struct RowsAt {
    Value* first;
    std::int64_t stride;

    Value* operator[](std::int64_t row) const { return first + row * stride; }
};

// What each instruction set brings. Both functions are serial, and may run inside a task of a pool on parts of one
// `Encoded` and one output.
struct MatrixKernels {
    // Encodes `rows` of `inputs` into the same rows of `encoded`.
    void (*encode)(const InputForm& form, RowsAt<const float> inputs, Range rows, Encoded& encoded);
    // Writes outputs 16 * panels.begin … of `rows`; row r of the result is at outputs[r], its output n at [n].
    void (*multiply)(const Matrix& matrix, const Encoded& encoded, Range rows, Range panels, RowsAt<float> outputs);
};

// Throws std::invalid_argument where this machine cannot run `isa`.
const MatrixKernels& matrix_kernels(Isa isa);

// outputs [rows][matrix.outputs] = inputs [rows][matrix.form.columns] * matrix^T + bias, on all threads of `pool`.
void matmul(const Matrix& matrix, RowsAt<const float> inputs, RowsAt<float> outputs, std::int64_t rows, Pool& pool,
            Isa isa);

}  // namespace octavo
