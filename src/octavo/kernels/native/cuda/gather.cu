// The kernel that puts activations in order.
#include "gather.cuh"

extern "C" __global__ void __launch_bounds__(octavo::gather_threads) octavo_kernel(const octavo::GatherArguments given) {
    octavo::gather(given);
}
