// The kernels of matrix.h over the lanes of an instruction set. Included by one source per set.
#pragma once

#include <cstdint>
#include <type_traits>

#include "integer_lanes.h"
#include "matrix.h"
#include "rounding.h"
#include "unrolled.h"

namespace octavo {
namespace {

constexpr int pairs_of_unit = column_unit / 2;
constexpr int dense_block = 256;                  // columns whose products are summed apart
constexpr std::int64_t chunk_bytes = 512 * 1024;  // of encoded rows: they stay in the second-level cache
constexpr std::int64_t fewest_widened_rows = 32;   // with fewer, to widen costs more than it saves
constexpr std::int64_t most_widened_rows = 64;    // whose sums stay beside the widened values
constexpr std::int32_t infinity_bits = 0x7f800000;

inline float float_of(std::int32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// Bits of the largest magnitude of a row; those of Inf or NaN are the largest of all.
template <class Lanes>
std::int32_t largest_magnitude_bits(const float* inputs, std::int64_t columns) {
    auto largest = Lanes::broadcast(0);
    std::int64_t column = 0;
    for (; column + panel_outputs <= columns; column += panel_outputs) {
        largest = Lanes::larger(largest, Lanes::magnitude_bits(Lanes::Floats::load(inputs + column)));
    }
    if (column < columns) {
        const auto rest = Lanes::Floats::load_first(inputs + column, static_cast<int>(columns - column));
        largest = Lanes::larger(largest, Lanes::magnitude_bits(rest));
    }
    return Lanes::largest(largest);
}

// The inputs of sixteen padded columns.
template <class Lanes>
typename Lanes::Floats load_unit(const InputForm& form, const float* inputs, std::int64_t column) {
    if (form.sources.empty()) {
        const std::int64_t left = form.columns - column;
        return left >= column_unit ? Lanes::Floats::load(inputs + column)
                                   : Lanes::Floats::load_first(inputs + column, static_cast<int>(left));
    }
    float gathered[column_unit];
    const std::int32_t* sources = form.sources.data() + column;
    for (int i = 0; i < column_unit; ++i) gathered[i] = sources[i] < 0 ? 0.0f : inputs[sources[i]];
    return Lanes::Floats::load(gathered);
}

template <class Lanes>
void encode_integers(const InputForm& form, const float* inputs, std::int64_t row, Encoded& encoded) {
    const std::int32_t largest_bits = largest_magnitude_bits<Lanes>(inputs, form.columns);
    const bool finite = largest_bits < infinity_bits;
    const Rounding rounding = rounding_for(float_of(largest_bits), largest_input);
    const auto zeros = Lanes::Floats::broadcast(0.0f), factor = Lanes::Floats::broadcast(rounding.factor);
    std::int16_t* integers = encoded.integers.data() + row * encoded.columns;
    std::int64_t column = 0;
    for (std::int64_t segment = 0; segment < encoded.segments; ++segment) {
        auto sum = Lanes::broadcast(0);
        for (; column < form.segment_ends[static_cast<std::size_t>(segment)]; column += column_unit) {
            // Inf and NaN are no integers, even times zero.
            const auto values = finite ? load_unit<Lanes>(form, inputs, column) : zeros;
            const auto rounded = Lanes::round(values * factor);
            Lanes::store(integers + column, rounded);
            sum = Lanes::add(sum, rounded);
        }
        encoded.sums[row * encoded.segments + segment] = Lanes::sum(sum);
    }
    encoded.scales[row] = rounding.scale;
}

template <class Lanes>
void encode(const InputForm& form, RowsAt<const float> inputs, Range rows, Encoded& encoded) {
    for (std::int64_t row = rows.begin; row < rows.end; ++row) {
        if (form.quantized) {
            encode_integers<Lanes>(form, inputs[row], row, encoded);
        } else {
            float* target = encoded.floats.data() + row * encoded.columns;
            for (std::int64_t column = 0; column < form.columns; ++column) target[column] = inputs[row][column];
        }
    }
}

// Scales the sums of one panel by those of the rows where there are any, adds the bias, and writes the outputs that
// exist.
template <class Lanes>
void write(const Matrix& matrix, const float (*sums)[panel_outputs], const float* row_scales, int rows,
           std::int64_t panel, RowsAt<float> outputs) {
    const std::int64_t first = panel * panel_outputs;
    for (int row = 0; row < rows; ++row) {
        auto result = Lanes::Floats::load(sums[row]);
        if (row_scales != nullptr) result = Lanes::Floats::broadcast(row_scales[row]) * result;
        if (matrix.bias.size() > 0) result = result + Lanes::Floats::load(matrix.bias.data() + first);
        if (matrix.outputs - first >= panel_outputs) {
            result.store(outputs[row] + first);
        } else {
            result.store_first(outputs[row] + first, static_cast<int>(matrix.outputs - first));
        }
    }
}

// sum += scale * centered, where `centered` are products less zeros times inputs, for one panel and row of a segment.
template <class Lanes>
[[gnu::always_inline]] inline void close_segment(typename Lanes::Integers centered, typename Lanes::Floats scales,
                                                 float* sum) {
    (Lanes::Floats::load(sum) + scales * Lanes::to_floats(centered)).store(sum);
}

template <class Lanes>
typename Lanes::Integers zeros_of(const Matrix& matrix, std::int64_t panel, std::int64_t segment) {
    if (matrix.zeros.size() == 0) return Lanes::broadcast(matrix.common_zero);
    return Lanes::load(matrix.zeros.data() + (panel * matrix.form.segments() + segment) * panel_outputs);
}

template <class Lanes>
typename Lanes::Floats scales_of(const Matrix& matrix, std::int64_t panel, std::int64_t segment) {
    return Lanes::load_float16(matrix.scales.data() + (panel * matrix.form.segments() + segment) * panel_outputs);
}

// Has values brought into the second-level cache before they are needed: sums wait for nothing but arithmetic, while
// memory goes on working. Where several tiles of rows pass over the same panels, only the first finds them in memory;
// so each fetches its share of the panels that come next, one unit in `passes`.
template <int unit_bytes>
class Fetcher {
public:
    Fetcher(const std::uint8_t* first, int passes, int pass) : next_(first), passes_(passes), left_(pass) {}

    // To be called once for each unit of `panels` panels, `panel_bytes` apart.
    template <int panels>
    [[gnu::always_inline]] void fetch(std::int64_t panel_bytes) {
        const std::uint8_t* unit = next_;
        next_ += unit_bytes;
        if (left_-- > 0) return;
        left_ = passes_ - 1;
        unrolled<panels>([&](auto p) {
            unrolled<unit_bytes / line_bytes>([&](auto line) {
                __builtin_prefetch(unit + p * panel_bytes + line * line_bytes, 0, second_level);
            });
        });
    }

private:
    static constexpr int line_bytes = 64, second_level = 2;

    const std::uint8_t* next_;
    const int passes_;
    int left_;  // units until the next that is fetched
};

// Products with panels of codes of `bits` bits; those of 16 bits have been widened, and have zeros taken off. A part of
// the columns is some segments.
template <class Lanes, int bits>
struct CodesTile {
    using Integers = typename Lanes::Integers;
    using Wide = CodesTile<Lanes, 16>;
    static constexpr bool widens = Lanes::widens;
    static constexpr int words_of_unit = bits / 2;    // of 32 bits, for each output
    static constexpr int fields_of_word = 16 / bits;  // a word is fields of two codes, one in each half
    static constexpr int unit_bytes = words_of_unit * 4 * panel_outputs;

    const Matrix& matrix;
    const Encoded& encoded;

    Range all() const { return {0, encoded.segments}; }
    const float* row_scales(std::int64_t row) const { return encoded.scales.data() + row; }
    // Where the units of a part of a panel begin.
    const std::uint8_t* units(std::int64_t panel, Range part) const {
        return matrix.values.data() + panel * matrix.panel_bytes() + first_column(part) / column_unit * unit_bytes;
    }

    // Adds the products of `rows` rows with `panels` panels in a part to `sums` [panels][rows][16]. The first panel's
    // units are at `unit`.
    template <int rows, int panels, class Fetching>
    void add(std::int64_t row, std::int64_t panel, Range part, const std::uint8_t* unit, Fetching fetcher,
             float* sums) const {
        // Few rows leave registers free: more sums side by side hide the latency of the products.
        constexpr int strands = rows * panels >= 4 ? 1 : 4 / (rows * panels);
        const Strides strides{matrix.panel_bytes(), encoded.columns};
        const std::int16_t* inputs = encoded.integers.data() + row * strides.row;
        std::int64_t column = first_column(part);
        for (std::int64_t segment = part.begin; segment < part.end; ++segment) {
            Integers products[panels][rows][strands];
            unrolled<panels>([&](auto p) {
                unrolled<rows>([&](auto r) {
                    unrolled<strands>([&](auto s) { products[p][r][s] = Lanes::broadcast(0); });
                });
            });
            for (const std::int64_t end = segment_end(segment); column < end; column += column_unit, unit += unit_bytes) {
                fetcher.template fetch<panels>(strides.panel);
                add_unit(unit, inputs + column, strides, products);
            }
            close(products, row, panel, segment, sums);
        }
    }

    // The segments from `first` on that fit a widened part; one at least, for none is longer.
    Range widened_part(std::int64_t first) const {
        Range part{first, first + 1};
        while (part.end < encoded.segments && segment_end(part.end) - first_column(part) <= widened_columns) ++part.end;
        return part;
    }
    static constexpr std::int64_t widened_columns = 256;
    static_assert(widened_columns >= segment_columns);

    // Writes the units of a part as a `Wide` reads them: codes less their zeros.
    void widen(std::int64_t panel, Range part, std::uint8_t* to) const {
        const std::uint8_t* unit = units(panel, part);
        std::int64_t column = first_column(part);
        for (std::int64_t segment = part.begin; segment < part.end; ++segment) {
            const Integers zeros = zeros_of<Lanes>(matrix, panel, segment), both = Lanes::pair(zeros, zeros);
            for (const std::int64_t end = segment_end(segment); column < end; column += column_unit) {
                unrolled<pairs_of_unit>([&](auto pair) {
                    Lanes::store(reinterpret_cast<std::uint32_t*>(to) + pair * panel_outputs,
                                 Lanes::subtract_pairs(codes_of<pair>(unit), both));
                });
                unit += unit_bytes;
                to += Wide::unit_bytes;
            }
        }
    }

    std::int64_t segment_end(std::int64_t segment) const {
        return matrix.form.segment_ends[static_cast<std::size_t>(segment)];
    }
    std::int64_t first_column(Range part) const { return part.begin == 0 ? 0 : segment_end(part.begin - 1); }

    // From one panel to the next, in bytes, and from one row of inputs to the next, in integers.
    struct Strides {
        std::int64_t panel, row;
    };

    // Adds the products of sixteen columns. All that it needs comes by value: nothing but sums may take registers.
    template <int panels, int rows, int strands>
    [[gnu::always_inline]] static void add_unit(const std::uint8_t* unit, const std::int16_t* inputs, Strides strides,
                                                Integers (&products)[panels][rows][strands]) {
        const std::int16_t* row_inputs[rows];
        unrolled<rows>([&](auto r) {
            row_inputs[r] = inputs + r * strides.row;
            // One address for all of a row: left alone, GCC keeps one for each pair, in memory.
            asm("" : "+r"(row_inputs[r]));
        });
        unrolled<pairs_of_unit>([&](auto pair) {
            Integers codes[panels];
            unrolled<panels>([&](auto p) { codes[p] = codes_of<pair>(unit + p * strides.panel); });
            unrolled<rows>([&](auto r) {
                const Integers both = Lanes::broadcast_pair(row_inputs[r] + 2 * pair);
                unrolled<panels>([&](auto p) {
                    Integers& sum = products[p][r][pair % strands];
                    sum = Lanes::dot(sum, codes[p], both);
                });
            });
        });
    }

    // Scales the products of a segment and adds them to the sums. Inlined, lambdas too, or products go to memory.
    template <int panels, int rows, int strands>
    [[gnu::always_inline]] void close(const Integers (&products)[panels][rows][strands], std::int64_t row,
                                      std::int64_t panel, std::int64_t segment, float* sums) const {
        unrolled<panels>([&](auto p) __attribute__((always_inline)) {
            const auto zeros = zeros_of<Lanes>(matrix, panel + p, segment);
            const auto scales = scales_of<Lanes>(matrix, panel + p, segment);
            unrolled<rows>([&](auto r) __attribute__((always_inline)) {
                Integers total = products[p][r][0];
                unrolled<strands - 1>([&](auto s) { total = Lanes::add(total, products[p][r][s + 1]); });
                if constexpr (bits < 16) {
                    const std::int32_t inputs = encoded.sums[(row + r) * encoded.segments + segment];
                    total = Lanes::subtract_product(total, zeros, Lanes::broadcast(inputs));
                }
                close_segment<Lanes>(total, scales, sums + (p * rows + r) * panel_outputs);
            });
        });
    }

    // Codes 2 * pair and 2 * pair + 1 of a unit, for each output.
    template <int pair>
    [[gnu::always_inline]] static typename Lanes::Integers codes_of(const std::uint8_t* unit) {
        const auto words = reinterpret_cast<const std::uint32_t*>(unit) + pair / fields_of_word * panel_outputs;
        return Lanes::template field<pair % fields_of_word * bits, bits>(Lanes::load(words));
    }
};

// Products with panels of floats. What widens them is a small part of their arithmetic.
template <class Lanes, Storage storage>
struct DenseTile {
    using Value = std::conditional_t<storage == Storage::float32, float, std::uint16_t>;
    static constexpr bool widens = false;
    static constexpr int column_bytes = panel_outputs * sizeof(Value);
    static constexpr int unit_bytes = column_unit * column_bytes;

    const Matrix& matrix;
    const Encoded& encoded;

    Range all() const { return {0, encoded.columns}; }
    const float* row_scales(std::int64_t) const { return nullptr; }
    const std::uint8_t* units(std::int64_t panel, Range) const {
        return matrix.values.data() + panel * matrix.panel_bytes();
    }

    template <int rows, int panels, class Fetching>
    void add(std::int64_t row, std::int64_t, Range part, const std::uint8_t* unit, Fetching fetcher,
             float* sums) const {
        const std::int64_t columns = encoded.columns, panel_bytes = matrix.panel_bytes();
        const float* inputs = encoded.floats.data() + row * columns;
        for (std::int64_t first = part.begin; first < part.end; first += dense_block) {
            const std::int64_t end = part.end - first < dense_block ? part.end : first + dense_block;
            typename Lanes::Floats products[panels][rows];
            unrolled<panels>([&](auto p) {
                unrolled<rows>([&](auto r) { products[p][r] = Lanes::Floats::broadcast(0.0f); });
            });
            for (std::int64_t column = first; column < end; ++column, unit += column_bytes) {
                if (column % column_unit == 0) fetcher.template fetch<panels>(panel_bytes);
                typename Lanes::Floats values[panels];
                unrolled<panels>([&](auto p) { values[p] = load(unit + p * panel_bytes); });
                unrolled<rows>([&](auto r) {
                    const auto input = Lanes::Floats::broadcast(inputs[r * columns + column]);
                    unrolled<panels>([&](auto p) {
                        products[p][r] = multiply_add(values[p], input, products[p][r]);
                    });
                });
            }
            unrolled<panels>([&](auto p) {
                unrolled<rows>([&](auto r) {
                    float* sum = sums + (p * rows + r) * panel_outputs;
                    (Lanes::Floats::load(sum) + products[p][r]).store(sum);
                });
            });
        }
    }

    [[gnu::always_inline]] static typename Lanes::Floats load(const std::uint8_t* column) {
        const auto values = reinterpret_cast<const Value*>(column);
        if constexpr (storage == Storage::float32) return Lanes::Floats::load(values);
        if constexpr (storage == Storage::float16) return Lanes::load_float16(values);
        if constexpr (storage == Storage::bfloat16) return Lanes::load_bfloat16(values);
    }
};

// The tiles of at most `most` rows that some rows make: as many of the largest as fit, then halves of that.
constexpr int passes_over(std::int64_t rows, int most) {
    int passes = static_cast<int>(rows / most);
    for (std::int64_t rest = rows % most; rest > 0; rest &= rest - 1) ++passes;
    return passes;
}

// Calls body(constant of rows, first row, pass) for each of these tiles.
template <int most, class Body>
void by_tiles_of_rows(Range rows, Body body, int pass = 0) {
    for (; rows.size() >= most; rows.begin += most, ++pass) {
        body(std::integral_constant<int, most>{}, rows.begin, pass);
    }
    if constexpr (most > 1) {
        if (rows.size() > 0) by_tiles_of_rows<most / 2>(rows, body, pass);
    }
}

// All rows with `panels` panels, whose values each tile of rows reads as they are stored.
template <class Lanes, int panels, class Tile>
void run_stored(const Tile& tile, Range rows, std::int64_t panel, RowsAt<float> outputs) {
    const std::int64_t bytes = panels * tile.matrix.panel_bytes();
    const int passes = passes_over(rows.size(), Lanes::most_rows);
    const std::uint8_t* units = tile.units(panel, tile.all());
    by_tiles_of_rows<Lanes::most_rows>(rows, [&](auto count, std::int64_t row, int pass) {
        alignas(64) float sums[panels][count][panel_outputs] = {};
        const Fetcher<Tile::unit_bytes> fetcher(units + (passes == 1 ? Lanes::fetched_ahead : bytes), passes, pass);
        tile.template add<count, panels>(row, panel, tile.all(), units, fetcher, sums[0][0]);
        for (int p = 0; p < panels; ++p) {
            write<Lanes>(tile.matrix, sums[p], tile.row_scales(row), count, panel + p, {outputs[row], outputs.stride});
        }
    });
}

// Many rows with one panel, whose values are widened once for all of them, a part at a time that stays in the
// first-level cache.
template <class Lanes, class Tile>
void run_widened(const Tile& tile, Range rows, std::int64_t panel, RowsAt<float> outputs) {
    using Wide = typename Tile::Wide;
    const Wide wide{tile.matrix, tile.encoded};
    const int passes = passes_over(rows.size(), Lanes::most_rows);
    alignas(64) std::uint8_t units[Tile::widened_columns / column_unit * Wide::unit_bytes];
    alignas(64) float sums[most_widened_rows][panel_outputs] = {};
    for (Range part{0, 0}; part.end < tile.all().end;) {
        part = tile.widened_part(part.end);
        tile.widen(panel, part, units);
        const std::uint8_t* next = tile.units(panel + 1, part);
        by_tiles_of_rows<Lanes::most_rows>(rows, [&](auto count, std::int64_t row, int pass) {
            const Fetcher<Tile::unit_bytes> fetcher(next, passes, pass);
            wide.template add<count, 1>(row, panel, part, units, fetcher, sums[row - rows.begin]);
        });
    }
    write<Lanes>(tile.matrix, sums, tile.row_scales(rows.begin), static_cast<int>(rows.size()), panel,
                 {outputs[rows.begin], outputs.stride});
}

// Rows go in chunks, so that one chunk stays near while the panels pass by.
template <class Lanes, class Tile>
void run_tiles(const Tile& tile, std::int64_t row_bytes, Range rows, Range panels, RowsAt<float> outputs) {
    constexpr int most = Lanes::most_rows;
    const std::int64_t fitting = chunk_bytes / (row_bytes + 1) / most * most;
    std::int64_t chunk = fitting < 2 * most ? 2 * most : fitting;
    if (Tile::widens && chunk > most_widened_rows) chunk = most_widened_rows;
    for (std::int64_t first = rows.begin; first < rows.end; first += chunk) {
        const Range some{first, rows.end - first < chunk ? rows.end : first + chunk};
        std::int64_t panel = panels.begin;
        if constexpr (Tile::widens) {
            for (; some.size() >= fewest_widened_rows && panel < panels.end; ++panel) {
                run_widened<Lanes>(tile, some, panel, outputs);
            }
        }
        if constexpr (Lanes::most_panels > 1) {
            // With fewer rows the weights come straight from memory, and one stream is faster than two.
            for (; some.size() >= most / 2 && panel + 2 <= panels.end; panel += 2) {
                run_stored<Lanes, 2>(tile, some, panel, outputs);
            }
        }
        for (; panel < panels.end; ++panel) run_stored<Lanes, 1>(tile, some, panel, outputs);
    }
}

template <class Lanes>
void multiply(const Matrix& matrix, const Encoded& encoded, Range rows, Range panels, RowsAt<float> outputs) {
    const auto run = [&](const auto& tile, std::int64_t input_bytes) {
        run_tiles<Lanes>(tile, encoded.columns * input_bytes, rows, panels, outputs);
    };
    switch (matrix.storage) {
        case Storage::codes8: return run(CodesTile<Lanes, 8>{matrix, encoded}, 2);
        case Storage::codes4: return run(CodesTile<Lanes, 4>{matrix, encoded}, 2);
        case Storage::codes2: return run(CodesTile<Lanes, 2>{matrix, encoded}, 2);
        case Storage::float32: return run(DenseTile<Lanes, Storage::float32>{matrix, encoded}, 4);
        case Storage::float16: return run(DenseTile<Lanes, Storage::float16>{matrix, encoded}, 4);
        case Storage::bfloat16: return run(DenseTile<Lanes, Storage::bfloat16>{matrix, encoded}, 4);
    }
}

}  // namespace
}  // namespace octavo
