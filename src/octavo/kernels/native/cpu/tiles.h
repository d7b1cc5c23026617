// The tile registers of AMX, and the same written out in C++ to test what uses them on machines without.
//
// Both have eight tiles of 16 rows of 64 bytes, all in use, while an object lives. The instructions are written in
// assembly: the intrinsics of GCC 12 tell the compiler of 8 bytes of the configuration only, and it drops the rest.
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo {

// Asks the system for the tile registers, and tries one product. To be called only where the processor has AMX.
bool tiles_work();

namespace {

constexpr int tile_rows = 16, tile_row_bytes = 64;
constexpr std::int64_t tile_bytes = tile_rows * tile_row_bytes;

class HardwareTiles {
public:
    HardwareTiles() {
        Configuration configuration;
        asm volatile("ldtilecfg %0" ::"m"(configuration));
    }
    ~HardwareTiles() { asm volatile("tilerelease" ::: "memory"); }
    HardwareTiles(const HardwareTiles&) = delete;
    HardwareTiles& operator=(const HardwareTiles&) = delete;

    template <int tile>
    void zero() {
        asm volatile("tilezero %%tmm%c0" ::"i"(tile));
    }
    // Sixteen rows of 64 bytes that follow each other.
    template <int tile>
    void load(const void* rows) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(tile) : "memory");
    }
    template <int tile>
    void store(void* rows) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(tile) : "memory");
    }
    // sums += left * right: rows of int8 by columns of uint8.
    template <int sums, int left, int right>
    void multiply_signed() {
        asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(left), "i"(right));
    }
    // The same for rows of uint8.
    template <int sums, int left, int right>
    void multiply_unsigned() {
        asm volatile("tdpbuud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(left), "i"(right));
    }

private:
    static constexpr std::int64_t stride = tile_row_bytes;

    // Intel's Architecture Instruction Set Extensions Reference, table "Memory Area Layout" of LDTILECFG.
    struct alignas(64) Configuration {
        std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
        std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Configuration) == 64);
};

class EmulatedTiles {
public:
    template <int tile>
    void zero() {
        std::memset(tiles_[tile], 0, tile_bytes);
    }
    template <int tile>
    void load(const void* rows) {
        std::memcpy(tiles_[tile], rows, tile_bytes);
    }
    template <int tile>
    void store(void* rows) {
        std::memcpy(rows, tiles_[tile], tile_bytes);
    }
    template <int sums, int left, int right>
    void multiply_signed() {
        multiply<std::int8_t>(tiles_[sums], tiles_[left], tiles_[right]);
    }
    template <int sums, int left, int right>
    void multiply_unsigned() {
        multiply<std::uint8_t>(tiles_[sums], tiles_[left], tiles_[right]);
    }

private:
    using Tile = std::uint8_t[tile_rows][tile_row_bytes];

    // Each 32-bit sum takes the products of four bytes of `left` with the four below each other in `right`.
    template <class Left>
    static void multiply(Tile& sums, const Tile& left, const Tile& right) {
        for (int row = 0; row < tile_rows; ++row) {
            for (int column = 0; column < tile_row_bytes / 4; ++column) {
                std::int32_t sum;
                std::memcpy(&sum, sums[row] + 4 * column, sizeof sum);
                for (int inner = 0; inner < tile_row_bytes; ++inner) {
                    sum += static_cast<Left>(left[row][inner]) * right[inner / 4][4 * column + inner % 4];
                }
                std::memcpy(sums[row] + 4 * column, &sum, sizeof sum);
            }
        }
    }

    alignas(64) Tile tiles_[8];
};

}  // namespace
}  // namespace octavo
