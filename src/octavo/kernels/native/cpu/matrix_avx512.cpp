// The kernels of matrix.h in AVX-512BW.
#include "matrix_kernels.h"

namespace octavo {

extern const MatrixKernels avx512_matrix_kernels;
const MatrixKernels avx512_matrix_kernels{encode<Avx512Lanes>, multiply<Avx512Lanes>};

}  // namespace octavo
