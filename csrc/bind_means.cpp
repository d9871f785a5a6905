// weighted_mean.

#include <string>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "means.h"
#include "sums.h"

namespace fedmq {
namespace {

Mode mode_argument(py::handle value) {
    if (PyUnicode_Check(value.ptr())) {
        const std::string name = value.cast<std::string>();
        if (name == "exact") return Mode::exact;
        if (name == "f64") return Mode::f64;
        if (name == "f32") return Mode::f32;
    }
    throw py::value_error("mode must be exact, f64 or f32, not " + describe(value));
}

py::object mean(py::handle payloads, py::handle weights, py::handle encoding, py::handle mode, py::handle frac_bits,
                py::handle max_norm, py::handle out, py::handle threads) {
    const std::vector<Payload> updates = payloads_argument(payloads, encoding);
    std::vector<double> numbers = numbers_argument(weights, "weights", updates.size(), weight_argument);
    MeanOptions options;
    options.mode = mode_argument(mode);
    if (!frac_bits.is_none()) {
        options.frac_bits = static_cast<int>(count_argument(frac_bits, "frac_bits", kMinFracBits, kMaxFracBits));
    }
    if (!max_norm.is_none()) options.max_norm = positive_argument(max_norm, "max_norm");
    options.threads = threads_argument(threads);
    options.may_spoil_out = out.is_none();
    Floats result = output_argument(out, updates[0].view.n);
    disjoint_output(result, updates);
    {
        const py::gil_scoped_release unlocked;
        std::vector<View> views;
        for (const Payload& update : updates) views.push_back(update.view);
        weighted_mean(views, std::move(numbers), options, result.data);
    }
    return std::move(result.owner);
}

}  // namespace

void bind_means(py::module_& module) {
    module.def("weighted_mean", &mean, py::arg("payloads"), py::arg("weights"), py::kw_only(),
               py::arg("encoding") = "f32", py::arg("mode") = "exact", py::arg("frac_bits") = py::none(),
               py::arg("max_norm") = py::none(), py::arg("out") = py::none(), py::arg("threads") = py::none(),
               "Return Σ weight_k · update_k / Σ weight_k, as float32.");
}

}  // namespace fedmq
