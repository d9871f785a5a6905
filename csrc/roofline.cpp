// The limits of the machine, for benchmarks: how fast four streams can be read, and how fast memory can be copied.
//
// Private to the module (no counterpart in the reference): a kernel's bar is a fraction of what these reach in the
// same process, with the same pool and at the same instruction-set level, because absolute GB/s drift on shared
// machines.

#include <atomic>
#include <cstring>
#include <string>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "dispatch.h"
#include "pool.h"

namespace fedmq {
namespace {

std::uint32_t read_all(const py::sequence& payloads, py::handle threads) {
    std::vector<Payload> held;
    held.reserve(payloads.size());
    std::optional<std::size_t> n;
    for (const py::handle payload : payloads) {
        held.push_back(payload_argument(payload, "payloads[" + std::to_string(held.size()) + "]", Encoding::f32, n));
        n = held[0].view.n;
    }
    const int workers = threads_argument(threads);
    std::atomic<std::uint32_t> checksum{0};
    const py::gil_scoped_release unlocked;
    std::vector<View> views;
    for (const Payload& payload : held) views.push_back(payload.view);
    const KernelTable& kernel = kernels();
    parallel_for(n.value_or(0), kRangeStep, workers, [&](std::size_t first, std::size_t last) {
        std::uint32_t here = 0;
        for (std::size_t r = 0; r < views.size(); r += 4) {
            const std::size_t left = views.size() - r;
            here += kernel.read4(views.data() + r, left < 4 ? left : 4, first, last);
        }
        checksum.fetch_add(here, std::memory_order_relaxed);
    });
    return checksum.load(std::memory_order_relaxed);
}

void copy(py::handle to, py::handle from, py::handle threads) {
    const Floats target = floats_argument(to, "dst", Access::write);
    const Floats source = floats_argument(from, "src", Access::read, target.n);
    const int workers = threads_argument(threads);
    const py::gil_scoped_release unlocked;
    parallel_for(target.n, kRangeStep, workers, [&](std::size_t first, std::size_t last) {
        std::memcpy(target.data + first, source.data + first, (last - first) * sizeof(float));
    });
}

}  // namespace

void bind_roofline(py::module_& module) {
    module.def("_read4", &read_all, py::arg("payloads"), py::kw_only(), py::arg("threads") = py::none(),
               "Read all float32 payloads, four at a time; return the sum of their words modulo 2^32.");
    module.def("_copy", &copy, py::arg("dst"), py::arg("src"), py::kw_only(), py::arg("threads") = py::none(),
               "Copy one float32 array to another.");
}

}  // namespace fedmq
