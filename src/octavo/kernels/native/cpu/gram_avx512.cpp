// The kernels of gram.h in AVX-512.
#include "gram_kernels.h"

namespace octavo {

extern const GramKernels avx512_gram_kernels;
const GramKernels avx512_gram_kernels{encode_panels<Avx512Lanes>, add_tiles<Avx512Lanes>};

}  // namespace octavo
