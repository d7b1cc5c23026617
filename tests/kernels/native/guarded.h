// Arrays between pages that must not be touched, and how a test of the library complains.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

inline void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "failed: %s\n", what);
    std::exit(1);
}

enum class Against { front, back };

// `size` values that begin right behind a forbidden page, or end right before one: vector instructions that reach
// too far fault, where a sanitizer would not see them.
template <class Value>
class Guarded {
public:
    Guarded(std::int64_t size, Against against) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t bytes = static_cast<std::size_t>(size) * sizeof(Value);
        const std::size_t inner = (bytes + page - 1) / page * page;
        length_ = inner + 2 * page;
        void* mapped = mmap(nullptr, length_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        require(mapped != MAP_FAILED, "mmap");
        pages_ = static_cast<std::uint8_t*>(mapped);
        std::uint8_t* first = pages_ + page;
        require(inner == 0 || mprotect(first, inner, PROT_READ | PROT_WRITE) == 0, "mprotect");
        values_ = reinterpret_cast<Value*>(against == Against::front ? first : first + inner - bytes);
    }
    ~Guarded() { munmap(pages_, length_); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;

    Value* data() const { return values_; }
    Value& operator[](std::int64_t index) const { return values_[index]; }

private:
    std::uint8_t* pages_;
    std::size_t length_;
    Value* values_;
};
