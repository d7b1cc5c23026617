// Threads that run one task at a time, each its fixed part of it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace octavo {

struct Range {
    std::int64_t begin, end;

    std::int64_t size() const { return end - begin; }
};

// The part of [0, count) that falls to `part` of `parts`: as even as can be, in order.
inline Range share_of(std::int64_t count, int part, int parts) {
    return {count * part / parts, count * (part + 1) / parts};
}

// Several callers may share a pool; their tasks run one after another. A pool that is inherited through fork starts
// new threads in the child at its first use.
class Pool {
public:
    // `threads` counts the caller of `run`; throws std::invalid_argument below 1.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Calls task(part, parts) for each part, part 0 on the calling thread, and returns when all have returned.
    // `task` must not throw, and must not run another task.
    template <class Task>
    void run(Task&& task) {
        using Plain = std::remove_reference_t<Task>;
        run_parts([](void* context, int part, int parts) { (*static_cast<Plain*>(context))(part, parts); },
                  const_cast<void*>(static_cast<const void*>(std::addressof(task))));
    }

private:
    struct Crew;
    using Call = void (*)(void* context, int part, int parts);

    void run_parts(Call call, void* context);
    Crew& crew();

    const int threads_;
    std::atomic<Crew*> crew_{nullptr};
};

// Physical cores that the process may use, by its affinity and the quota of its container.
int available_cores();

// The pool of the process, made at first use: with as many threads as asked for, or `available_cores()`.
Pool& default_pool();

// Throws std::invalid_argument below 1, std::logic_error where the pool is already made with another number.
void set_default_threads(int threads);

}  // namespace octavo
