// encode and decode.

#include <memory>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "dispatch.h"
#include "pool.h"

namespace fedmq {
namespace {

// Block by block: where the next one begins is known when this one is written.
py::bytes encode_topk(const Floats& floats) {
    std::vector<std::byte> payload;
    {
        const py::gil_scoped_release unlocked;
        const KernelTable& kernel = kernels();
        const std::unique_ptr<std::byte[]> block(new std::byte[kTopkBlockMost]);
        for (std::size_t first = 0; first < floats.n; first += kTopkBlock) {
            const std::size_t n = floats.n - first < kTopkBlock ? floats.n - first : kTopkBlock;
            const std::size_t size = kernel.encode_topk(floats.data + first, n, block.get());
            payload.insert(payload.end(), block.get(), block.get() + size);
        }
    }
    return py::bytes(reinterpret_cast<const char*>(payload.data()), payload.size());
}

py::bytes encode(py::handle x, py::handle encoding, py::handle key, py::handle nonce) {
    const Encoding name = encoding_argument(encoding);
    const Floats floats = floats_argument(x, "x", Access::read);
    std::array<std::uint8_t, 32> secret{};
    if (!key.is_none()) {
        secret = key_argument(key);
    } else if (name == Encoding::i8) {  // the others round to nearest and draw nothing
        secret = key_argument(py::module_::import("os").attr("urandom")(32));
    }
    const auto number = nonce.is_none() ? std::array<std::uint8_t, 12>{} : nonce_argument(nonce);

    if (name == Encoding::topk) return encode_topk(floats);
    const std::size_t size = payload_size(name, floats.n);
    const py::object payload =
        py::reinterpret_steal<py::object>(PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(size)));
    if (!payload) throw py::error_already_set();
    std::byte* data = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(payload.ptr()));
    {
        const py::gil_scoped_release unlocked;
        const Stream stream{secret.data(), number.data(), 0};
        const KernelTable& kernel = kernels();
        parallel_for(floats.n, kRangeStep, 0, [&](std::size_t first, std::size_t last) {
            kernel.encode(floats.data, name, data, stream, first, last);
        });
    }
    return py::reinterpret_borrow<py::bytes>(payload);
}

py::object decode(py::handle payload, py::handle encoding, py::handle n) {
    const Encoding name = encoding_argument(encoding);
    const auto count = static_cast<std::size_t>(count_argument(n, "n", 0, std::int64_t{1} << 60));
    const Payload update = payload_argument(payload, "payload", name, count);
    py::array_t<float> result(static_cast<py::ssize_t>(count));
    float* out = result.mutable_data();
    {
        const py::gil_scoped_release unlocked;
        const KernelTable& kernel = kernels();
        parallel_for(count, kRangeStep, 0, [&](std::size_t first, std::size_t last) {
            kernel.decode(update.view, out + first, first, last);
        });
    }
    return std::move(result);
}

}  // namespace

void bind_codecs(py::module_& module) {
    module.def("encode", &encode, py::arg("x"), py::arg("encoding"), py::kw_only(), py::arg("key") = py::none(),
               py::arg("nonce") = py::none(), "Return the payload of `x` in an encoding.");
    module.def("decode", &decode, py::arg("payload"), py::arg("encoding"), py::arg("n"),
               "Return the `n` values of a payload, as a new float32 array.");
}

}  // namespace fedmq
