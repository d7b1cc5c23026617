// The kernels of vectors.h in AVX-512.
#include "attention_kernels.h"

namespace octavo {

extern const VectorKernels avx512_vector_kernels;
const VectorKernels avx512_vector_kernels{normalize<Avx512Floats>, gate<Avx512Floats>, write_cache<Avx512Floats>,
    attend<Avx512Floats>, attend_block<Avx512Floats>, merge_blocks<Avx512Floats>, exponentials<Avx512Floats>};

}  // namespace octavo
