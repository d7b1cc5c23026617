// The kernels of solver.h in AVX2.
#include "solver_kernels.h"

namespace octavo {

extern const SolverKernels avx2_solver_kernels;
const SolverKernels avx2_solver_kernels{solve_strip<Avx2Floats>};

}  // namespace octavo
