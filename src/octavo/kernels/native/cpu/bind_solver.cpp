// GPTQ's inner loops for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/vector.h>

#include "gram.h"
#include "solver.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

template <class Value, int dimensions>
using Array = nb::ndarray<Value, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;

std::int64_t extent(std::size_t size) { return static_cast<std::int64_t>(size); }

Pool& pool_or_default(Pool* pool) { return pool == nullptr ? default_pool() : *pool; }

void add_gram_of(Array<float, 2> total, Array<const float, 2> inputs, Pool* pool, Isa isa) {
    if (total.shape(0) != inputs.shape(1) || total.shape(1) != inputs.shape(1)) {
        throw std::invalid_argument("total and inputs differ in columns");
    }
    const nb::gil_scoped_release release;
    add_gram(total.data(), inputs.data(), extent(inputs.shape(0)), extent(inputs.shape(1)), pool_or_default(pool), isa);
}

// How a weight's groups are formed, and their grids found.
struct Rule {
    std::int64_t group_size;
    bool static_groups, symmetric;
    float largest_code, middle, smallest_zero;
    std::vector<float> shrinks;
};

void init_rule(Rule* self, std::int64_t group_size, bool static_groups, bool symmetric, int bits, int smallest_zero,
               std::vector<float> shrinks) {
    if (group_size < 1 || shrinks.empty()) throw std::invalid_argument("a rule needs a group size and a shrink");
    new (self) Rule{group_size,
                    static_groups,
                    symmetric,
                    static_cast<float>((1 << bits) - 1),
                    static_cast<float>(1 << (bits - 1)),
                    static_cast<float>(smallest_zero),
                    std::move(shrinks)};
}

// What a weight is solved with; `importance` is the Hessian's diagonal as stored, `order` the order of solving.
struct Hessian {
    Array<const float, 2> factor;
    Array<const float, 1> importance;
    Array<const std::int64_t, 1> order;
};

void solve_columns_of(Array<const float, 2> weight, const Hessian& hessian, const Rule& rule,
                      Array<std::uint8_t, 2> codes, Array<float, 2> scales, Array<float, 2> zeros, Pool* pool, Isa isa) {
    const std::int64_t rows = extent(weight.shape(0)), columns = extent(weight.shape(1));
    const std::int64_t groups = (columns + rule.group_size - 1) / rule.group_size;
    const auto has_shape = [](const auto& array, std::int64_t first, std::int64_t second) {
        return extent(array.shape(0)) == first && extent(array.shape(1)) == second;
    };
    if (!has_shape(hessian.factor, columns, columns) || extent(hessian.importance.shape(0)) != columns ||
        extent(hessian.order.shape(0)) != columns || !has_shape(codes, rows, columns) ||
        !has_shape(scales, rows, groups) || !has_shape(zeros, rows, groups)) {
        throw std::invalid_argument("weight, Hessian and results differ in shape");
    }
    for (std::int64_t i = 0; i < columns; ++i) {
        if (hessian.order.data()[i] < 0 || hessian.order.data()[i] >= columns) {
            throw std::invalid_argument("the order names a column that does not exist");
        }
    }
    const nb::gil_scoped_release release;
    const GridRule grids{rule.largest_code, rule.middle,         rule.smallest_zero,
                         rule.symmetric,    rule.shrinks.data(), extent(rule.shrinks.size())};
    solve_columns({weight.data(), hessian.factor.data(), hessian.importance.data(), hessian.order.data(), rows, columns,
                   rule.group_size, rule.static_groups, grids},
                  {codes.data(), scales.data(), zeros.data()}, pool_or_default(pool), isa);
}

}  // namespace

void bind_solver(nb::module_& module) {
    module.def("add_gram", &add_gram_of, nb::arg("total").noconvert(), nb::arg("inputs"), nb::arg("pool") = nb::none(),
               nb::arg("isa").sig("...") = best_isa(), "Adds inputs^T inputs to `total`, on and above the diagonal at least.");
    nb::class_<Rule>(module, "GridRule", "How a weight's groups are formed, and their grids found.")
        .def("__init__", &init_rule, nb::arg("group_size"), nb::arg("static_groups"), nb::arg("symmetric"),
             nb::arg("bits"), nb::arg("smallest_zero"), nb::arg("shrinks"));
    nb::class_<Hessian>(module, "Hessian", "What a weight is solved with.")
        .def("__init__",
             [](Hessian* self, Array<const float, 2> factor, Array<const float, 1> importance,
                Array<const std::int64_t, 1> order) {
                 new (self) Hessian{std::move(factor), std::move(importance), std::move(order)};
             },
             nb::arg("factor"), nb::arg("importance"), nb::arg("order"));
    module.def("solve_columns", &solve_columns_of, nb::arg("weight"), nb::arg("hessian"), nb::arg("rule"),
               nb::arg("codes").noconvert(), nb::arg("scales").noconvert(),
               nb::arg("zeros").noconvert(), nb::arg("pool") = nb::none(),
               nb::arg("isa").sig("...") = best_isa());
}
