#include "rotation.h"

namespace octavo {
namespace {

constexpr double two_over_pi = 6.36619772367581382433e-01;
constexpr double shift = 0x1.8p52;  // adding it rounds to a whole number
// pi / 2 in three parts; the first two have 33 bits or fewer, so that 20-bit multiples of them are exact (fdlibm).
constexpr double half_pi_first = 1.57079632673412561417e+00;
constexpr double half_pi_second = 6.07710050630396597660e-11;
constexpr double half_pi_third = 2.02226624879595063154e-21;

// Taylor series around 0; for |x| <= pi / 4 what they leave out is far below half a float's last place.
double sine_near_zero(double x) {
    const double square = x * x;
    const double series =
        1.0 / 120 + square * (-1.0 / 5040 + square * (1.0 / 362880 + square * (-1.0 / 39916800)));
    return x + x * square * (-1.0 / 6 + square * series);
}

double cosine_near_zero(double x) {
    const double square = x * x;
    const double series =
        -1.0 / 720 + square * (1.0 / 40320 + square * (-1.0 / 3628800 + square * (1.0 / 479001600)));
    return 1.0 - 0.5 * square + square * square * (1.0 / 24 + square * series);
}

}  // namespace

void cosines_and_sines(const float* angles, std::int64_t count, float* cosines, float* sines) {
    for (std::int64_t i = 0; i < count; ++i) {
        const double angle = angles[i];
        const double quarters = angle * two_over_pi + shift - shift;
        const double rest =
            ((angle - quarters * half_pi_first) - quarters * half_pi_second) - quarters * half_pi_third;
        const double sine = sine_near_zero(rest), cosine = cosine_near_zero(rest);
        // The quarter turn that `rest` is counted from, 0 … 3; a float, since no integer could hold that of NaN.
        const double turn = quarters - 4.0 * (quarters * 0.25 - 0.375 + shift - shift);
        const bool swapped = turn == 1.0 || turn == 3.0;
        const double first = swapped ? sine : cosine, second = swapped ? cosine : sine;
        cosines[i] = static_cast<float>(turn == 1.0 || turn == 2.0 ? -first : first);
        sines[i] = static_cast<float>(turn >= 2.0 ? -second : second);
    }
}

}  // namespace octavo
