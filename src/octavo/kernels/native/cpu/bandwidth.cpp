#include "bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include "memory.h"

namespace octavo {
namespace {

constexpr int passes = 3;
constexpr std::int64_t line = 8;            // words in a cache line
constexpr std::int64_t prefetched = 16;     // lines ahead, about a kilobyte

// The sum of all words; eight running sums, so that no addition waits for the one before it.
template <bool Prefetch>
std::uint64_t sum_of(const std::uint64_t* words, Range lines) {
    std::uint64_t sums[line] = {};
    for (std::int64_t at = lines.begin; at < lines.end; ++at) {
        const std::uint64_t* from = words + at * line;
        if constexpr (Prefetch) __builtin_prefetch(from + prefetched * line);
        for (std::int64_t word = 0; word < line; ++word) sums[word] += from[word];
    }
    std::uint64_t sum = 0;
    for (std::uint64_t part : sums) sum += part;
    return sum;
}

template <bool Prefetch>
double seconds_to_read(const std::uint64_t* words, std::int64_t lines, Pool& pool) {
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(pool.threads()));
    const auto started = std::chrono::steady_clock::now();
    pool.run([&](int part, int parts) {
        sums[static_cast<std::size_t>(part)] = sum_of<Prefetch>(words, share_of(lines, part, parts));
    });
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - started;
    // The sums must be used, or the compiler leaves the reading out.
    volatile std::uint64_t kept = 0;
    for (std::uint64_t sum : sums) kept = kept + sum;
    return taken.count();
}

double best_of_passes(const std::uint64_t* words, std::int64_t lines, Pool& pool) {
    double best = seconds_to_read<true>(words, lines, pool);
    for (int pass = 0; pass < passes; ++pass) {
        best = std::min({best, seconds_to_read<true>(words, lines, pool), seconds_to_read<false>(words, lines, pool)});
    }
    return best;
}

}  // namespace

double read_bandwidth(std::int64_t bytes, Pool& pool) {
    const std::int64_t lines = std::max<std::int64_t>(bytes / (line * 8), 1);
    const auto words = static_cast<std::size_t>(lines * line);
    double best;
    {
        Buffer<std::uint64_t> huge(lines * line);
        std::memset(huge.data(), 1, words * 8);  // pages that were never written all lie in one place
        best = best_of_passes(huge.data(), lines, pool);
    }
    const std::vector<std::uint64_t> small(words, 1);
    best = std::min(best, best_of_passes(small.data(), lines, pool));
    return static_cast<double>(lines * line * 8) / best;
}

}  // namespace octavo
