// The kernels of matrix.h in AMX: bytes times bytes in tiles of 16 rows and 16 outputs, so that an input of 16 bits
// goes as a signed high and an unsigned low byte, 256 * high + low. The sums are the same integers as everywhere.
#include <sys/syscall.h>
#include <unistd.h>

#include "matrix_kernels.h"
#include "tiles.h"

namespace octavo {

namespace {

using Lanes = VnniLanes;

constexpr std::int64_t fewest_rows = 8;  // fewer leave most of a tile empty
constexpr int panels_at_once = 2;
constexpr std::int64_t plane_bytes = 1 << 20;  // of inputs as bytes: they stay in the second-level cache
constexpr std::int64_t quad_rows = column_unit / 4;  // rows of a tile for each unit of columns

std::int64_t steps_of(const InputForm& form, std::int64_t segment) {
    const auto index = static_cast<std::size_t>(segment);
    const std::int32_t begin = segment == 0 ? 0 : form.segment_ends[index - 1];
    return (form.segment_ends[index] - begin + tile_row_bytes - 1) / tile_row_bytes;
}

std::int64_t all_steps(const InputForm& form) {
    std::int64_t steps = 0;
    for (std::int64_t segment = 0; segment < form.segments(); ++segment) steps += steps_of(form, segment);
    return steps;
}

// Writes one row of a tile of high bytes, and of the tile of low bytes behind it: 64 columns, of which `count` exist.
// Columns of four go in the order 0, 2, 1, 3, as the codes do.
void split_bytes(const std::int16_t* integers, std::int64_t count, std::uint8_t* high_row) {
    for (int half = 0; half < 2; ++half) {
        const std::int64_t left = count - 32 * half;
        const __mmask32 present = left >= 32 ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1;
        __m512i values = _mm512_maskz_loadu_epi16(present, integers + 32 * half);
        values = _mm512_shufflehi_epi16(_mm512_shufflelo_epi16(values, 0xd8), 0xd8);
        const auto high = reinterpret_cast<__m256i*>(high_row + 32 * half);
        const auto low = reinterpret_cast<__m256i*>(high_row + tile_bytes + 32 * half);
        _mm256_store_si256(high, _mm512_cvtepi16_epi8(_mm512_srai_epi16(values, 8)));
        _mm256_store_si256(low, _mm512_cvtepi16_epi8(values));
    }
}

// Up to sixteen rows of inputs as tiles: for each segment, for each 64 of its columns, high and low bytes.
void make_planes(const InputForm& form, const Encoded& encoded, Range rows, std::uint8_t* planes) {
    for (std::int64_t row = 0; row < tile_rows; ++row) {
        std::uint8_t* to = planes + row * tile_row_bytes;
        std::int64_t column = 0;
        for (const std::int32_t end : form.segment_ends) {
            for (; column < end; column += tile_row_bytes, to += 2 * tile_bytes) {
                const std::int64_t present = row < rows.size() ? end - column : 0;
                const std::int64_t from = row < rows.size() ? (rows.begin + row) * encoded.columns + column : 0;
                split_bytes(encoded.integers.data() + from, present, to);
            }
            column = end;
        }
    }
}

// Codes of one unit as bytes: four rows of a tile.
template <int bits>
void widen_unit(const std::uint8_t* unit, std::uint8_t* to) {
    unrolled<quad_rows>([&](auto quad) {
        const __m512i even = CodesTile<Lanes, bits>::template codes_of<2 * quad>(unit);
        const __m512i odd = CodesTile<Lanes, bits>::template codes_of<2 * quad + 1>(unit);
        _mm512_store_si512(to + quad * tile_row_bytes, _mm512_or_si512(even, _mm512_slli_epi16(odd, 8)));
    });
}

// A panel as bytes in the order of 8-bit codes: itself, or widened into `room`.
const std::uint8_t* widened(const Matrix& matrix, std::int64_t panel, std::uint8_t* room) {
    const std::uint8_t* unit = matrix.values.data() + panel * matrix.panel_bytes();
    if (matrix.storage == Storage::codes8) return unit;
    const std::int64_t units = matrix.form.padded_columns() / column_unit;
    for (std::int64_t i = 0; i < units; ++i) {
        std::uint8_t* to = room + i * quad_rows * tile_row_bytes;
        if (matrix.storage == Storage::codes4) {
            widen_unit<4>(unit + i * CodesTile<Lanes, 4>::unit_bytes, to);
        } else {
            widen_unit<2>(unit + i * CodesTile<Lanes, 2>::unit_bytes, to);
        }
    }
    return room;
}

// Two panels (twice the same where only one is left), as bytes.
struct Panels {
    std::int64_t number[panels_at_once];
    const std::uint8_t* bytes[panels_at_once];
};

template <class Tiles>
void multiply_segment(Tiles& tiles, const std::uint8_t* planes, const Panels& panels, std::int64_t column,
                      std::int64_t steps) {
    unrolled<4>([&](auto tile) { tiles.template zero<tile>(); });
    for (std::int64_t step = 0; step < steps; ++step) {
        // The last step may read codes of the next segment, or zeros behind the matrix; its inputs are zeros there.
        const std::int64_t offset = column * panel_outputs + step * tile_bytes;
        tiles.template load<4>(planes + 2 * step * tile_bytes);
        tiles.template load<5>(planes + (2 * step + 1) * tile_bytes);
        tiles.template load<6>(panels.bytes[0] + offset);
        tiles.template multiply_signed<0, 4, 6>();
        tiles.template multiply_unsigned<1, 5, 6>();
        tiles.template load<7>(panels.bytes[1] + offset);
        tiles.template multiply_signed<2, 4, 7>();
        tiles.template multiply_unsigned<3, 5, 7>();
    }
}

template <class Tiles>
void multiply_tiles(Tiles& tiles, const Matrix& matrix, const Encoded& encoded, Range rows, const Panels& panels,
                    const std::uint8_t* planes, RowsAt<float> outputs) {
    alignas(64) float sums[panels_at_once][tile_rows][panel_outputs] = {};
    alignas(64) std::int32_t products[2 * panels_at_once][tile_rows][panel_outputs];
    const int real_rows = static_cast<int>(rows.size());
    std::int64_t column = 0;
    for (std::int64_t segment = 0; segment < encoded.segments; ++segment) {
        const std::int64_t steps = steps_of(matrix.form, segment);
        multiply_segment(tiles, planes, panels, column, steps);
        unrolled<4>([&](auto tile) { tiles.template store<tile>(products[tile]); });
        for (int p = 0; p < panels_at_once; ++p) {
            const auto zeros = zeros_of<Lanes>(matrix, panels.number[p], segment);
            const auto scales = scales_of<Lanes>(matrix, panels.number[p], segment);
            for (int r = 0; r < real_rows; ++r) {
                const __m512i high = _mm512_load_si512(products[2 * p][r]);
                const __m512i low = _mm512_load_si512(products[2 * p + 1][r]);
                const __m512i total = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
                const std::int32_t inputs = encoded.sums[(rows.begin + r) * encoded.segments + segment];
                const auto centered = Lanes::subtract_product(total, zeros, Lanes::broadcast(inputs));
                close_segment<Lanes>(centered, scales, sums[p][r]);
            }
        }
        planes += 2 * steps * tile_bytes;
        column = matrix.form.segment_ends[static_cast<std::size_t>(segment)];
    }
    for (int p = 0; p < panels_at_once; ++p) {
        const float* row_scales = encoded.scales.data() + rows.begin;
        write<Lanes>(matrix, sums[p], row_scales, real_rows, panels.number[p], {outputs[rows.begin], outputs.stride});
    }
}

template <class Tiles>
void multiply_chunk(const Matrix& matrix, const Encoded& encoded, Range rows, Range panels, RowsAt<float> outputs) {
    const std::int64_t tile_planes = 2 * tile_bytes * all_steps(matrix.form);
    const std::int64_t all_planes = (rows.size() + tile_rows - 1) / tile_rows * tile_planes;
    const std::int64_t panel_room = matrix.form.padded_columns() * panel_outputs + tile_bytes;
    std::uint8_t* const planes = thread_scratch(all_planes + panels_at_once * panel_room);
    std::uint8_t* const bytes = planes + all_planes;
    const auto rows_of_tile = [&](std::int64_t first) {
        return Range{first, rows.end - first < tile_rows ? rows.end : first + tile_rows};
    };
    for (std::int64_t first = rows.begin; first < rows.end; first += tile_rows) {
        make_planes(matrix.form, encoded, rows_of_tile(first), planes + (first - rows.begin) / tile_rows * tile_planes);
    }
    Tiles tiles;
    for (std::int64_t panel = panels.begin; panel < panels.end; panel += panels_at_once) {
        const std::int64_t second = panel + 1 < panels.end ? panel + 1 : panel;
        const Panels both{{panel, second},
                          {widened(matrix, panel, bytes), widened(matrix, second, bytes + panel_room)}};
        for (std::int64_t first = rows.begin; first < rows.end; first += tile_rows) {
            const std::uint8_t* tile = planes + (first - rows.begin) / tile_rows * tile_planes;
            multiply_tiles(tiles, matrix, encoded, rows_of_tile(first), both, tile, outputs);
        }
    }
}

template <class Tiles>
void multiply_in_tiles(const Matrix& matrix, const Encoded& encoded, Range rows, Range panels, RowsAt<float> outputs) {
    if (!matrix.form.quantized || rows.size() < fewest_rows) {
        return multiply<Lanes>(matrix, encoded, rows, panels, outputs);
    }
    const std::int64_t fitting = plane_bytes / (2 * tile_bytes * (all_steps(matrix.form) + 1)) * tile_rows;
    const std::int64_t chunk = fitting < tile_rows ? tile_rows : fitting;
    for (std::int64_t first = rows.begin; first < rows.end; first += chunk) {
        const Range some{first, rows.end - first < chunk ? rows.end : first + chunk};
        multiply_chunk<Tiles>(matrix, encoded, some, panels, outputs);
    }
}

}  // namespace

extern const MatrixKernels amx_matrix_kernels, amx_emulated_matrix_kernels;
const MatrixKernels amx_matrix_kernels{encode<Lanes>, multiply_in_tiles<HardwareTiles>};
const MatrixKernels amx_emulated_matrix_kernels{encode<Lanes>, multiply_in_tiles<EmulatedTiles>};

bool tiles_work() {
    constexpr int request_permission = 0x1023, tile_data = 18;  // of Linux' arch_prctl and of the XSAVE areas
    if (syscall(SYS_arch_prctl, request_permission, tile_data) != 0) return false;
    alignas(64) std::uint8_t left[tile_bytes], right[tile_bytes];
    std::memset(left, 0xfe, sizeof left);  // -2 or 254
    std::memset(right, 3, sizeof right);
    alignas(64) std::int32_t sums[2][tile_rows][panel_outputs];
    {
        HardwareTiles tiles;
        tiles.zero<0>();
        tiles.zero<1>();
        tiles.load<2>(left);
        tiles.load<3>(right);
        tiles.multiply_signed<0, 2, 3>();
        tiles.multiply_unsigned<1, 2, 3>();
        tiles.store<0>(sums[0]);
        tiles.store<1>(sums[1]);
    }
    for (int i = 0; i < tile_rows * panel_outputs; ++i) {
        const int row = i / panel_outputs, column = i % panel_outputs;
        if (sums[0][row][column] != 64 * -2 * 3 || sums[1][row][column] != 64 * 254 * 3) return false;
    }
    return true;
}

}  // namespace octavo
