// median, trimmed_mean, pairwise_sq_distances.

#include <cstring>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "robust.h"

namespace fedmq {
namespace {

std::vector<View> views_of(const std::vector<Payload>& updates) {
    std::vector<View> views;
    for (const Payload& update : updates) views.push_back(update.view);
    return views;
}

// Whether all values are finite shows when all are combined, and a refused update leaves the caller's array unchanged:
// so that array gets a copy.
template <class Combine>
py::object combine(const std::vector<Payload>& updates, py::handle out, Combine combine_into) {
    const std::size_t n = updates[0].view.n;
    Floats made = output_argument(py::none(), n);
    const Floats wanted = out.is_none() ? made : output_argument(out, n);
    disjoint_output(wanted, updates);
    {
        const py::gil_scoped_release unlocked;
        combine_into(views_of(updates), made.data);
        if (wanted.data != made.data) std::memcpy(wanted.data, made.data, n * sizeof(float));
    }
    return wanted.owner;
}

py::object median_of(py::handle payloads, py::handle encoding, py::handle out, py::handle threads) {
    const std::vector<Payload> updates = payloads_argument(payloads, encoding);
    const int workers = threads_argument(threads);
    return combine(updates, out, [&](const std::vector<View>& views, f32u* to) { median(views, workers, to); });
}

py::object trimmed_mean_of(py::handle payloads, py::handle trim, py::handle encoding, py::handle out,
                           py::handle threads) {
    const std::vector<Payload> updates = payloads_argument(payloads, encoding);
    const auto most = static_cast<std::int64_t>((updates.size() - 1) / 2);
    const auto dropped = static_cast<std::size_t>(count_argument(trim, "trim", 0, most));
    const int workers = threads_argument(threads);
    return combine(updates, out,
                   [&](const std::vector<View>& views, f32u* to) { trimmed_mean(views, dropped, workers, to); });
}

py::object distances_of(py::handle payloads, py::handle encoding, py::handle threads) {
    const std::vector<Payload> updates = payloads_argument(payloads, encoding);
    const int workers = threads_argument(threads);
    const py::ssize_t k = static_cast<py::ssize_t>(updates.size());
    py::array_t<double> distances({k, k});
    double* data = distances.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        pairwise_sq_distances(views_of(updates), workers, data);
    }
    return std::move(distances);
}

}  // namespace

void bind_robust(py::module_& module) {
    module.def("median", &median_of, py::arg("payloads"), py::kw_only(), py::arg("encoding") = "f32",
               py::arg("out") = py::none(), py::arg("threads") = py::none(),
               "Return the median of each coordinate over the payloads.");
    module.def("trimmed_mean", &trimmed_mean_of, py::arg("payloads"), py::arg("trim"), py::kw_only(),
               py::arg("encoding") = "f32", py::arg("out") = py::none(), py::arg("threads") = py::none(),
               "Return the mean of each coordinate over the payloads, without its extremes.");
    module.def("pairwise_sq_distances", &distances_of, py::arg("payloads"), py::kw_only(),
               py::arg("encoding") = "f32", py::arg("threads") = py::none(),
               "Return the squared distances of all pairs of payloads, float64[K, K].");
}

}  // namespace fedmq
