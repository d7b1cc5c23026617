#include "isa.h"

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>

#include "tiles.h"
#endif

namespace octavo {

namespace {

#if defined(__x86_64__)

// Whether the sources for AVX-512 and VNNI are compiled to run without: only to test them.
#if defined(OCTAVO_EMULATED_AVX512)
constexpr bool avx512_is_emulated = true;
#else
constexpr bool avx512_is_emulated = false;
#endif

struct Registers {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(unsigned leaf) {
    Registers found;
    __get_cpuid_count(leaf, 0, &found.eax, &found.ebx, &found.ecx, &found.edx);
    return found;
}

// The register sets that the operating system saves: bit 1 SSE, 2 AVX, 5 to 7 AVX-512, 17 and 18 AMX.
unsigned saved_registers() {
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

bool has(unsigned word, std::initializer_list<int> bits) {
    for (const int bit : bits) {
        if ((word >> bit & 1) == 0) return false;
    }
    return true;
}

// Feature bits as in Intel's Software Developer's Manual, volume 2A, CPUID.
std::vector<Isa> find_isas() {
    std::vector<Isa> found{Isa::portable};
    const Registers basic = cpuid(1), extended = cpuid(7);
    const bool saves_registers = has(basic.ecx, {27});
    const unsigned saved = saves_registers ? saved_registers() : 0;

    const bool fma_f16c_avx = has(basic.ecx, {12, 29, 28});
    if (!(fma_f16c_avx && has(extended.ebx, {5}) && has(saved, {1, 2}))) return found;
    found.push_back(Isa::avx2);
    const bool f_dq_bw_vl = has(extended.ebx, {16, 17, 30, 31});
    if (!(f_dq_bw_vl && has(saved, {5, 6, 7})) && !avx512_is_emulated) return found;
    found.push_back(Isa::avx512);
    if (!has(extended.ecx, {11}) && !avx512_is_emulated) return found;
    found.push_back(Isa::vnni);
    found.push_back(Isa::amx_emulated);
    const bool tile_int8 = has(extended.edx, {24, 25});
    if (tile_int8 && has(saved, {17, 18}) && tiles_work()) found.push_back(Isa::amx);
    return found;
}

#else

std::vector<Isa> find_isas() { return {Isa::portable}; }

#endif

}  // namespace

const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::portable: return "portable";
        case Isa::avx2: return "AVX2";
        case Isa::avx512: return "AVX-512";
        case Isa::vnni: return "AVX-512 VNNI";
        case Isa::amx_emulated: return "AMX, emulated";
        case Isa::amx: return "AMX";
    }
    throw std::invalid_argument("no such instruction set");
}

const std::vector<Isa>& available_isas() {
    static const std::vector<Isa> found = find_isas();
    return found;
}

void require_available(Isa isa) {
    const std::vector<Isa>& available = available_isas();
    if (std::find(available.begin(), available.end(), isa) == available.end()) {
        throw std::invalid_argument(std::string("this machine does not run ") + name_of(isa));
    }
}

Isa best_isa() {
    static const Isa best = [] {
        Isa found = Isa::portable;
        for (const Isa isa : available_isas()) {
            if (isa != Isa::amx_emulated) found = isa;
        }
        return found;
    }();
    return best;
}

}  // namespace octavo
