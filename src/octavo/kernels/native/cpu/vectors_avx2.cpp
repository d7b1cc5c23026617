// The kernels of vectors.h in AVX2.
#include "attention_kernels.h"

namespace octavo {

extern const VectorKernels avx2_vector_kernels;
const VectorKernels avx2_vector_kernels{normalize<Avx2Floats>, gate<Avx2Floats>, write_cache<Avx2Floats>,
    attend<Avx2Floats>, attend_block<Avx2Floats>, merge_blocks<Avx2Floats>, exponentials<Avx2Floats>};

}  // namespace octavo
