#include "solver.h"

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

void solve_columns(const SolverInput& input, const SolverOutput& output, Pool& pool, Isa isa) {
    const SolverKernels& kernels = solver_kernels(isa);
    const std::int64_t strips = (input.rows + strip_rows - 1) / strip_rows;
    pool.run([&](int part, int parts) {
        const Range mine = share_of(strips, part, parts);
        for (std::int64_t strip = mine.begin; strip < mine.end; ++strip) kernels.solve_strip(input, output, strip);
    });
}

}  // namespace octavo
