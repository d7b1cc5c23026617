#include "vectors.h"

namespace octavo {

extern const VectorKernels portable_vector_kernels, avx2_vector_kernels, avx512_vector_kernels;

const VectorKernels& vector_kernels(Isa isa) {
    require_available(isa);
    switch (isa) {
#if defined(__x86_64__)
        case Isa::avx2: return avx2_vector_kernels;
        case Isa::avx512:
        case Isa::vnni:
        case Isa::amx_emulated:
        case Isa::amx: return avx512_vector_kernels;
#endif
        default: return portable_vector_kernels;
    }
}

std::int64_t attention_workspace(const HeadShape& shape, std::int64_t lines) {
    const std::int64_t of_line = shape.padded_dim() + block_positions + 2 * shape.state_size();
    return lines * of_line + (key_stride + block_positions + panel_outputs) * shape.head_dim;
}

}  // namespace octavo
