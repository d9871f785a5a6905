// The Python module fedmq.fedcore.kernels._native.

#include <pybind11/pybind11.h>

#include "bindings.h"
#include "dispatch.h"
#include "pool.h"

#ifndef FEDMQ_VERSION
#define FEDMQ_VERSION "0"
#endif

#if defined(__clang__)
#define FEDMQ_COMPILER "clang " __clang_version__
#elif defined(__GNUC__)
#define FEDMQ_COMPILER "gcc " __VERSION__
#else
#define FEDMQ_COMPILER "unknown"
#endif

namespace py = pybind11;

PYBIND11_MODULE(_native, module, py::mod_gil_not_used()) {
    module.doc() = "The compiled twin of fedmq.fedcore.kernels.reference: the same functions, the same bits.";

    fedmq::bind_accumulator(module);
    fedmq::bind_codecs(module);
    fedmq::bind_means(module);
    fedmq::bind_optimizers(module);
    fedmq::bind_robust(module);
    fedmq::bind_roofline(module);
    fedmq::bind_vectors(module);

    module.def(
        "info",
        [] {
            py::dict facts;
            facts["isa"] = fedmq::kernels().isa;
            facts["threads"] = fedmq::default_threads();
            facts["version"] = FEDMQ_VERSION;
            facts["compiler"] = FEDMQ_COMPILER;
            return facts;
        },
        "Return what computes: the instruction-set level in use, how many threads at most, version and compiler.\n\n"
        "Raises ValueError when FEDMQ_ISA or FEDMQ_NUM_THREADS cannot be obeyed.");
}
