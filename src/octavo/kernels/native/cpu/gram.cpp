#include "gram.h"

#include <algorithm>

#include "barrier.h"

namespace octavo {

extern const GramKernels portable_gram_kernels;
#if defined(__x86_64__)
extern const GramKernels avx2_gram_kernels, avx512_gram_kernels, vnni_gram_kernels;
#endif

const GramKernels& gram_kernels(Isa isa) {
    require_available(isa);
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx2: return avx2_gram_kernels;
        case Isa::avx512: return avx512_gram_kernels;
        case Isa::vnni:
        case Isa::amx_emulated:
        case Isa::amx: return vnni_gram_kernels;  // AMX has no products of 16-bit integers
#endif
        default: return portable_gram_kernels;
    }
}

namespace {

constexpr std::int64_t tokens_at_once = 16 * gram_tokens;

// Kept by the calling thread from call to call: fresh memory would cost a tenth of the work.
GramCodes& kept_codes(std::int64_t tokens, std::int64_t columns) {
    static thread_local GramCodes codes;
    codes.tokens = tokens;
    codes.columns = columns;
    codes.pairs.grow(codes.first_pair(codes.chunks(), 0));
    codes.scales.grow(codes.first_scale(codes.chunks(), 0));
    return codes;
}

}  // namespace

void add_gram(float* total, const float* inputs, std::int64_t tokens, std::int64_t columns, Pool& pool, Isa isa) {
    const GramKernels& kernels = gram_kernels(isa);
    for (std::int64_t first = 0; first < tokens; first += tokens_at_once) {
        GramCodes& codes = kept_codes(std::min(tokens_at_once, tokens - first), columns);
        const std::int64_t tiles = codes.panels() * (codes.panels() + 1) / 2;
        Barrier barrier(pool.threads());
        pool.run([&](int part, int parts) {
            kernels.encode(inputs + first * columns, share_of(codes.panels(), part, parts), codes);
            barrier.wait();
            kernels.add(total, codes, share_of(tiles, part, parts));
        });
    }
}

}  // namespace octavo
