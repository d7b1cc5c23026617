// One block of CUDA threads at a time, on one thread of the CPU: each CUDA thread is a fiber that runs until it has to
// wait for others of its warp or block.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __shared__ static

using std::max;
using std::min;

struct Index {
    int x = 0, y = 0, z = 0;
};

struct uint2 {
    unsigned x, y;
};

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

struct float2 {
    float x, y;
};

inline Index threadIdx, blockIdx, blockDim, gridDim;

namespace machine {

constexpr int warp_lanes = 32;
constexpr size_t stack_bytes = 64 * 1024;

// Threads that wait for each other; the last to come lets all go on.
struct Meeting {
    int expected = 0, arrived = 0;
    long long turn = 0;
};

struct Fiber {
    ucontext_t beginning;
    jmp_buf place;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    bool begun = false, ended = false;
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Meeting> warps;
    Meeting whole;
    std::function<void()> kernel;
    jmp_buf scheduler;
    int current = 0;
    bool progress = false;
};

inline Block *block;

inline void run_fiber() {
    block->kernel();
    block->fibers[block->current].ended = true;
    block->progress = true;
    _longjmp(block->scheduler, 1);
}

inline void yield() {
    if (_setjmp(block->fibers[block->current].place) == 0) _longjmp(block->scheduler, 1);
}

inline void meet(Meeting &meeting) {
    const long long turn = meeting.turn;
    if (++meeting.arrived == meeting.expected) {
        meeting.arrived = 0;
        ++meeting.turn;
        block->progress = true;
        return;
    }
    while (meeting.turn == turn) yield();
}

inline int lane() { return threadIdx.x % warp_lanes; }
inline int warp() { return threadIdx.x / warp_lanes; }
inline void meet_warp() { meet(block->warps[warp()]); }

// What each lane of the warp gives, in the order of lanes.
template <class Value>
inline std::vector<Value> gather_warp(const Value &mine) {
    static std::vector<std::vector<Value>> given;
    given.resize(std::max(given.size(), block->warps.size()), std::vector<Value>(warp_lanes));
    given[warp()][lane()] = mine;
    meet_warp();
    const std::vector<Value> all = given[warp()];
    meet_warp();
    return all;
}

inline void resume(int index) {
    Fiber &fiber = block->fibers[index];
    block->current = index;
    threadIdx.x = index;
    if (_setjmp(block->scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.place, 1);
    fiber.begun = true;
    getcontext(&fiber.beginning);
    fiber.beginning.uc_stack.ss_sp = fiber.stack.get();
    fiber.beginning.uc_stack.ss_size = stack_bytes;
    fiber.beginning.uc_link = nullptr;
    makecontext(&fiber.beginning, run_fiber, 0);
    setcontext(&fiber.beginning);
}

inline void run_block(int threads, const std::function<void()> &kernel) {
    Block mine;
    mine.fibers.resize(threads);
    mine.warps.resize(threads / warp_lanes);
    for (Meeting &meeting : mine.warps) meeting.expected = warp_lanes;
    mine.whole.expected = threads;
    mine.kernel = kernel;
    block = &mine;
    for (int left = threads; left > 0;) {
        mine.progress = false;
        left = 0;
        for (int index = 0; index < threads; ++index) {
            if (mine.fibers[index].ended) continue;
            resume(index);
            left += !mine.fibers[index].ended;
        }
        if (left > 0 && !mine.progress) {
            std::fprintf(stderr, "%d threads of a block wait for others that never come\n", left);
            std::abort();
        }
    }
}

// Every block of a grid, one after the other.
template <class Arguments>
void launch(void (*kernel)(const Arguments), int wide, int high, int threads, const void *arguments) {
    gridDim = {wide, high, 1};
    blockDim = {threads, 1, 1};
    for (blockIdx.y = 0; blockIdx.y < high; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < wide; ++blockIdx.x) {
            run_block(threads, [=] { kernel(*static_cast<const Arguments *>(arguments)); });
        }
    }
}

}  // namespace machine

inline void __syncthreads() { machine::meet(machine::block->whole); }

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
