// The kernel that expands weights; OCTAVO_SHAPE lists the template arguments of Expand.
#include "expand.cuh"

using octavo::Number;
using Shape = octavo::Expand<OCTAVO_SHAPE>;

extern "C" __global__ void __launch_bounds__(Shape::threads) octavo_kernel(const octavo::ExpandArguments given) {
    Shape::run(given);
}
