// The kernel that finds the grids of groups of weights.
#include "search.cuh"

extern "C" __global__ void __launch_bounds__(octavo::Search::threads)
    octavo_kernel(const octavo::SearchArguments given) {
    octavo::Search::run(given);
}
