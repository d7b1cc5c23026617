// The Python module octavo.kernels._native: each part of the library binds itself.
#include <nanobind/nanobind.h>

void bind_layer(nanobind::module_& module);
void bind_matrix(nanobind::module_& module);
void bind_solver(nanobind::module_& module);
void bind_stages(nanobind::module_& module);

NB_MODULE(_native, module) {
    module.doc() = "The native CPU library; octavo.kernels.cpu is what Python code calls.";
    bind_matrix(module);
    bind_layer(module);
    bind_solver(module);
    bind_stages(module);
}
