// Preparation of matrices.
//
// Codes lie in units of 16 columns: a unit of a panel is bits / 2 rows of sixteen 32-bit words, one word for each
// output. Read as two int16, a word shifted right by 0, bits, 2 * bits … holds a pair of neighbouring columns in its
// lowest bits; pair p of a unit is in row p / (16 / bits). So a mask and a shift make what multiply-and-add of int16
// pairs takes, and four bytes of 8-bit codes, in the order 0, 2, 1, 3, are what a tile of AMX takes.
// Dense values lie column after column, sixteen outputs side by side.
#include "matrix.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "barrier.h"

namespace octavo {

// In the sources of each instruction set.
extern const MatrixKernels portable_matrix_kernels;
#if defined(__x86_64__)
extern const MatrixKernels avx2_matrix_kernels;
extern const MatrixKernels avx512_matrix_kernels;
extern const MatrixKernels vnni_matrix_kernels;
extern const MatrixKernels amx_emulated_matrix_kernels;
extern const MatrixKernels amx_matrix_kernels;
#endif

namespace {

constexpr std::int64_t tile_bytes = 1024;  // a tile may reach that far beyond the last panel
constexpr std::int64_t smallest_shared_work = 1 << 15;  // products below which waking threads costs more
constexpr std::int64_t rows_at_once = 256;              // encoded rows that stay in the caches while they are used

int bits_of(Storage storage) {
    switch (storage) {
        case Storage::codes8: return 8;
        case Storage::codes4: return 4;
        case Storage::codes2: return 2;
        case Storage::float32: return 32;
        case Storage::float16:
        case Storage::bfloat16: return 16;
    }
    throw std::invalid_argument("no such storage");
}

Storage storage_of_codes(int bits) {
    switch (bits) {
        case 8: return Storage::codes8;
        case 3:
        case 4: return Storage::codes4;
        case 2: return Storage::codes2;
        default: throw std::invalid_argument("codes of " + std::to_string(bits) + " bits have no layout");
    }
}

// Columns in the order of their groups, cut into padded segments; and the group of each segment.
struct Order {
    InputForm form;
    std::vector<std::int32_t> group_of_segment;
};

Order order_columns(const Codes& given) {
    std::vector<std::int32_t> columns(static_cast<std::size_t>(given.columns));
    std::iota(columns.begin(), columns.end(), 0);
    const std::int32_t* group = given.group_of_column;
    const auto earlier = [group](std::int32_t one, std::int32_t other) { return group[one] < group[other]; };
    std::stable_sort(columns.begin(), columns.end(), earlier);

    Order order;
    order.form.quantized = true;
    order.form.columns = given.columns;
    std::vector<std::int32_t>& sources = order.form.sources;
    for (auto first = columns.begin(); first != columns.end();) {
        auto last = first;
        while (last != columns.end() && last - first < segment_columns && group[*last] == group[*first]) ++last;
        sources.insert(sources.end(), first, last);
        sources.resize((sources.size() + column_unit - 1) / column_unit * column_unit, -1);
        order.form.segment_ends.push_back(static_cast<std::int32_t>(sources.size()));
        order.group_of_segment.push_back(group[*first]);
        first = last;
    }
    return order;
}

// Whether the columns stand as they come, with no padding but at the end.
bool in_order(const InputForm& form) {
    for (std::int64_t column = 0; column < form.columns; ++column) {
        if (form.sources[static_cast<std::size_t>(column)] != column) return false;
    }
    return true;
}

void check(const Codes& given) {
    const int largest = 1 << given.bits;
    const auto refuse = [](const std::string& what) { throw std::invalid_argument(what + " out of range"); };
    if (given.columns > std::numeric_limits<std::int32_t>::max() / 2) refuse("number of columns");
    for (std::int64_t column = 0; column < given.columns; ++column) {
        if (given.group_of_column[column] < 0 || given.group_of_column[column] >= given.groups) refuse("group");
    }
    for (std::int64_t i = 0; i < given.outputs * given.groups; ++i) {
        if (given.zeros[i] < -1 || given.zeros[i] > largest) refuse("zero");
    }
}

// Packs the codes of one output, given in the order of the padded columns, into its words.
template <int bits>
void pack(const std::uint8_t* ordered, std::int64_t columns, std::uint32_t* words) {
    constexpr int pairs_of_word = 16 / bits;
    for (std::int64_t column = 0; column < columns; column += 2 * pairs_of_word, words += panel_outputs) {
        std::uint32_t word = 0;
        for (int pair = 0; pair < pairs_of_word; ++pair) {
            const std::uint32_t low = ordered[column + 2 * pair], high = ordered[column + 2 * pair + 1];
            word |= (low | high << 16) << (bits * pair);
        }
        *words = word;
    }
}

void pack(Storage storage, const std::uint8_t* ordered, std::int64_t columns, std::uint32_t* words) {
    switch (storage) {
        case Storage::codes8: return pack<8>(ordered, columns, words);
        case Storage::codes4: return pack<4>(ordered, columns, words);
        default: return pack<2>(ordered, columns, words);
    }
}

// The codes of some panels; false where one is too large for its bits.
bool fill_codes(const Codes& given, const std::vector<std::int32_t>& sources, Range panels, Matrix& matrix) {
    std::vector<std::uint8_t> ordered(sources.size());
    std::uint8_t all_bits = 0;
    const std::int64_t last = std::min(panels.end * panel_outputs, given.outputs);
    for (std::int64_t output = panels.begin * panel_outputs; output < last; ++output) {
        const std::uint8_t* row = given.codes + output * given.columns;
        for (std::size_t column = 0; column < sources.size(); ++column) {
            ordered[column] = sources[column] < 0 ? std::uint8_t{0} : row[sources[column]];
            all_bits |= ordered[column];
        }
        std::uint8_t* panel = matrix.values.data() + output / panel_outputs * matrix.panel_bytes();
        pack(matrix.storage, ordered.data(), matrix.form.padded_columns(),
             reinterpret_cast<std::uint32_t*>(panel) + output % panel_outputs);
    }
    return all_bits >> given.bits == 0;
}

void fill_grid(const Codes& given, const std::vector<std::int32_t>& group_of_segment, Matrix& matrix) {
    const std::int64_t segments = matrix.form.segments(), size = matrix.panels() * segments * panel_outputs;
    matrix.scales = Buffer<std::uint16_t>(size);
    const std::int64_t known = given.outputs * given.groups;
    const auto like_first = [&](std::int16_t zero) { return zero == given.zeros[0]; };
    const bool one_zero = std::all_of(given.zeros, given.zeros + known, like_first);
    if (one_zero && known > 0) matrix.common_zero = given.zeros[0];
    if (!one_zero) matrix.zeros = Buffer<std::int16_t>(size);
    for (std::int64_t output = 0; output < given.outputs; ++output) {
        for (std::int64_t segment = 0; segment < segments; ++segment) {
            const std::int64_t group = group_of_segment[static_cast<std::size_t>(segment)];
            const std::int64_t from = output * given.groups + group;
            const std::int64_t row = output / panel_outputs * segments + segment;
            const std::int64_t to = row * panel_outputs + output % panel_outputs;
            matrix.scales[to] = given.scales[from];
            if (!one_zero) matrix.zeros[to] = given.zeros[from];
        }
    }
}

template <class Value>
void fill_dense(const Value* values, Range panels, Matrix& matrix) {
    const std::int64_t columns = matrix.form.columns;
    for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const std::int64_t first = panel * panel_outputs;
        const std::int64_t real = std::min<std::int64_t>(matrix.outputs - first, panel_outputs);
        Value* to = reinterpret_cast<Value*>(matrix.values.data()) + panel * columns * panel_outputs;
        for (std::int64_t column = 0; column < columns; ++column, to += panel_outputs) {
            for (std::int64_t i = 0; i < real; ++i) to[i] = values[(first + i) * columns + column];
        }
    }
}

}  // namespace

bool InputForm::operator==(const InputForm& other) const {
    return columns == other.columns && quantized == other.quantized && segment_ends == other.segment_ends &&
           sources == other.sources;
}

std::int64_t Matrix::panel_bytes() const {
    return form.padded_columns() * panel_outputs * bits_of(storage) / 8;
}

Matrix prepare_codes(const Codes& given, Pool& pool) {
    Matrix matrix;
    matrix.outputs = given.outputs;
    matrix.storage = storage_of_codes(given.bits);
    check(given);
    Order order = order_columns(given);
    matrix.form = order.form;
    if (in_order(matrix.form)) matrix.form.sources.clear();
    matrix.values = Buffer<std::uint8_t>(matrix.panels() * matrix.panel_bytes() + tile_bytes);
    std::atomic<bool> fits{true};
    pool.run([&](int part, int parts) {
        if (!fill_codes(given, order.form.sources, share_of(matrix.panels(), part, parts), matrix)) fits = false;
    });
    if (!fits) throw std::invalid_argument("code out of range");
    fill_grid(given, order.group_of_segment, matrix);
    return matrix;
}

Matrix prepare_dense(const void* values, Storage storage, std::int64_t outputs, std::int64_t columns, Pool& pool) {
    Matrix matrix;
    matrix.outputs = outputs;
    matrix.storage = storage;
    matrix.form.columns = columns;
    matrix.values = Buffer<std::uint8_t>(matrix.panels() * matrix.panel_bytes());
    pool.run([&](int part, int parts) {
        const Range panels = share_of(matrix.panels(), part, parts);
        if (storage == Storage::float32) {
            fill_dense(static_cast<const std::uint32_t*>(values), panels, matrix);
        } else {
            fill_dense(static_cast<const std::uint16_t*>(values), panels, matrix);
        }
    });
    return matrix;
}

void set_bias(Matrix& matrix, const float* bias) {
    matrix.bias = Buffer<float>(matrix.panels() * panel_outputs);
    std::copy(bias, bias + matrix.outputs, matrix.bias.data());
}

void Encoded::resize(const InputForm& form, std::int64_t rows) {
    columns = form.padded_columns();
    segments = form.segments();
    if (form.quantized) {
        integers.grow(rows * columns);
        sums.grow(rows * segments);
        scales.grow(rows);
    } else {
        floats.grow(rows * columns);
    }
}

const MatrixKernels& matrix_kernels(Isa isa) {
    require_available(isa);
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx2: return avx2_matrix_kernels;
        case Isa::avx512: return avx512_matrix_kernels;
        case Isa::vnni: return vnni_matrix_kernels;
        case Isa::amx_emulated: return amx_emulated_matrix_kernels;
        case Isa::amx: return amx_matrix_kernels;
#endif
        default: return portable_matrix_kernels;
    }
}

void matmul(const Matrix& matrix, RowsAt<const float> inputs, RowsAt<float> outputs, std::int64_t rows, Pool& pool,
            Isa isa) {
    const MatrixKernels& kernels = matrix_kernels(isa);
    static thread_local Encoded kept;  // by the calling thread from call to call, so that it stays in the caches
    Encoded& encoded = kept;
    encoded.resize(matrix.form, std::min(rows, rows_at_once));
    const bool shared = rows * matrix.form.columns * matrix.outputs >= smallest_shared_work;
    Barrier barrier(shared ? pool.threads() : 1);
    const auto work = [&](int part, int parts) {
        for (std::int64_t first = 0; first < rows; first += rows_at_once) {
            const std::int64_t count = std::min(rows_at_once, rows - first);
            const RowsAt<const float> some{inputs[first], inputs.stride};
            kernels.encode(matrix.form, some, share_of(count, part, parts), encoded);
            barrier.wait();
            kernels.multiply(matrix, encoded, {0, count}, share_of(matrix.panels(), part, parts),
                             {outputs[first], outputs.stride});
            if (first + count < rows) barrier.wait();
        }
    };
    if (shared) {
        pool.run(work);
    } else {
        work(0, 1);
    }
}

}  // namespace octavo
