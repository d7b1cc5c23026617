// The kernel that solves a block of columns.
#include "columns.cuh"

extern "C" __global__ void __launch_bounds__(octavo::Columns::threads)
    octavo_kernel(const octavo::ColumnsArguments given) {
    octavo::Columns::run(given);
}
