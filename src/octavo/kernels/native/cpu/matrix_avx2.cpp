// The kernels of matrix.h in AVX2.
#include "matrix_kernels.h"

namespace octavo {

extern const MatrixKernels avx2_matrix_kernels;
const MatrixKernels avx2_matrix_kernels{encode<Avx2Lanes>, multiply<Avx2Lanes>};

}  // namespace octavo
