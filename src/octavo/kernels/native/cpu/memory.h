// Zeroed memory for arrays that are read in long streams: aligned, and in huge pages where it is large.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace octavo {

// At least `bytes` bytes of zeros, aligned to 64 bytes, or to a huge page where they fill one; throws
// std::bad_alloc.
void* allocate_zeroed(std::size_t bytes);
void release(void* memory) noexcept;

// At least `bytes` bytes that belong to the calling thread, aligned to 64 bytes: what was there at its last call, or
// more. They are good until its next call.
std::uint8_t* thread_scratch(std::int64_t bytes);

template <class Value>
class Buffer {
    static_assert(std::is_trivially_copyable_v<Value>);

public:
    Buffer() = default;
    explicit Buffer(std::int64_t size)
        : size_(size), values_(static_cast<Value*>(allocate_zeroed(static_cast<std::size_t>(size) * sizeof(Value)))) {}

    // Room for `size` values; what was there is lost if it has to grow.
    void grow(std::int64_t size) {
        if (size > size_) *this = Buffer(size);
    }

    std::int64_t size() const { return size_; }
    Value* data() { return values_.get(); }
    const Value* data() const { return values_.get(); }
    Value& operator[](std::int64_t index) { return values_.get()[index]; }
    const Value& operator[](std::int64_t index) const { return values_.get()[index]; }

private:
    struct Release {
        void operator()(void* memory) const noexcept { release(memory); }
    };
    std::int64_t size_ = 0;
    std::unique_ptr<Value, Release> values_;
};

}  // namespace octavo
