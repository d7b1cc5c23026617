// Lets the sources for AVX-512 and VNNI run on a processor that has AVX2 only: Intel's intrinsics as SIMDe defines them
// in portable C, and as we do where SIMDe 0.7.4 lacks them. To be included before everything else; the instruction sets
// are declared afterwards, for SIMDe would use them.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>

namespace emulated {

template <class Element>
using Sixteen = std::array<Element, 16>;
template <class Element>
using Eight = std::array<Element, 8>;

template <class To, class From>
To same_bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class To, class From, std::size_t count>
std::array<To, count> converted(const std::array<From, count>& from) {
    std::array<To, count> to;
    for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
    return to;
}

template <class Element, std::size_t count>
std::array<Element, count> first_of(unsigned mask, const Element* from) {
    std::array<Element, count> to{};
    for (std::size_t i = 0; i < count; ++i) {
        if (mask >> i & 1) to[i] = from[i];
    }
    return to;
}

inline __m512i cvtepi8_epi32(__m128i a) {
    return same_bits<__m512i>(converted<std::int32_t>(same_bits<Sixteen<std::int8_t>>(a)));
}
inline __m512i cvtepi16_epi32(__m256i a) {
    return same_bits<__m512i>(converted<std::int32_t>(same_bits<Sixteen<std::int16_t>>(a)));
}
inline __m512i cvtepu16_epi32(__m256i a) {
    return same_bits<__m512i>(converted<std::int32_t>(same_bits<Sixteen<std::uint16_t>>(a)));
}
inline __m256i cvtepi32_epi16(__m512i a) {
    return same_bits<__m256i>(converted<std::int16_t>(same_bits<Sixteen<std::int32_t>>(a)));
}
inline __m512 cvtepi32_ps(__m512i a) {
    return same_bits<__m512>(converted<float>(same_bits<Sixteen<std::int32_t>>(a)));
}
inline __m512d cvtps_pd(__m256 a) { return same_bits<__m512d>(converted<double>(same_bits<Eight<float>>(a))); }
inline __m512i cvtps_epi32(__m512 a) {
    Sixteen<float> nearest = same_bits<Sixteen<float>>(a);
    for (float& value : nearest) value = std::nearbyintf(value);
    return same_bits<__m512i>(converted<std::int32_t>(nearest));
}
inline __m512 cvtph_ps(__m256i a) {
    Sixteen<float> to;
    _mm256_storeu_ps(&to[0], _mm256_cvtph_ps(_mm256_castsi256_si128(a)));
    _mm256_storeu_ps(&to[8], _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1)));
    return same_bits<__m512>(to);
}
inline __m512 maskz_loadu_ps(unsigned mask, const float* from) {
    return same_bits<__m512>(first_of<float, 16>(mask, from));
}
inline __m512i maskz_loadu_epi16(unsigned mask, const std::int16_t* from) {
    return same_bits<__m512i>(first_of<std::int16_t, 32>(mask, from));
}
inline __m128i maskz_loadu_epi8(unsigned mask, const std::int8_t* from) {
    return same_bits<__m128i>(first_of<std::int8_t, 16>(mask, from));
}
inline void mask_storeu_ps(float* to, unsigned mask, __m512 a) {
    const auto values = same_bits<Sixteen<float>>(a);
    for (std::size_t i = 0; i < values.size(); ++i) {
        if (mask >> i & 1) to[i] = values[i];
    }
}
inline std::int32_t reduce_add_epi32(__m512i a) {
    const auto values = same_bits<Sixteen<std::int32_t>>(a);
    return std::accumulate(values.begin(), values.end(), 0);
}
inline std::int32_t reduce_max_epi32(__m512i a) {
    const auto values = same_bits<Sixteen<std::int32_t>>(a);
    return *std::max_element(values.begin(), values.end());
}
// Of each eight numbers of 16 bits, four from `first` on go where two bits for each say.
inline __m512i shuffle_epi16(__m512i a, int order, std::size_t first) {
    const auto from = same_bits<std::array<std::int16_t, 32>>(a);
    auto to = from;
    for (std::size_t i = 0; i < 32; ++i) {
        if (i % 8 / 4 * 4 == first) to[i] = from[i / 4 * 4 + (order >> 2 * (i % 4) & 3)];
    }
    return same_bits<__m512i>(to);
}
inline __m512i shufflelo_epi16(__m512i a, int order) { return shuffle_epi16(a, order, 0); }
inline __m512i shufflehi_epi16(__m512i a, int order) { return shuffle_epi16(a, order, 4); }

}  // namespace emulated

#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_cvtepi16_epi32 emulated::cvtepi16_epi32
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtps_pd emulated::cvtps_pd
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_maskz_loadu_epi16 emulated::maskz_loadu_epi16
#define _mm_maskz_loadu_epi8 emulated::maskz_loadu_epi8
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_reduce_add_epi32 emulated::reduce_add_epi32
#define _mm512_reduce_max_epi32 emulated::reduce_max_epi32
#define _mm512_shufflelo_epi16 emulated::shufflelo_epi16
#define _mm512_shufflehi_epi16 emulated::shufflehi_epi16
// SIMDe has these, but under its own names only, or under a macro of too many arguments.
#define _mm512_shuffle_f32x4 simde_mm512_shuffle_f32x4
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 simde_mm512_madd_epi16

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512DQ__ 1
#define __AVX512VL__ 1
#define __AVX512VNNI__ 1
// The compiler's hints name registers that are not there; the instructions for tiles are `asm volatile`, which stays.
#define asm(...)
