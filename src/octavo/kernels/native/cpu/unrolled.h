// Loops whose counter is a constant in each turn.
#pragma once

#include <utility>

namespace octavo {
namespace {

template <class Body, int... index>
[[gnu::always_inline]] inline void unrolled_over(Body& body, std::integer_sequence<int, index...>) {
    (body(std::integral_constant<int, index>{}), ...);
}

// Calls body(0), body(1), … with constants, so that arrays of registers stay registers.
template <int count, class Body>
[[gnu::always_inline]] inline void unrolled(Body body) {
    unrolled_over(body, std::make_integer_sequence<int, count>{});
}

}  // namespace
}  // namespace octavo
