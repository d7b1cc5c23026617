// The kernels of gram.h in portable C++.
#include "gram_kernels.h"

namespace octavo {

extern const GramKernels portable_gram_kernels;
const GramKernels portable_gram_kernels{encode_panels<PortableLanes>, add_tiles<PortableLanes>};

}  // namespace octavo
