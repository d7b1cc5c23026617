#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <cmath>
#include <condition_variable>
#include <fstream>
#include <limits>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace octavo {

namespace {

// Spinning bridges the gaps between the stages of a layer; after that a waiting thread gives its core away, at once
// to whoever wants it and soon to all.
constexpr int spins = 1000;
constexpr int yields = 50;

void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Where threads wait for a condition that others bring about with atomic variables.
class Doorbell {
public:
    template <class Ready>
    void wait(Ready ready) {
        for (int i = 0; i < spins; ++i) {
            if (ready()) return;
            relax();
        }
        for (int i = 0; i < yields; ++i) {
            if (ready()) return;
            sched_yield();
        }
        std::unique_lock lock(mutex_);
        ++sleepers_;
        bell_.wait(lock, ready);
        --sleepers_;
    }

    // To be called after the condition has come about. A sleeper counts itself before it looks at the condition, and
    // we look at the count after the condition has changed, so one of the two is seen.
    void ring() {
        if (sleepers_ == 0) return;
        { const std::lock_guard lock(mutex_); }
        bell_.notify_all();
    }

private:
    std::mutex mutex_;
    std::condition_variable bell_;
    std::atomic<int> sleepers_{0};
};

// Forks between the first process and this one: threads do not come along.
std::atomic<int> forks{0};

void count_forks() {
    static std::once_flag once;
    std::call_once(once, [] { pthread_atfork(nullptr, nullptr, [] { ++forks; }); });
}

}  // namespace

struct Pool::Crew {
    explicit Crew(int parts) : parts(parts), born(forks) {
        for (int part = 1; part < parts; ++part) threads.emplace_back([this, part] { work(part); });
    }

    ~Crew() {
        stopping = true;
        ++round;
        start.ring();
        for (std::thread& thread : threads) thread.join();
    }

    void run(Call task, void* with) {
        const std::lock_guard turn(one_at_a_time);
        call = task;
        context = with;
        busy = parts - 1;
        ++round;
        start.ring();
        call(context, 0, parts);
        finish.wait([this] { return busy == 0; });
    }

    void work(int part) {
        for (std::uint64_t seen = 0;;) {
            start.wait([&] { return round != seen; });
            ++seen;  // the next round begins only when all are done with this one
            if (stopping) return;
            call(context, part, parts);
            if (--busy == 0) finish.ring();
        }
    }

    const int parts;
    const int born;  // forks before it
    std::mutex one_at_a_time;
    Doorbell start, finish;
    std::atomic<std::uint64_t> round{0};
    std::atomic<int> busy{0};
    std::atomic<bool> stopping{false};
    Call call = nullptr;
    void* context = nullptr;
    std::vector<std::thread> threads;
};

Pool::Pool(int threads) : threads_(threads) {
    if (threads < 1) throw std::invalid_argument("a pool needs at least one thread");
    count_forks();
}

Pool::~Pool() {
    Crew* crew = crew_;
    // The threads of a crew from before a fork are not here to be joined; what they left is lost.
    if (crew != nullptr && crew->born == forks) delete crew;
}

Pool::Crew& Pool::crew() {
    Crew* present = crew_;
    if (present != nullptr && present->born == forks) return *present;
    auto fresh = std::make_unique<Crew>(threads_);
    if (crew_.compare_exchange_strong(present, fresh.get())) return *fresh.release();
    return *present;
}

void Pool::run_parts(Call call, void* context) {
    if (threads_ == 1) {
        call(context, 0, 1);
    } else {
        crew().run(call, context);
    }
}

namespace {

// Cores that the process may be scheduled on; two hardware threads of a core name the same siblings.
int allowed_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
        std::set<std::string> cores;
        for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
            if (!CPU_ISSET(cpu, &allowed)) continue;
            const std::string name = std::to_string(cpu);
            std::ifstream file("/sys/devices/system/cpu/cpu" + name + "/topology/thread_siblings_list");
            std::string siblings;
            cores.insert(std::getline(file, siblings) ? siblings : name);
        }
        return static_cast<int>(cores.size());
    }
#endif
    return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// Cores whose time a container grants its processes: cpu.max of cgroup v2 holds microseconds in each period, or "max".
int granted_cores() {
    std::ifstream file("/sys/fs/cgroup/cpu.max");
    double granted, period;
    if (!(file >> granted >> period)) return std::numeric_limits<int>::max();
    return std::max(1, static_cast<int>(std::ceil(granted / period)));
}

}  // namespace

int available_cores() { return std::min(allowed_cores(), granted_cores()); }

namespace {

std::mutex default_mutex;
int default_threads = 0;
Pool* the_default = nullptr;  // never destroyed: at exit, other threads may still be using it

}  // namespace

void set_default_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("a pool needs at least one thread");
    const std::lock_guard lock(default_mutex);
    if (the_default != nullptr && the_default->threads() != threads) {
        throw std::logic_error("the threads are already running; choose their number before the first product");
    }
    default_threads = threads;
}

Pool& default_pool() {
    const std::lock_guard lock(default_mutex);
    if (the_default == nullptr) the_default = new Pool(default_threads > 0 ? default_threads : available_cores());
    return *the_default;
}

}  // namespace octavo
