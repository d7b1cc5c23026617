// Instructions of the GPU that C++ has no word for, one function each. Tests put a header of the same name in the
// place of this one, in which plain C++ does what the instructions do.
#pragma once

namespace octavo {

// What is read once passes the first-level cache by and leaves it to the activations.
__device__ inline uint4 load_once(const uint4 *address) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(address));
    return value;
}

__device__ inline uint2 load_once(const uint2 *address) {
    uint2 value;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(value.x), "=r"(value.y)
                 : "l"(address));
    return value;
}

__device__ inline unsigned load_once(const unsigned *address) {
    unsigned value;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(address));
    return value;
}

// Zero where there is nothing to load. For what an earlier kernel may write while this one has begun, hence not by the
// read-only path.
__device__ inline uint4 load_if(bool there, const uint4 *address) {
    uint4 value;
    asm volatile("{ .reg .pred there; setp.ne.u32 there, %5, 0; mov.u32 %0, 0; mov.u32 %1, 0; mov.u32 %2, 0; "
                 "mov.u32 %3, 0; @there ld.global.v4.u32 {%0, %1, %2, %3}, [%4]; }"
                 : "=&r"(value.x), "=&r"(value.y), "=&r"(value.z), "=&r"(value.w)
                 : "l"(address), "r"(static_cast<unsigned>(there)));
    return value;
}

// Sixteen bytes from global into shared memory while the thread goes on; zeros where there is nothing to copy.
__device__ inline void copy_later(uint4 *target, const uint4 *source, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(target))), "l"(source), "r"(there ? 16 : 0)
                 : "memory");
}

// What this thread has asked for since the last such call is one batch of copies.
__device__ inline void end_batch() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Returns when all batches of this thread but the newest few are there.
template <int newest>
__device__ inline void await_batches() {
    asm volatile("cp.async.wait_group %0;" : : "n"(newest) : "memory");
}

// Four of the eight bytes of `low` and `high`, as the nibbles of `selector` name them.
__device__ inline unsigned choose_bytes(unsigned low, unsigned high, unsigned selector) {
    unsigned chosen;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(chosen) : "r"(low), "r"(high), "r"(selector));
    return chosen;
}

// word & mask | bits, in one instruction, which the compiler does not find for two constants.
__device__ inline unsigned mask_and_set(unsigned word, unsigned mask, unsigned bits) {
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
    return result;
}

// On pairs of halves.
__device__ inline unsigned add_pairs(unsigned left, unsigned right) {
    unsigned sum;
    asm("add.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(left), "r"(right));
    return sum;
}

__device__ inline unsigned multiply_add_pairs(unsigned left, unsigned right, unsigned addend) {
    unsigned sum;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(sum) : "r"(left), "r"(right), "r"(addend));
    return sum;
}

__device__ inline float float_of_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ inline unsigned short half_of_float(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

__device__ inline unsigned short bfloat_of_float(float value) {
    unsigned short bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Halves of two floats, the first one low.
__device__ inline unsigned pair_of_floats(float low, float high) {
    unsigned pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// On pairs of bfloats; of a number and NaN, the number.
__device__ inline unsigned larger_pairs(unsigned left, unsigned right) {
    unsigned larger;
    asm("max.bf16x2 %0, %1, %2;" : "=r"(larger) : "r"(left), "r"(right));
    return larger;
}

// What another lane of the warp gives for `value`.
template <class Value>
__device__ inline Value from_lane(Value value, int lane) {
    return __shfl_sync(0xFFFFFFFF, value, lane);
}

// sums[16 × 8] += left[16 × 16] × right[16 × 8], by a whole warp; operands are pairs of halves. Lane l holds
// - of `left`: rows l / 4 (words 0, 2) and l / 4 + 8 (words 1, 3), columns 2 (l % 4) and the next (words 0, 1) and
//   8 further (words 2, 3);
// - of `right`: column l / 4, rows 2 (l % 4) and the next (word 0) and 8 further (word 1);
// - of `sums`: columns 2 (l % 4) and the next, of row l / 4 (0, 1) and row l / 4 + 8 (2, 3).
__device__ inline void multiply_tiles(float (&sums)[4], const unsigned (&left)[4], unsigned right_0, unsigned right_1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_0), "r"(right_1));
}

// The same with operands that are pairs of bfloats.
__device__ inline void multiply_bfloat_tiles(float (&sums)[4], const unsigned (&left)[4], unsigned right_0,
                                             unsigned right_1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right_0), "r"(right_1));
}

// The next kernel of the stream may begin, as far as it does not need what this one writes (Hopper and later).
__device__ inline void release_dependents() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// What earlier kernels of the stream wrote is there, and what they read may be overwritten.
__device__ inline void wait_for_producers() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

}  // namespace octavo
