// The kernels of gram.h in AVX2.
#include "gram_kernels.h"

namespace octavo {

extern const GramKernels avx2_gram_kernels;
const GramKernels avx2_gram_kernels{encode_panels<Avx2Lanes>, add_tiles<Avx2Lanes>};

}  // namespace octavo
