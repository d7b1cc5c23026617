// The kernels of vectors.h in plain C++.
#include "attention_kernels.h"

namespace octavo {

extern const VectorKernels portable_vector_kernels;
const VectorKernels portable_vector_kernels{normalize<PortableFloats>, gate<PortableFloats>, write_cache<PortableFloats>,
    attend<PortableFloats>, attend_block<PortableFloats>, merge_blocks<PortableFloats>, exponentials<PortableFloats>};

}  // namespace octavo
