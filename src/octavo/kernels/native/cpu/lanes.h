// Sixteen floats at a time, as each instruction set has them. Every operation rounds once and in the same way in
// all of them, and sums run in one fixed order, so that code written over them gives the same bits everywhere.
//
// Only files that are compiled for one instruction set include this; the unnamed namespace keeps what the compiler
// makes of it out of the others.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace octavo {
namespace {

constexpr int lane_count = 16;

struct PortableFloats {
    // Accumulators that a product keeps in registers: lines times vectors.
    static constexpr int tile_lines = 1, tile_vectors = 2;
    float lane[lane_count];

    template <class Function>
    static PortableFloats each(Function function) {
        PortableFloats result;
        for (int i = 0; i < lane_count; ++i) result.lane[i] = function(i);
        return result;
    }

    static PortableFloats broadcast(float value) {
        return each([=](int) { return value; });
    }
    static PortableFloats load(const float* from) {
        return each([=](int i) { return from[i]; });
    }
    // The first `count` lanes, zeros behind them; reads no further.
    static PortableFloats load_first(const float* from, int count) {
        return each([=](int i) { return i < count ? from[i] : 0.0f; });
    }
    // The first `count` lanes from whole numbers of 8 bits, zeros behind them; reads no further.
    static PortableFloats load_codes(const std::int8_t* from, int count) {
        return each([=](int i) { return i < count ? static_cast<float>(from[i]) : 0.0f; });
    }
    void store(float* to) const { std::memcpy(to, lane, sizeof lane); }
    void store_first(float* to, int count) const {
        std::memcpy(to, lane, static_cast<std::size_t>(count) * sizeof(float));
    }

    friend PortableFloats operator+(PortableFloats a, PortableFloats b) {
        return each([&](int i) { return a.lane[i] + b.lane[i]; });
    }
    friend PortableFloats operator-(PortableFloats a, PortableFloats b) {
        return each([&](int i) { return a.lane[i] - b.lane[i]; });
    }
    friend PortableFloats operator*(PortableFloats a, PortableFloats b) {
        return each([&](int i) { return a.lane[i] * b.lane[i]; });
    }
    friend PortableFloats operator/(PortableFloats a, PortableFloats b) {
        return each([&](int i) { return a.lane[i] / b.lane[i]; });
    }
    // a * b + c, rounded once.
    friend PortableFloats multiply_add(PortableFloats a, PortableFloats b, PortableFloats c) {
        return each([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
    }
    // a where a > b, else b: so also b where one of them is NaN.
    friend PortableFloats larger(PortableFloats a, PortableFloats b) {
        return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
    }
    friend PortableFloats where_less(PortableFloats a, PortableFloats b, PortableFloats yes, PortableFloats no) {
        return each([&](int i) { return a.lane[i] < b.lane[i] ? yes.lane[i] : no.lane[i]; });
    }
    // Lanes `from` to `to` - 1 of `inside`, the others of `outside`; both bounds lie in 0 … 16.
    friend PortableFloats between(int from, int to, PortableFloats inside, PortableFloats outside) {
        return each([&](int i) { return from <= i && i < to ? inside.lane[i] : outside.lane[i]; });
    }
    // 2^n, where each lane holds n + 1.5 * 2^23 and n lies in -126 … 127.
    friend PortableFloats power_of_two(PortableFloats shifted) {
        return each([&](int i) {
            std::uint32_t bits;
            std::memcpy(&bits, &shifted.lane[i], sizeof bits);
            bits = (bits + 127u) << 23;
            float power;
            std::memcpy(&power, &bits, sizeof power);
            return power;
        });
    }
    // Lanes i and i + 8, then i and i + 4, i + 2, i + 1.
    template <class Combine>
    float tree(Combine combine) const {
        float part[lane_count];
        std::memcpy(part, lane, sizeof lane);
        for (int apart = lane_count / 2; apart > 0; apart /= 2) {
            for (int i = 0; i < apart; ++i) part[i] = combine(part[i], part[i + apart]);
        }
        return part[0];
    }
    friend float sum(PortableFloats a) {
        return a.tree([](float one, float other) { return one + other; });
    }
    friend float largest(PortableFloats a) {
        return a.tree([](float one, float other) { return one > other ? one : other; });
    }
    // to[column * stride + i] = rows[i][first + column] for columns 0 … count - 1, of which there are at most 16.
    static void transpose(const float* const* rows, std::int64_t first, int count, float* to, std::int64_t stride) {
        for (int column = 0; column < count; ++column) {
            for (int i = 0; i < lane_count; ++i) to[column * stride + i] = rows[i][first + column];
        }
    }

    // Sums of each lane in float64.
    struct Doubles {
        double lane[lane_count] = {};

        void add(PortableFloats a) {
            for (int i = 0; i < lane_count; ++i) lane[i] += static_cast<double>(a.lane[i]);
        }
        void store(double* to) const { std::memcpy(to, lane, sizeof lane); }
    };
};

#if defined(__AVX2__) && defined(__FMA__)

struct Avx2Floats {
    static constexpr int tile_lines = 4, tile_vectors = 1;
    __m256 low, high;

    static __m256i first_mask(int count) {
        const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), index);
    }

    static Avx2Floats broadcast(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
    static Avx2Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
    static Avx2Floats load_first(const float* from, int count) {
        if (count == lane_count) return load(from);
        return {_mm256_maskload_ps(from, first_mask(count)), _mm256_maskload_ps(from + 8, first_mask(count - 8))};
    }
    static Avx2Floats load_codes(const std::int8_t* from, int count) {
        std::int8_t codes[lane_count] = {};
        std::memcpy(codes, from, static_cast<std::size_t>(count));
        const __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
        return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all)),
                _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all)))};
    }
    void store(float* to) const {
        _mm256_storeu_ps(to, low);
        _mm256_storeu_ps(to + 8, high);
    }
    void store_first(float* to, int count) const {
        if (count == lane_count) return store(to);  // some processors take long for masks
        _mm256_maskstore_ps(to, first_mask(count), low);
        _mm256_maskstore_ps(to + 8, first_mask(count - 8), high);
    }

    friend Avx2Floats operator+(Avx2Floats a, Avx2Floats b) {
        return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
    }
    friend Avx2Floats operator-(Avx2Floats a, Avx2Floats b) {
        return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
    }
    friend Avx2Floats operator*(Avx2Floats a, Avx2Floats b) {
        return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
    }
    friend Avx2Floats operator/(Avx2Floats a, Avx2Floats b) {
        return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
    }
    friend Avx2Floats multiply_add(Avx2Floats a, Avx2Floats b, Avx2Floats c) {
        return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
    }
    friend Avx2Floats larger(Avx2Floats a, Avx2Floats b) {
        return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
    }
    friend Avx2Floats where_less(Avx2Floats a, Avx2Floats b, Avx2Floats yes, Avx2Floats no) {
        return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
                _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
    }
    friend Avx2Floats between(int from, int to, Avx2Floats inside, Avx2Floats outside) {
        const __m256i low_mask = _mm256_andnot_si256(first_mask(from), first_mask(to));
        const __m256i high_mask = _mm256_andnot_si256(first_mask(from - 8), first_mask(to - 8));
        return {_mm256_blendv_ps(outside.low, inside.low, _mm256_castsi256_ps(low_mask)),
                _mm256_blendv_ps(outside.high, inside.high, _mm256_castsi256_ps(high_mask))};
    }
    static __m256 power_of_two(__m256 shifted) {
        const __m256i exponent = _mm256_add_epi32(_mm256_castps_si256(shifted), _mm256_set1_epi32(127));
        return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
    }
    friend Avx2Floats power_of_two(Avx2Floats shifted) {
        return {power_of_two(shifted.low), power_of_two(shifted.high)};
    }
    friend float sum(Avx2Floats a) {
        const __m256 eight = _mm256_add_ps(a.low, a.high);
        const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
    }
    friend float largest(Avx2Floats a) {
        const __m256 eight = _mm256_max_ps(a.low, a.high);
        const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
    }
    static void transpose(const float* const* rows, std::int64_t first, int count, float* to, std::int64_t stride) {
        for (int half = 0; half < lane_count; half += 8) {
            for (int column = 0; column < count; column += 8) {
                const int columns = count - column < 8 ? count - column : 8;
                __m256 row[8];
                for (int i = 0; i < 8; ++i) {
                    row[i] = _mm256_maskload_ps(rows[half + i] + first + column, first_mask(columns));
                }
                transpose_eight(row);
                for (int i = 0; i < columns; ++i) _mm256_storeu_ps(to + (column + i) * stride + half, row[i]);
            }
        }
    }
    static void transpose_eight(__m256 (&row)[8]) {
        __m256 pair[8], quad[8];
        for (int i = 0; i < 8; i += 2) {
            pair[i] = _mm256_unpacklo_ps(row[i], row[i + 1]);
            pair[i + 1] = _mm256_unpackhi_ps(row[i], row[i + 1]);
        }
        for (int i = 0; i < 8; i += 4) {
            quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
            quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
            quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
            quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            row[i] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x20);
            row[i + 4] = _mm256_permute2f128_ps(quad[i], quad[i + 4], 0x31);
        }
    }

    struct Doubles {
        __m256d quarters[4] = {_mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd(), _mm256_setzero_pd()};

        void add(Avx2Floats a) {
            quarters[0] = _mm256_add_pd(quarters[0], _mm256_cvtps_pd(_mm256_castps256_ps128(a.low)));
            quarters[1] = _mm256_add_pd(quarters[1], _mm256_cvtps_pd(_mm256_extractf128_ps(a.low, 1)));
            quarters[2] = _mm256_add_pd(quarters[2], _mm256_cvtps_pd(_mm256_castps256_ps128(a.high)));
            quarters[3] = _mm256_add_pd(quarters[3], _mm256_cvtps_pd(_mm256_extractf128_ps(a.high, 1)));
        }
        void store(double* to) const {
            for (int i = 0; i < 4; ++i) _mm256_storeu_pd(to + 4 * i, quarters[i]);
        }
    };
};

#endif
#if defined(__AVX512F__)

struct Avx512Floats {
    static constexpr int tile_lines = 4, tile_vectors = 4;
    __m512 value;

    static __mmask16 first_mask(int count) { return static_cast<__mmask16>((1u << count) - 1u); }

    static Avx512Floats broadcast(float value) { return {_mm512_set1_ps(value)}; }
    static Avx512Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
    static Avx512Floats load_first(const float* from, int count) {
        return {_mm512_maskz_loadu_ps(first_mask(count), from)};
    }
    static Avx512Floats load_codes(const std::int8_t* from, int count) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first_mask(count), from)))};
    }
    void store(float* to) const { _mm512_storeu_ps(to, value); }
    void store_first(float* to, int count) const { _mm512_mask_storeu_ps(to, first_mask(count), value); }

    friend Avx512Floats operator+(Avx512Floats a, Avx512Floats b) { return {_mm512_add_ps(a.value, b.value)}; }
    friend Avx512Floats operator-(Avx512Floats a, Avx512Floats b) { return {_mm512_sub_ps(a.value, b.value)}; }
    friend Avx512Floats operator*(Avx512Floats a, Avx512Floats b) { return {_mm512_mul_ps(a.value, b.value)}; }
    friend Avx512Floats operator/(Avx512Floats a, Avx512Floats b) { return {_mm512_div_ps(a.value, b.value)}; }
    friend Avx512Floats multiply_add(Avx512Floats a, Avx512Floats b, Avx512Floats c) {
        return {_mm512_fmadd_ps(a.value, b.value, c.value)};
    }
    friend Avx512Floats larger(Avx512Floats a, Avx512Floats b) { return {_mm512_max_ps(a.value, b.value)}; }
    friend Avx512Floats where_less(Avx512Floats a, Avx512Floats b, Avx512Floats yes, Avx512Floats no) {
        return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.value, b.value, _CMP_LT_OQ), no.value, yes.value)};
    }
    friend Avx512Floats between(int from, int to, Avx512Floats inside, Avx512Floats outside) {
        const __mmask16 mask = static_cast<__mmask16>(first_mask(to) & ~first_mask(from));
        return {_mm512_mask_blend_ps(mask, outside.value, inside.value)};
    }
    friend Avx512Floats power_of_two(Avx512Floats shifted) {
        const __m512i exponent = _mm512_add_epi32(_mm512_castps_si512(shifted.value), _mm512_set1_epi32(127));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
    }
    Avx2Floats halves() const {
        return {_mm512_castps512_ps256(value),
                _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(value), 1))};
    }
    friend float sum(Avx512Floats a) { return sum(a.halves()); }
    friend float largest(Avx512Floats a) { return largest(a.halves()); }
    static void transpose(const float* const* rows, std::int64_t first, int count, float* to, std::int64_t stride) {
        __m512 row[lane_count];
        for (int i = 0; i < lane_count; ++i) row[i] = _mm512_maskz_loadu_ps(first_mask(count), rows[i] + first);
        transpose_sixteen(row);
        for (int i = 0; i < count; ++i) _mm512_storeu_ps(to + i * stride, row[i]);
    }
    static void transpose_sixteen(__m512 (&row)[lane_count]) {
        __m512 quad[lane_count];  // of rows 4 * (i / 4) …: column i % 4 + 4 * its quarter
        for (int i = 0; i < lane_count; i += 4) {
            const __m512 low_one = _mm512_unpacklo_ps(row[i], row[i + 1]);
            const __m512 high_one = _mm512_unpackhi_ps(row[i], row[i + 1]);
            const __m512 low_two = _mm512_unpacklo_ps(row[i + 2], row[i + 3]);
            const __m512 high_two = _mm512_unpackhi_ps(row[i + 2], row[i + 3]);
            quad[i] = _mm512_shuffle_ps(low_one, low_two, 0x44);
            quad[i + 1] = _mm512_shuffle_ps(low_one, low_two, 0xee);
            quad[i + 2] = _mm512_shuffle_ps(high_one, high_two, 0x44);
            quad[i + 3] = _mm512_shuffle_ps(high_one, high_two, 0xee);
        }
        for (int i = 0; i < 4; ++i) {
            const __m512 even_one = _mm512_shuffle_f32x4(quad[i], quad[i + 4], 0x88);
            const __m512 odd_one = _mm512_shuffle_f32x4(quad[i], quad[i + 4], 0xdd);
            const __m512 even_two = _mm512_shuffle_f32x4(quad[i + 8], quad[i + 12], 0x88);
            const __m512 odd_two = _mm512_shuffle_f32x4(quad[i + 8], quad[i + 12], 0xdd);
            row[i] = _mm512_shuffle_f32x4(even_one, even_two, 0x88);
            row[i + 4] = _mm512_shuffle_f32x4(odd_one, odd_two, 0x88);
            row[i + 8] = _mm512_shuffle_f32x4(even_one, even_two, 0xdd);
            row[i + 12] = _mm512_shuffle_f32x4(odd_one, odd_two, 0xdd);
        }
    }

    struct Doubles {
        __m512d low = _mm512_setzero_pd(), high = _mm512_setzero_pd();

        void add(Avx512Floats a) {
            const Avx2Floats halves = a.halves();
            low = _mm512_add_pd(low, _mm512_cvtps_pd(halves.low));
            high = _mm512_add_pd(high, _mm512_cvtps_pd(halves.high));
        }
        void store(double* to) const {
            _mm512_storeu_pd(to, low);
            _mm512_storeu_pd(to + 8, high);
        }
    };
};

#endif

// a where a < b, else b: so also b where one of them is NaN.
template <class Floats>
[[gnu::always_inline]] inline Floats smaller(Floats a, Floats b) {
    return where_less(a, b, a, b);
}

// e^x for x up to 88: within 1.01 units in the last place, exactly 0 below -87.3365 (the logarithm of the smallest
// normal number), NaN for NaN. The polynomial is that of Cephes' expf.
template <class Floats>
[[gnu::always_inline]] inline Floats exponential(Floats x) {
    const Floats lowest = Floats::broadcast(-87.33654f);
    const Floats shift = Floats::broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const Floats clamped = larger(lowest, x);
    const Floats shifted = multiply_add(clamped, Floats::broadcast(1.44269504f), shift);
    const Floats whole = shifted - shift;
    Floats rest = multiply_add(whole, Floats::broadcast(-0.693359375f), clamped);  // ln 2 in two parts
    rest = multiply_add(whole, Floats::broadcast(2.12194440e-4f), rest);
    Floats series = Floats::broadcast(1.9875691500e-4f);
    for (const float coefficient : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                                    5.0000001201e-1f}) {
        series = multiply_add(series, rest, Floats::broadcast(coefficient));
    }
    const Floats power = multiply_add(series, rest * rest, rest) + Floats::broadcast(1.0f);
    return where_less(x, lowest, Floats::broadcast(0.0f), power * power_of_two(shifted));
}

}  // namespace
}  // namespace octavo
