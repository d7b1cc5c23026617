// What lies between the products of a decoder layer, for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include "stages.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

template <class Value, int dimensions>
using Array = nb::ndarray<Value, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;
using Weight = Array<const float, 1>;

std::int64_t extent(std::size_t size) { return static_cast<std::int64_t>(size); }

Pool& pool_or_default(Pool* pool) { return pool == nullptr ? default_pool() : *pool; }

void require(bool fits) {
    if (!fits) throw std::invalid_argument("inputs and outputs differ in shape");
}

void normalize(Array<const float, 2> inputs, Weight weight, float epsilon, Array<float, 2> outputs, Pool* pool, Isa isa) {
    require(outputs.shape(0) == inputs.shape(0) && outputs.shape(1) == inputs.shape(1) &&
            weight.shape(0) == inputs.shape(1));
    const nb::gil_scoped_release release;
    normalize_rows(inputs.data(), extent(inputs.shape(0)), extent(inputs.shape(1)), {weight.data(), epsilon},
                   outputs.data(), pool_or_default(pool), isa);
}

void gate(Array<const float, 2> inputs, Array<float, 2> outputs, Pool* pool, Isa isa) {
    require(outputs.shape(0) == inputs.shape(0) && 2 * outputs.shape(1) == inputs.shape(1));
    const nb::gil_scoped_release release;
    gate_rows(inputs.data(), extent(inputs.shape(0)), extent(outputs.shape(1)), outputs.data(), pool_or_default(pool),
              isa);
}

// How a layer attends; norms of heads are null where it has none.
struct HeadRule {
    HeadShape shape;
    std::optional<Weight> query_norm, key_norm;
    float epsilon;

    Norm norm(const std::optional<Weight>& weight) const {
        require(!weight || extent(weight->shape(0)) == shape.head_dim);
        return {weight ? weight->data() : nullptr, epsilon};
    }
};

void attend(Array<const float, 2> inputs, const Step& step, const HeadRule& rule, Array<float, 2> outputs, Pool* pool,
            Isa isa) {
    const HeadShape& shape = rule.shape;
    require(extent(inputs.shape(0)) == step.rows() && extent(outputs.shape(0)) == step.rows() &&
            extent(inputs.shape(1)) == (shape.heads + 2 * shape.kv_heads) * shape.head_dim &&
            extent(outputs.shape(1)) == shape.heads * shape.head_dim);
    const Norm query_norm = rule.norm(rule.query_norm), key_norm = rule.norm(rule.key_norm);
    const nb::gil_scoped_release release;
    attend_rows(inputs.data(), step, shape, query_norm, key_norm, outputs.data(), pool_or_default(pool), isa);
}

}  // namespace

void bind_stages(nb::module_& module) {
    module.def("normalize", &normalize, nb::arg("inputs"), nb::arg("weight"), nb::arg("epsilon"), nb::arg("outputs").noconvert(),
               nb::arg("pool") = nb::none(), nb::arg("isa").sig("...") = best_isa());
    module.def("gate", &gate, nb::arg("inputs"), nb::arg("outputs").noconvert(), nb::arg("pool") = nb::none(),
               nb::arg("isa").sig("...") = best_isa(), "silu(gates) * ups, side by side in each row.");
    nb::class_<HeadRule>(module, "HeadRule", "How a layer attends.")
        .def(
            "__init__",
            [](HeadRule* self, std::int64_t heads, std::int64_t kv_heads, std::int64_t head_dim, std::int64_t window,
               std::optional<Weight> query_norm, std::optional<Weight> key_norm, float epsilon) {
                if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || head_dim < 2 || window < 0) {
                    throw std::invalid_argument("these heads do not fit together");
                }
                new (self) HeadRule{{heads, kv_heads, head_dim, window}, query_norm, key_norm, epsilon};
            },
            nb::arg("heads"), nb::arg("kv_heads"), nb::arg("head_dim"), nb::arg("window"),
            nb::arg("query_norm").none(), nb::arg("key_norm").none(), nb::arg("epsilon"));
    module.def("attend", &attend, nb::arg("inputs"), nb::arg("step"), nb::arg("rule"), nb::arg("outputs").noconvert(),
               nb::arg("pool") = nb::none(), nb::arg("isa").sig("...") = best_isa(),
               "Attention of whole sequences; each row of inputs is [queries, keys, values].");
}
