// What each bind_*.cpp adds to the module. A binding checks its arguments, releases the GIL and calls a kernel; names,
// signatures and results are those of the numpy reference, whose docstrings document both.
#pragma once

#include <pybind11/pybind11.h>

namespace fedmq {

void bind_accumulator(pybind11::module_& module);
void bind_codecs(pybind11::module_& module);
void bind_means(pybind11::module_& module);
void bind_optimizers(pybind11::module_& module);
void bind_robust(pybind11::module_& module);
void bind_roofline(pybind11::module_& module);
void bind_vectors(pybind11::module_& module);

}  // namespace fedmq
