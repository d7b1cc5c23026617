// The kernel of a few rows, compiled for one shape of block; OCTAVO_SHAPE lists the template arguments of Decode.
#include "decode.cuh"

using Shape = octavo::Decode<OCTAVO_SHAPE>;

extern "C" __global__ void __launch_bounds__(Shape::threads, Shape::resident_blocks)
    octavo_kernel(const octavo::DecodeArguments given) {
    Shape::run(given);
}
