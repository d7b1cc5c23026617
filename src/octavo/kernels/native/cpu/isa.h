// The instruction sets that the library is compiled for, and which of them this machine runs.
#pragma once

#include <vector>

namespace octavo {

// In rising order of speed. `amx_emulated` runs the AMX code with its tile instructions written out in C++; it is
// there to test that code on machines without AMX, and is never the best.
enum class Isa { portable, avx2, avx512, vnni, amx_emulated, amx };

const char* name_of(Isa isa);

// What processor and operating system support, in rising order; found out once.
const std::vector<Isa>& available_isas();

// Throws std::invalid_argument where this machine cannot run `isa`.
void require_available(Isa isa);

// The fastest of them.
Isa best_isa();

}  // namespace octavo
