// The kernels of solver.h in AVX2.
#include "solver_kernels.h"

namespace octavo {

extern const SolverKernels avx2_solver_kernels;
const SolverKernels avx2_solver_kernels{add_gram_tiles<Avx2Floats>, solve_strip<Avx2Floats>};

}  // namespace octavo
