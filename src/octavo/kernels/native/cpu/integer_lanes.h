// Sixteen 32-bit integers at a time, beside the sixteen floats of lanes.h: one lane for each output of a panel.
// Integer sums wrap nowhere, so that they are exact in every order.
#pragma once

#include <cmath>

#include "lanes.h"

namespace octavo {
namespace {

// The definition of what the other lanes do. `most_rows` and `most_panels` say how large a tile of sums the
// registers hold; `widens`, whether tiles are so small that values pay to be widened once for all of them;
// `fetched_ahead`, how many bytes the processors of a set have under way when they read memory fastest.
struct PortableLanes {
    static constexpr int most_rows = 1, most_panels = 1;
    static constexpr bool widens = false;
    static constexpr std::int64_t fetched_ahead = 2 * 1024;
    using Floats = PortableFloats;
    struct Integers {
        std::int32_t lane[lane_count];
    };

    template <class Function>
    static Integers each(Function function) {
        Integers result;
        for (int i = 0; i < lane_count; ++i) result.lane[i] = function(i);
        return result;
    }

    static Integers broadcast(std::int32_t value) {
        return each([=](int) { return value; });
    }
    // Both of two neighbours, in every lane.
    static Integers broadcast_pair(const std::int16_t* pair) {
        std::int32_t both;
        std::memcpy(&both, pair, sizeof both);
        return broadcast(both);
    }
    static Integers load(const std::uint32_t* words) {
        Integers result;
        std::memcpy(result.lane, words, sizeof result.lane);
        return result;
    }
    static Integers load(const std::int16_t* values) {
        return each([=](int i) { return values[i]; });
    }
    static void store(std::int16_t* to, Integers values) {
        for (int i = 0; i < lane_count; ++i) to[i] = static_cast<std::int16_t>(values.lane[i]);
    }
    static void store(std::uint32_t* to, Integers words) { std::memcpy(to, words.lane, sizeof words.lane); }
    // Values that fit in 16 bits, as the two halves of each lane.
    static Integers pair(Integers low, Integers high) {
        return each([&](int i) { return (low.lane[i] & 0xffff) | high.lane[i] * 0x10000; });
    }
    // `bits` bits from `shift` on, of both halves of each lane.
    template <int shift, int bits>
    static Integers field(Integers words) {
        constexpr std::uint32_t mask = ((1u << bits) - 1) * 0x10001u;
        return each([&](int i) {
            return static_cast<std::int32_t>((static_cast<std::uint32_t>(words.lane[i]) >> shift) & mask);
        });
    }
    // sum + the products of the int16 halves of each lane.
    static Integers dot(Integers sum, Integers one, Integers other) {
        return each([&](int i) {
            const auto low = [](std::int32_t both) { return static_cast<std::int16_t>(both & 0xffff); };
            const auto high = [](std::int32_t both) { return both >> 16; };
            return sum.lane[i] + low(one.lane[i]) * low(other.lane[i]) + high(one.lane[i]) * high(other.lane[i]);
        });
    }
    static Integers add(Integers one, Integers other) {
        return each([&](int i) { return one.lane[i] + other.lane[i]; });
    }
    // value - one * other
    static Integers subtract_product(Integers value, Integers one, Integers other) {
        return each([&](int i) { return value.lane[i] - one.lane[i] * other.lane[i]; });
    }
    static Integers larger(Integers one, Integers other) {
        return each([&](int i) { return one.lane[i] > other.lane[i] ? one.lane[i] : other.lane[i]; });
    }
    static std::int32_t largest(Integers values) {
        std::int32_t result = values.lane[0];
        for (const std::int32_t value : values.lane) result = value > result ? value : result;
        return result;
    }
    static std::int32_t sum(Integers values) {
        std::int32_t result = 0;
        for (const std::int32_t value : values.lane) result += value;
        return result;
    }

    static Floats to_floats(Integers values) {
        return Floats::each([&](int i) { return static_cast<float>(values.lane[i]); });
    }
    // To the nearest integer, ties to even.
    static Integers round(Floats values) {
        return each([&](int i) { return static_cast<std::int32_t>(std::nearbyintf(values.lane[i])); });
    }
    // The bits of magnitudes rise with them, through Inf to NaN.
    static Integers magnitude_bits(Floats values) {
        return each([&](int i) {
            std::int32_t bits;
            std::memcpy(&bits, &values.lane[i], sizeof bits);
            return bits & 0x7fffffff;
        });
    }
    static Floats load_float16(const std::uint16_t* halves) {
        return Floats::each([=](int i) {
            const std::uint32_t sign = (halves[i] & 0x8000u) << 16, magnitude = halves[i] & 0x7fffu;
            // A float of the same digits, its exponent short by 112; Inf and NaN keep the largest of all.
            const float scaled = float_of(magnitude << 13) * 0x1p112f;
            return float_of(sign | (magnitude >= 0x7c00u ? magnitude << 13 | 0x7f800000u : bits_of(scaled)));
        });
    }
    static Floats load_bfloat16(const std::uint16_t* values) {
        return Floats::each([=](int i) { return float_of(std::uint32_t{values[i]} << 16); });
    }
    static float float_of(std::uint32_t bits) {
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return value;
    }
    static std::uint32_t bits_of(float value) {
        std::uint32_t bits;
        std::memcpy(&bits, &value, sizeof bits);
        return bits;
    }
};

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

struct Avx2Lanes {
    static constexpr int most_rows = 4, most_panels = 1;
    static constexpr bool widens = true;
    static constexpr std::int64_t fetched_ahead = 2 * 1024;
    using Floats = Avx2Floats;
    struct Integers {
        __m256i low, high;
    };

    static Integers broadcast(std::int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
    static Integers broadcast_pair(const std::int16_t* pair) {
        std::int32_t both;
        std::memcpy(&both, pair, sizeof both);
        return broadcast(both);
    }
    static Integers load(const std::uint32_t* words) {
        const auto eights = reinterpret_cast<const __m256i*>(words);
        return {_mm256_load_si256(eights), _mm256_load_si256(eights + 1)};
    }
    static Integers load(const std::int16_t* values) {
        const auto eights = reinterpret_cast<const __m128i*>(values);
        return {_mm256_cvtepi16_epi32(_mm_load_si128(eights)), _mm256_cvtepi16_epi32(_mm_load_si128(eights + 1))};
    }
    static void store(std::int16_t* to, Integers values) {
        const __m256i quarters = _mm256_packs_epi32(values.low, values.high);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(quarters, 0xd8));
    }
    static void store(std::uint32_t* to, Integers words) {
        const auto eights = reinterpret_cast<__m256i*>(to);
        _mm256_storeu_si256(eights, words.low);
        _mm256_storeu_si256(eights + 1, words.high);
    }
    static Integers pair(Integers low, Integers high) {
        const auto both = [](__m256i one, __m256i other) {
            return _mm256_blend_epi16(one, _mm256_slli_epi32(other, 16), 0xaa);
        };
        return {both(low.low, high.low), both(low.high, high.high)};
    }
    template <int shift, int bits>
    static Integers field(Integers words) {
        if constexpr (shift > 0) words = {_mm256_srli_epi16(words.low, shift), _mm256_srli_epi16(words.high, shift)};
        if constexpr (shift + bits == 16) return words;
        const __m256i mask = _mm256_set1_epi16((1 << bits) - 1);
        return {_mm256_and_si256(words.low, mask), _mm256_and_si256(words.high, mask)};
    }
    static Integers dot(Integers sum, Integers one, Integers other) {
        sum = add(sum, {_mm256_madd_epi16(one.low, other.low), _mm256_madd_epi16(one.high, other.high)});
        // Added here and now: GCC puts such sums off, and the products that wait for them spill.
        asm("" : "+x"(sum.low), "+x"(sum.high));
        return sum;
    }
    static Integers add(Integers one, Integers other) {
        return {_mm256_add_epi32(one.low, other.low), _mm256_add_epi32(one.high, other.high)};
    }
    // Each half of a lane by itself.
    static Integers subtract_pairs(Integers one, Integers other) {
        return {_mm256_sub_epi16(one.low, other.low), _mm256_sub_epi16(one.high, other.high)};
    }
    static Integers subtract_product(Integers value, Integers one, Integers other) {
        return {_mm256_sub_epi32(value.low, _mm256_mullo_epi32(one.low, other.low)),
                _mm256_sub_epi32(value.high, _mm256_mullo_epi32(one.high, other.high))};
    }
    static Integers larger(Integers one, Integers other) {
        return {_mm256_max_epi32(one.low, other.low), _mm256_max_epi32(one.high, other.high)};
    }
    static std::int32_t largest(Integers values) {
        const __m256i eight = _mm256_max_epi32(values.low, values.high);
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }
    static std::int32_t sum(Integers values) {
        const __m256i eight = _mm256_add_epi32(values.low, values.high);
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }

    static Floats to_floats(Integers values) {
        return {_mm256_cvtepi32_ps(values.low), _mm256_cvtepi32_ps(values.high)};
    }
    static Integers round(Floats values) {
        return {_mm256_cvtps_epi32(values.low), _mm256_cvtps_epi32(values.high)};
    }
    static Integers magnitude_bits(Floats values) {
        const __m256i mask = _mm256_set1_epi32(0x7fffffff);
        return {_mm256_and_si256(_mm256_castps_si256(values.low), mask),
                _mm256_and_si256(_mm256_castps_si256(values.high), mask)};
    }
    static Floats load_float16(const std::uint16_t* halves) {
        const auto eights = reinterpret_cast<const __m128i*>(halves);
        return {_mm256_cvtph_ps(_mm_load_si128(eights)), _mm256_cvtph_ps(_mm_load_si128(eights + 1))};
    }
    static Floats load_bfloat16(const std::uint16_t* values) {
        const auto widened = [](__m128i eight) {
            return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
        };
        const auto eights = reinterpret_cast<const __m128i*>(values);
        return {widened(_mm_load_si128(eights)), widened(_mm_load_si128(eights + 1))};
    }
};

#endif
#if defined(__AVX512F__) && defined(__AVX512BW__)

struct Avx512Lanes {
    static constexpr int most_rows = 8, most_panels = 2;
    static constexpr bool widens = false;
    static constexpr std::int64_t fetched_ahead = 16 * 1024;
    using Floats = Avx512Floats;
    using Integers = __m512i;

    static Integers broadcast(std::int32_t value) { return _mm512_set1_epi32(value); }
    static Integers broadcast_pair(const std::int16_t* pair) {
        std::int32_t both;
        std::memcpy(&both, pair, sizeof both);
        return broadcast(both);
    }
    static Integers load(const std::uint32_t* words) { return _mm512_load_si512(words); }
    static Integers load(const std::int16_t* values) {
        return _mm512_cvtepi16_epi32(_mm256_load_si256(reinterpret_cast<const __m256i*>(values)));
    }
    static void store(std::int16_t* to, Integers values) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(values));
    }
    static void store(std::uint32_t* to, Integers words) { _mm512_storeu_si512(to, words); }
    static Integers pair(Integers low, Integers high) {
        return _mm512_mask_blend_epi16(0xaaaaaaaau, low, _mm512_slli_epi32(high, 16));
    }
    template <int shift, int bits>
    static Integers field(Integers words) {
        if constexpr (shift > 0) words = _mm512_srli_epi16(words, shift);
        if constexpr (shift + bits == 16) return words;
        return _mm512_and_si512(words, _mm512_set1_epi16((1 << bits) - 1));
    }
    static Integers dot(Integers sum, Integers one, Integers other) {
        sum = add(sum, _mm512_madd_epi16(one, other));
        asm("" : "+v"(sum));  // as in AVX2
        return sum;
    }
    static Integers add(Integers one, Integers other) { return _mm512_add_epi32(one, other); }
    static Integers subtract_product(Integers value, Integers one, Integers other) {
        return _mm512_sub_epi32(value, _mm512_mullo_epi32(one, other));
    }
    static Integers larger(Integers one, Integers other) { return _mm512_max_epi32(one, other); }
    static std::int32_t largest(Integers values) { return _mm512_reduce_max_epi32(values); }
    static std::int32_t sum(Integers values) { return _mm512_reduce_add_epi32(values); }

    static Floats to_floats(Integers values) { return {_mm512_cvtepi32_ps(values)}; }
    static Integers round(Floats values) { return _mm512_cvtps_epi32(values.value); }
    static Integers magnitude_bits(Floats values) {
        return _mm512_and_si512(_mm512_castps_si512(values.value), _mm512_set1_epi32(0x7fffffff));
    }
    static Floats load_float16(const std::uint16_t* halves) {
        return {_mm512_cvtph_ps(_mm256_load_si256(reinterpret_cast<const __m256i*>(halves)))};
    }
    static Floats load_bfloat16(const std::uint16_t* values) {
        const __m256i sixteen = _mm256_load_si256(reinterpret_cast<const __m256i*>(values));
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(sixteen), 16))};
    }
};

#endif
#if defined(__AVX512VNNI__)

struct VnniLanes : Avx512Lanes {
    static Integers dot(Integers sum, Integers one, Integers other) { return _mm512_dpwssd_epi32(sum, one, other); }
};

#endif

}  // namespace
}  // namespace octavo
