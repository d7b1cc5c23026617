// Where the threads of one task wait for one another.
#pragma once

#include <sched.h>

#include <atomic>

namespace octavo {

class Barrier {
public:
    explicit Barrier(int parts) : parts_(parts) {}

    // Returns when all parts have called it; what they wrote before is then seen by all.
    void wait() {
        const int round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == parts_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        // The stages of a layer are even, so the wait is short, unless another process has the core: then yield.
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
            if (spins < most_spins) {
                relax();
            } else {
                sched_yield();
            }
        }
    }

private:
    static constexpr int most_spins = 100;  // some microseconds

    static void relax() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    const int parts_;
    std::atomic<int> arrived_{0}, round_{0};
};

}  // namespace octavo
