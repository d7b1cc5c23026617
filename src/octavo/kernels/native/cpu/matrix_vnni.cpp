// The kernels of matrix.h in AVX-512 VNNI.
#include "matrix_kernels.h"

namespace octavo {

extern const MatrixKernels vnni_matrix_kernels;
const MatrixKernels vnni_matrix_kernels{encode<VnniLanes>, multiply<VnniLanes>};

}  // namespace octavo
