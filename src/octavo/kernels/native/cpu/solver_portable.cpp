// The kernels of solver.h in portable C++.
#include "solver_kernels.h"

namespace octavo {

extern const SolverKernels portable_solver_kernels;
const SolverKernels portable_solver_kernels{solve_strip<PortableFloats>};

}  // namespace octavo
