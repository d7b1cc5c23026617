#include "solver.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace octavo {

extern const SolverKernels portable_solver_kernels;
#if defined(__x86_64__)
extern const SolverKernels avx2_solver_kernels, avx512_solver_kernels;
#endif

const SolverKernels& solver_kernels(Isa isa) {
    const std::vector<Isa>& available = available_isas();
    if (std::find(available.begin(), available.end(), isa) == available.end()) {
        throw std::invalid_argument(std::string("this machine does not run ") + name_of(isa));
    }
#if defined(__x86_64__)
    if (isa >= Isa::avx512) return avx512_solver_kernels;
    if (isa == Isa::avx2) return avx2_solver_kernels;
#endif
    return portable_solver_kernels;
}

void add_gram(float* total, const float* inputs, std::int64_t tokens, std::int64_t columns, Pool& pool, Isa isa) {
    const SolverKernels& kernels = solver_kernels(isa);
    const std::int64_t panels = (columns + gram_panel - 1) / gram_panel;
    pool.run([&](int part, int parts) {
        kernels.add_gram(total, inputs, tokens, columns, share_of(panels * (panels + 1) / 2, part, parts));
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
