// The kernels of gram.h in AVX-512 VNNI.
#include "gram_kernels.h"

namespace octavo {

extern const GramKernels vnni_gram_kernels;
const GramKernels vnni_gram_kernels{encode_panels<VnniLanes>, add_tiles<VnniLanes>};

}  // namespace octavo
