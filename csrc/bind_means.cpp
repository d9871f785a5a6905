// weighted_mean.

#include <string>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "means.h"
#include "sums.h"

namespace fedmq {
namespace {

std::string item(const char* name, std::size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

py::sequence sequence_argument(py::handle value, const char* name) {
    if (!py::isinstance<py::sequence>(value)) {
        throw py::type_error(std::string(name) + " must be a sequence, not " + type_name(value));
    }
    return py::reinterpret_borrow<py::sequence>(value);
}

// One for all of k payloads, or one for each.
std::vector<Encoding> encodings_argument(py::handle value, std::size_t k) {
    if (PyUnicode_Check(value.ptr())) return std::vector<Encoding>(k, encoding_argument(value));
    const py::sequence names = sequence_argument(value, "encoding");
    std::vector<Encoding> encodings;
    for (const py::handle name : names) encodings.push_back(encoding_argument(name));
    if (encodings.size() != k) {
        throw py::value_error("encoding must be one name or one per payload (" + std::to_string(k) + "), not " +
                              std::to_string(encodings.size()));
    }
    return encodings;
}

std::vector<Payload> payloads_argument(py::handle value, py::handle encoding) {
    const py::sequence objects = sequence_argument(value, "payloads");
    const std::vector<Encoding> encodings = encodings_argument(encoding, objects.size());
    if (encodings.empty()) throw py::value_error("payloads must hold at least one payload, not none");
    std::vector<Payload> payloads;
    payloads.reserve(encodings.size());
    std::optional<std::size_t> n;
    for (std::size_t i = 0; i < encodings.size(); ++i) {
        payloads.push_back(payload_argument(py::object(objects[i]), item("payloads", i), encodings[i], n));
        n = payloads[0].view.n;
    }
    return payloads;
}

std::vector<double> weights_argument(py::handle value, std::size_t k) {
    const py::sequence numbers = sequence_argument(value, "weights");
    if (numbers.size() != k) {
        throw py::value_error("weights must have one number per payload (" + std::to_string(k) + "), not " +
                              std::to_string(numbers.size()));
    }
    std::vector<double> weights;
    for (std::size_t i = 0; i < k; ++i) {
        weights.push_back(weight_argument(py::object(numbers[i]), item("weights", i)));
    }
    return weights;
}

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
    std::vector<double> numbers = weights_argument(weights, updates.size());
    MeanOptions options;
    options.mode = mode_argument(mode);
    if (!frac_bits.is_none()) {
        options.frac_bits = static_cast<int>(count_argument(frac_bits, "frac_bits", kMinFracBits, kMaxFracBits));
    }
    if (!max_norm.is_none()) options.max_norm = positive_argument(max_norm, "max_norm");
    options.threads = threads_argument(threads);
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
