// How fast this machine's memory can be read, to hold the speed of kernels against.
#pragma once

#include <cstdint>

#include "pool.h"

namespace octavo {

// Bytes per second of reading `bytes`, which should be several times the caches, on all threads of `pool`: the best
// of passes with small and huge pages, with and without prefetching. Throws std::bad_alloc.
double read_bandwidth(std::int64_t bytes, Pool& pool);

}  // namespace octavo
