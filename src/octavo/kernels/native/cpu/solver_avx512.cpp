// The kernels of solver.h in AVX-512.
#include "solver_kernels.h"

namespace octavo {

extern const SolverKernels avx512_solver_kernels;
const SolverKernels avx512_solver_kernels{solve_strip<Avx512Floats>};

}  // namespace octavo
