// Functions of one vector: sums of squares, clipping, noise.

#include <cmath>

#include "arguments.h"
#include "bindings.h"
#include "dispatch.h"
#include "pool.h"
#include "sums.h"

namespace fedmq {
namespace {

double squares(py::handle payload, py::handle encoding, py::handle n, py::handle threads) {
    const Payload update = payload_argument(payload, "payload", encoding_argument(encoding), values_argument(n));
    const int workers = threads_argument(threads);
    const py::gil_scoped_release unlocked;
    return sum_squares(update.view, workers);
}

double clip(py::handle x, py::handle max_norm, py::handle threads) {
    const Floats floats = floats_argument(x, "x", Access::write);
    const double limit = positive_argument(max_norm, "max_norm");
    const int workers = threads_argument(threads);
    const py::gil_scoped_release unlocked;
    const View view{reinterpret_cast<const std::byte*>(floats.data), Encoding::f32, floats.n};
    const double norm = norm_of(view, workers);
    if (!(norm < HUGE_VAL)) {
        throw std::invalid_argument("x must be finite to be clipped; it holds a NaN or an infinity");
    }
    if (norm > limit) {
        const double factor = limit / norm;
        const KernelTable& kernel = kernels();
        parallel_for(floats.n, kRangeStep, workers, [&](std::size_t first, std::size_t last) {
            kernel.multiply(floats.data, factor, first, last);
        });
    }
    return norm;
}

void add_gaussian(py::handle x, py::handle sigma, py::handle key, py::handle nonce, py::handle offset,
                  py::handle threads) {
    const Floats floats = floats_argument(x, "x", Access::write);
    const double deviation = nonnegative_argument(sigma, "sigma");
    const auto secret = key_argument(key);
    const auto number = nonce_argument(nonce);
    const Stream stream{secret.data(), number.data(), offset_argument(offset, floats.n)};
    const int workers = threads_argument(threads);
    const py::gil_scoped_release unlocked;
    const KernelTable& kernel = kernels();
    parallel_for(floats.n, kRangeStep, workers, [&](std::size_t first, std::size_t last) {
        kernel.add_gaussian(floats.data, deviation, stream, first, last);
    });
}

}  // namespace

void bind_vectors(py::module_& module) {
    module.def("sum_squares", &squares, py::arg("payload"), py::kw_only(), py::arg("encoding") = "f32",
               py::arg("n") = py::none(), py::arg("threads") = py::none(),
               "Return the sum of the squares of a payload's values; inf or NaN when it holds one.");
    module.def("clip_", &clip, py::arg("x"), py::arg("max_norm"), py::kw_only(), py::arg("threads") = py::none(),
               "Scale `x` in place so that its norm is at most `max_norm`; return the norm that it had.");
    module.def("add_gaussian_", &add_gaussian, py::arg("x"), py::arg("sigma"), py::kw_only(), py::arg("key"),
               py::arg("nonce"), py::arg("offset") = 0, py::arg("threads") = py::none(),
               "Add Gaussian noise to `x`, in place: x_j + sigma · normal(offset + j).");
}

}  // namespace fedmq
