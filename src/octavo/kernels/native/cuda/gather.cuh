// Activations in the order of slots, for weights whose columns were put into another order or leave slots empty.
#pragma once

#include "hardware.cuh"

namespace octavo {

struct GatherArguments {
    const unsigned short *inputs;  // [rows, columns] halves or bfloats
    const int *column_of_slot;     // [slots]; -1: an empty slot, which gets zero
    unsigned short *outputs;       // [rows, slots]
    int columns;
    int slots;
};

constexpr int gather_threads = 256;

// Block (x, y): slots from x * gather_threads on, of row y.
__device__ inline void gather(const GatherArguments &given) {
    release_dependents();
    const int slot = blockIdx.x * gather_threads + threadIdx.x;
    const long long row = blockIdx.y;
    const int column = slot < given.slots ? given.column_of_slot[slot] : -1;
    wait_for_producers();
    if (slot >= given.slots) return;
    given.outputs[row * given.slots + slot] = column < 0 ? 0 : given.inputs[row * given.columns + column];
}

}  // namespace octavo
