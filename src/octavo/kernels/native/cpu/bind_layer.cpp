// Whole layers and heads for Python. Arrays come as addresses, which cost nothing to pass; octavo.kernels.cpu_blocks
// checks their types and shapes, and what the numbers in them say is checked here.
#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>

#include "layer.h"
#include "rotation.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

using Address = std::uintptr_t;

template <class Value>
Value* at(Address address) {
    return reinterpret_cast<Value*>(address);
}

Pool& pool_or_default(Pool* pool) { return pool == nullptr ? default_pool() : *pool; }

void init_step(Step* self, Address angles, Address write_slots, Address lengths, Address row_starts, Address page_table,
               std::int64_t rows, std::int64_t half_head, std::int64_t sequences, std::int64_t pages,
               std::int64_t page_size, float temperature) {
    new (self) Step({at<const float>(angles), at<const std::int64_t>(write_slots), at<const std::int64_t>(lengths),
                     at<const std::int64_t>(row_starts), at<const std::int64_t>(page_table), rows, half_head, sequences,
                     pages, page_size, temperature});
}

void init_layer(Layer* self, Address attention_norm, Address mlp_norm, Address query_norm, Address key_norm,
                SharedMatrix query, SharedMatrix key, SharedMatrix value, SharedMatrix output, SharedMatrix gate,
                SharedMatrix up, SharedMatrix down, std::int64_t head_dim, std::int64_t window, float norm_epsilon) {
    new (self) Layer({at<const float>(attention_norm), at<const float>(mlp_norm), at<const float>(query_norm),
                      at<const float>(key_norm), query, key, value, output, gate, up, down, head_dim, window,
                      norm_epsilon});
}

void init_head(Head* self, Address norm, float norm_epsilon, SharedMatrix projection) {
    new (self) Head(at<const float>(norm), norm_epsilon, projection);
}

void init_cache(Cache* self, Address keys, Address values, std::int64_t slots, std::int64_t slot_stride,
                std::int64_t head_stride) {
    new (self) Cache{at<float>(keys), at<float>(values), {slot_stride, head_stride}, slots};
}

void init_cache_in_codes(Cache* self, Address keys, Address key_scales, Address values, Address value_scales,
                         std::int64_t slots, std::int64_t slot_stride, std::int64_t head_stride) {
    new (self) Cache{{at<std::int8_t>(keys), at<float>(key_scales)},
                     {at<std::int8_t>(values), at<float>(value_scales)},
                     {slot_stride, head_stride},
                     slots};
}

void run_layer_at(const Layer& layer, const Step& step, const Cache& cache, Address hidden, Address outputs,
                  Pool* pool, Isa isa) {
    const nb::gil_scoped_release release;
    run_layer(layer, step, cache, at<const float>(hidden), at<float>(outputs), pool_or_default(pool), isa);
}

void run_head_at(const Head& head, Address hidden, std::int64_t rows, Address logits, Pool* pool, Isa isa) {
    const nb::gil_scoped_release release;
    run_head(head, at<const float>(hidden), rows, at<float>(logits), pool_or_default(pool), isa);
}

void exponentials_at(Address inputs, std::int64_t size, Address outputs, Isa isa) {
    vector_kernels(isa).exponentials(at<const float>(inputs), size, at<float>(outputs));
}

void cosines_and_sines_at(Address angles, std::int64_t size, Address cosines, Address sines) {
    cosines_and_sines(at<const float>(angles), size, at<float>(cosines), at<float>(sines));
}

}  // namespace

void bind_layer(nb::module_& module) {
    nb::class_<Step>(module, "Step", "What the layers of one forward pass share; copied, and checked.")
        .def("__init__", &init_step, nb::arg("angles"), nb::arg("write_slots"), nb::arg("lengths"),
             nb::arg("row_starts"), nb::arg("page_table"), nb::arg("rows"), nb::arg("half_head"),
             nb::arg("sequences"), nb::arg("pages"), nb::arg("page_size"), nb::arg("temperature"));
    nb::class_<Cache>(module, "Cache", "Keys and values of a layer, by their addresses; strides count heads.")
        .def("__init__", &init_cache, nb::arg("keys"), nb::arg("values"), nb::arg("slots"), nb::arg("slot_stride"),
             nb::arg("head_stride"), "float32")
        .def("__init__", &init_cache_in_codes, nb::arg("keys"), nb::arg("key_scales"), nb::arg("values"),
             nb::arg("value_scales"), nb::arg("slots"), nb::arg("slot_stride"), nb::arg("head_stride"),
             "int8, with float32 scales of the same strides");
    nb::class_<Layer>(module, "Layer", "A decoder layer; norms are copied, matrices shared.")
        .def("__init__", &init_layer, nb::arg("attention_norm"), nb::arg("mlp_norm"), nb::arg("query_norm"),
             nb::arg("key_norm"), nb::arg("query"), nb::arg("key"), nb::arg("value"), nb::arg("output"),
             nb::arg("gate"), nb::arg("up"), nb::arg("down"), nb::arg("head_dim"), nb::arg("window"),
             nb::arg("norm_epsilon"))
        .def_prop_ro("hidden_size", &Layer::hidden_size)
        .def_prop_ro("kv_heads", [](const Layer& layer) { return layer.shape.kv_heads; })
        .def_prop_ro("head_dim", [](const Layer& layer) { return layer.shape.head_dim; })
        .def("run", &run_layer_at, nb::arg("step"), nb::arg("cache"), nb::arg("hidden"), nb::arg("outputs"),
             nb::arg("pool").none(), nb::arg("isa"), "Addresses of float32 rows in and out, [rows, hidden_size].");
    nb::class_<Head>(module, "Head", "The final norm and the projection to logits.")
        .def("__init__", &init_head, nb::arg("norm"), nb::arg("norm_epsilon"), nb::arg("projection"))
        .def_prop_ro("hidden_size", &Head::hidden_size)
        .def_prop_ro("outputs", [](const Head& head) { return head.projection.matrix(0).outputs; })
        .def("run", &run_head_at, nb::arg("hidden"), nb::arg("rows"), nb::arg("logits"), nb::arg("pool").none(),
             nb::arg("isa"), "Addresses of float32 rows that follow each other.");
    module.def("exponentials", &exponentials_at, nb::arg("inputs"), nb::arg("size"), nb::arg("outputs"),
               nb::arg("isa"));
    module.def("cosines_and_sines", &cosines_and_sines_at, nb::arg("angles"), nb::arg("size"), nb::arg("cosines"),
               nb::arg("sines"));
}
