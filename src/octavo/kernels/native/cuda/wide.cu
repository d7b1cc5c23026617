// The kernel of some dozens of rows, compiled for one shape of block; OCTAVO_SHAPE lists the template arguments of Wide.
#include "wide.cuh"

using Shape = octavo::Wide<OCTAVO_SHAPE>;

extern "C" __global__ void __launch_bounds__(Shape::threads, Shape::resident_blocks)
    octavo_kernel(const octavo::WideArguments given) {
    Shape::run(given);
}
