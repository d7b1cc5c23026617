// Instruction sets, threads and matrices for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include "bandwidth.h"
#include "matrix.h"

namespace nb = nanobind;
using namespace octavo;

namespace {

template <class Value, int dimensions>
using Array = nb::ndarray<nb::pytorch, const Value, nb::ndim<dimensions>, nb::c_contig, nb::device::cpu>;

std::int64_t extent(std::size_t size) { return static_cast<std::int64_t>(size); }

// Scales come as the bits of float16: not every library that hands over arrays knows the type.
Matrix prepare_codes_of(Array<std::uint8_t, 2> codes, Array<std::int16_t, 2> scale_bits, Array<std::int16_t, 2> zeros,
                        Array<std::int32_t, 1> group_of_column, int bits) {
    if (scale_bits.shape(0) != codes.shape(0) || zeros.shape(0) != codes.shape(0) ||
        zeros.shape(1) != scale_bits.shape(1) || group_of_column.shape(0) != codes.shape(1)) {
        throw std::invalid_argument("codes, scales, zeros and groups differ in shape");
    }
    const nb::gil_scoped_release release;
    return prepare_codes({codes.data(), reinterpret_cast<const std::uint16_t*>(scale_bits.data()), zeros.data(),
                          group_of_column.data(), extent(codes.shape(0)), extent(codes.shape(1)),
                          extent(zeros.shape(1)), bits},
                         default_pool());
}

Matrix prepare_dense_at(std::uintptr_t values, Storage storage, std::int64_t outputs, std::int64_t columns) {
    const nb::gil_scoped_release release;
    return prepare_dense(reinterpret_cast<const void*>(values), storage, outputs, columns, default_pool());
}

void set_bias_of(Matrix& matrix, Array<float, 1> bias) {
    if (extent(bias.shape(0)) != matrix.outputs) throw std::invalid_argument("bias and matrix differ in shape");
    set_bias(matrix, bias.data());
}

// Addresses instead of arrays: on small models, unwrapping arrays would cost as much as the product.
void matmul_at(const Matrix& matrix, std::uintptr_t inputs, std::uintptr_t outputs, std::int64_t rows, Pool* pool,
               std::optional<Isa> isa) {
    const nb::gil_scoped_release release;
    matmul(matrix, {reinterpret_cast<const float*>(inputs), matrix.form.columns},
           {reinterpret_cast<float*>(outputs), matrix.outputs}, rows, pool == nullptr ? default_pool() : *pool,
           isa.value_or(best_isa()));
}

}  // namespace

void bind_matrix(nb::module_& module) {
    nb::enum_<Isa>(module, "Isa", "Instruction sets, in rising order of speed.")
        .value("portable", Isa::portable)
        .value("avx2", Isa::avx2)
        .value("avx512", Isa::avx512)
        .value("vnni", Isa::vnni)
        .value("amx_emulated", Isa::amx_emulated)
        .value("amx", Isa::amx);
    module.def("name_of", &name_of, nb::arg("isa"));
    module.def("available_isas", [] { return available_isas(); }, "What this machine runs.");
    module.def("best_isa", &best_isa);

    nb::class_<Pool>(module, "Pool", "Threads that share the work of one call; `threads` counts the caller.")
        .def(nb::init<int>(), nb::arg("threads"))
        .def_prop_ro("threads", &Pool::threads);
    module.def("default_pool", &default_pool, nb::rv_policy::reference, "The pool of the process.");
    module.def("set_default_threads", &set_default_threads, nb::arg("threads"),
               "Size of the default pool; ValueError below 1, RuntimeError where it runs with another.");

    module.def("read_bandwidth", [](std::int64_t bytes) {
        const nb::gil_scoped_release release;
        return read_bandwidth(bytes, default_pool());
    }, nb::arg("bytes"), "Bytes per second of reading so many bytes of memory on the threads of the default pool.");

    nb::enum_<Storage>(module, "Storage")
        .value("codes8", Storage::codes8)
        .value("codes4", Storage::codes4)
        .value("codes2", Storage::codes2)
        .value("float32", Storage::float32)
        .value("float16", Storage::float16)
        .value("bfloat16", Storage::bfloat16);
    nb::class_<Matrix>(module, "Matrix", "A weight in the layout of the kernels.")
        .def_ro("outputs", &Matrix::outputs)
        .def_ro("storage", &Matrix::storage)
        .def_prop_ro("columns", [](const Matrix& matrix) { return matrix.form.columns; })
        .def_prop_ro("bytes", [](const Matrix& matrix) { return matrix.panels() * matrix.panel_bytes(); })
        .def("set_bias", &set_bias_of, nb::arg("bias"), "Float32, one for each output.");
    module.def("prepare_codes", &prepare_codes_of, nb::arg("codes"), nb::arg("scale_bits"), nb::arg("zeros"),
               nb::arg("group_of_column"), nb::arg("bits"));
    module.def("prepare_dense", &prepare_dense_at, nb::arg("values"), nb::arg("storage"), nb::arg("outputs"),
               nb::arg("columns"), "Values at an address, row after row.");
    module.def("same_form", &same_form, nb::arg("one"), nb::arg("other"),
               "Whether inputs encoded for one matrix serve the other.");
    module.def("matmul", &matmul_at, nb::arg("matrix"), nb::arg("inputs"), nb::arg("outputs"), nb::arg("rows"),
               nb::arg("pool") = nb::none(), nb::arg("isa") = nb::none(),
               "outputs = inputs * matrix^T + bias, at addresses of float32 rows that follow each other; by default on "
               "the pool of the process, in the best instruction set.");
}
