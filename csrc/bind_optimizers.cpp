// Server optimizers: steps in place over parameters, state and delta of one size.
//
// Rules: arguments are checked in the order of the numpy reference, the delta last, so that both backends name the
// same one of two mistakes.

#include "arguments.h"
#include "bindings.h"
#include "dispatch.h"
#include "pool.h"

namespace fedmq {
namespace {

// Runs step(first, last) over ranges that cover n elements, without the GIL.
template <class Step>
void run(std::size_t n, int threads, const Step& step) {
    const py::gil_scoped_release unlocked;
    parallel_for(n, kRangeStep, threads, step);
}

Adaptive adaptive_arguments(py::handle lr, py::handle beta1, py::handle beta2, py::handle eps) {
    Adaptive hyper{};
    hyper.lr = nonnegative_argument(lr, "lr");
    hyper.eps = positive_argument(eps, "eps");
    hyper.beta1 = fraction_argument(beta1, "beta1");
    hyper.beta2 = fraction_argument(beta2, "beta2");
    return hyper;
}

void sgd(py::handle params, py::handle delta, py::handle lr, py::handle threads) {
    const double rate = nonnegative_argument(lr, "lr");
    const Floats w = floats_argument(params, "params", Access::write);
    const int workers = threads_argument(threads);
    const Floats d = floats_argument(delta, "delta", Access::read, w.n);
    disjoint_arguments({{"params", &w}, {"delta", &d}});
    const KernelTable& kernel = kernels();
    run(w.n, workers, [&](std::size_t first, std::size_t last) { kernel.sgd(w.data, d.data, rate, first, last); });
}

void momentum(py::handle params, py::handle velocity, py::handle delta, py::handle lr, py::handle beta,
              py::handle threads) {
    const double rate = nonnegative_argument(lr, "lr");
    const double decay = fraction_argument(beta, "beta");
    const Floats w = floats_argument(params, "params", Access::write);
    const Floats v = floats_argument(velocity, "velocity", Access::write, w.n);
    const int workers = threads_argument(threads);
    const Floats d = floats_argument(delta, "delta", Access::read, w.n);
    disjoint_arguments({{"params", &w}, {"velocity", &v}, {"delta", &d}});
    const KernelTable& kernel = kernels();
    run(w.n, workers, [&](std::size_t first, std::size_t last) {
        kernel.momentum(w.data, v.data, d.data, rate, decay, first, last);
    });
}

void adagrad(py::handle params, py::handle v, py::handle delta, py::handle lr, py::handle eps, py::handle threads) {
    const double rate = nonnegative_argument(lr, "lr");
    const double floor = positive_argument(eps, "eps");
    const Floats w = floats_argument(params, "params", Access::write);
    const Floats second = floats_argument(v, "v", Access::write, w.n);
    const int workers = threads_argument(threads);
    const Floats d = floats_argument(delta, "delta", Access::read, w.n);
    disjoint_arguments({{"params", &w}, {"v", &second}, {"delta", &d}});
    const KernelTable& kernel = kernels();
    run(w.n, workers, [&](std::size_t first, std::size_t last) {
        kernel.adagrad(w.data, second.data, d.data, rate, floor, first, last);
    });
}

// adam_ and yogi_ take the same arguments; `kernel` says which of the two.
template <auto kernel>
void two_moments(py::handle params, py::handle m, py::handle v, py::handle delta, py::handle lr, py::handle beta1,
                 py::handle beta2, py::handle eps, py::handle threads) {
    const Adaptive hyper = adaptive_arguments(lr, beta1, beta2, eps);
    const Floats w = floats_argument(params, "params", Access::write);
    const Floats mean = floats_argument(m, "m", Access::write, w.n);
    const Floats second = floats_argument(v, "v", Access::write, w.n);
    const int workers = threads_argument(threads);
    const Floats d = floats_argument(delta, "delta", Access::read, w.n);
    disjoint_arguments({{"params", &w}, {"m", &mean}, {"v", &second}, {"delta", &d}});
    const auto step = kernels().*kernel;
    run(w.n, workers, [&](std::size_t first, std::size_t last) {
        step(w.data, mean.data, second.data, d.data, hyper, first, last);
    });
}

void fadas(py::handle params, py::handle m, py::handle v, py::handle vhat, py::handle delta, py::handle lr,
           py::handle beta1, py::handle beta2, py::handle eps, py::handle threads) {
    const Adaptive hyper = adaptive_arguments(lr, beta1, beta2, eps);
    const Floats w = floats_argument(params, "params", Access::write);
    const Floats mean = floats_argument(m, "m", Access::write, w.n);
    const Floats second = floats_argument(v, "v", Access::write, w.n);
    const Floats largest = floats_argument(vhat, "vhat", Access::write, w.n);
    const int workers = threads_argument(threads);
    const Floats d = floats_argument(delta, "delta", Access::read, w.n);
    disjoint_arguments({{"params", &w}, {"m", &mean}, {"v", &second}, {"vhat", &largest}, {"delta", &d}});
    const KernelTable& kernel = kernels();
    run(w.n, workers, [&](std::size_t first, std::size_t last) {
        kernel.fadas(w.data, mean.data, second.data, largest.data, d.data, hyper, first, last);
    });
}

}  // namespace

void bind_optimizers(py::module_& module) {
    module.def("sgd_", &sgd, py::arg("params"), py::arg("delta"), py::kw_only(), py::arg("lr"),
               py::arg("threads") = py::none(), "w = w + lr · d, in place.");
    module.def("momentum_", &momentum, py::arg("params"), py::arg("velocity"), py::arg("delta"), py::kw_only(),
               py::arg("lr"), py::arg("beta") = 0.9, py::arg("threads") = py::none(),
               "v = β · v + d; w = w + lr · v, in place.");
    module.def("adagrad_", &adagrad, py::arg("params"), py::arg("v"), py::arg("delta"), py::kw_only(), py::arg("lr"),
               py::arg("eps") = 1e-3, py::arg("threads") = py::none(),
               "v = v + d · d; w = w + (lr · d) / (√v + ε), in place.");
    module.def("adam_", &two_moments<&KernelTable::adam>, py::arg("params"), py::arg("m"), py::arg("v"),
               py::arg("delta"), py::kw_only(), py::arg("lr"), py::arg("beta1") = 0.9, py::arg("beta2") = 0.99,
               py::arg("eps") = 1e-3, py::arg("threads") = py::none(),
               "m = β1 · m + (1 − β1) · d; v = β2 · v + (1 − β2) · (d · d); w = w + (lr · m) / (√v + ε), in place.");
    module.def("yogi_", &two_moments<&KernelTable::yogi>, py::arg("params"), py::arg("m"), py::arg("v"),
               py::arg("delta"), py::kw_only(), py::arg("lr"), py::arg("beta1") = 0.9, py::arg("beta2") = 0.99,
               py::arg("eps") = 1e-3, py::arg("threads") = py::none(),
               "m as in adam_; v = v − ((1 − β2) · (d · d)) · sign(v − d · d); w = w + (lr · m) / (√v + ε), in place.");
    module.def("fadas_", &fadas, py::arg("params"), py::arg("m"), py::arg("v"), py::arg("vhat"), py::arg("delta"),
               py::kw_only(), py::arg("lr"), py::arg("beta1") = 0.9, py::arg("beta2") = 0.99, py::arg("eps") = 1e-3,
               py::arg("threads") = py::none(),
               "m, v as in adam_; v̂ = v if v > v̂ else v̂; w = w + (lr · m) / (√v̂ + ε), in place.");
}

}  // namespace fedmq
