#include "solver.h"

#include <algorithm>

#include "barrier.h"
#include "memory.h"

namespace octavo {

extern const SolverKernels portable_solver_kernels;
#if defined(__x86_64__)
extern const SolverKernels avx2_solver_kernels, avx512_solver_kernels;
#endif

const SolverKernels& solver_kernels(Isa isa) {
    require_available(isa);
#if defined(__x86_64__)
    if (isa >= Isa::avx512) return avx512_solver_kernels;
    if (isa == Isa::avx2) return avx2_solver_kernels;
#endif
    return portable_solver_kernels;
}

namespace {

constexpr std::int64_t gram_tokens = 128;  // summed by themselves before they are added to the total

// packed[panel][token][column of the panel]; columns that do not exist are zeros.
void pack_panels(const float* inputs, std::int64_t tokens, std::int64_t columns, Range panels, float* packed) {
    for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
        const std::int64_t first = panel * gram_panel, width = std::min<std::int64_t>(gram_panel, columns - first);
        float* to = packed + panel * tokens * gram_panel;
        for (std::int64_t token = 0; token < tokens; ++token, to += gram_panel) {
            std::copy_n(inputs + token * columns + first, width, to);
            std::fill_n(to + width, gram_panel - width, 0.0f);
        }
    }
}

}  // namespace

void add_gram(float* total, const float* inputs, std::int64_t tokens, std::int64_t columns, Pool& pool, Isa isa) {
    const SolverKernels& kernels = solver_kernels(isa);
    const std::int64_t panels = (columns + gram_panel - 1) / gram_panel;
    const std::int64_t size = panels * gram_panel * std::min(tokens, gram_tokens);
    // While one thread still reads a part of the tokens, another may pack the next: so there are two.
    Buffer<float> packed[2] = {Buffer<float>(size), Buffer<float>(size)};
    Barrier barrier(pool.threads());
    pool.run([&](int part, int parts) {
        for (std::int64_t first = 0, turn = 0; first < tokens; first += gram_tokens, turn = 1 - turn) {
            const std::int64_t count = std::min(gram_tokens, tokens - first);
            float* own = packed[turn].data();
            pack_panels(inputs + first * columns, count, columns, share_of(panels, part, parts), own);
            barrier.wait();
            kernels.add_gram(total, own, count, columns, share_of(panels * (panels + 1) / 2, part, parts));
        }
    });
}

void solve_columns(const SolverInput& input, const SolverOutput& output, Pool& pool, Isa isa) {
    const SolverKernels& kernels = solver_kernels(isa);
    const std::int64_t strips = (input.rows + strip_rows - 1) / strip_rows;
    pool.run([&](int part, int parts) {
        const Range mine = share_of(strips, part, parts);
        for (std::int64_t strip = mine.begin; strip < mine.end; ++strip) kernels.solve_strip(input, output, strip);
    });
}

}  // namespace octavo
