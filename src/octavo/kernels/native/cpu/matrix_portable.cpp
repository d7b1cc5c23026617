// The kernels of matrix.h in plain C++.
#include "matrix_kernels.h"

namespace octavo {

extern const MatrixKernels portable_matrix_kernels;
const MatrixKernels portable_matrix_kernels{encode<PortableLanes>, multiply<PortableLanes>};

}  // namespace octavo
