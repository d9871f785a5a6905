// Accumulator and Norm: the bindings that have a state.
//
// Rules:
//  - A state has a mutex, taken only with the GIL released: two threads may use one object, and nobody waits for the
//    mutex while holding the GIL.
//  - Updates are folded by eights, because a fold of one moves the totals as often: 4 bytes of update, 16 of totals.
//    Until eight have come, or so many bytes that keeping them costs too much memory, an update is kept by reference,
//    but only where nothing can change or close it: bytes, and memoryviews of bytes. Others are folded at once.
//    Integers commute, so the difference cannot be seen.
//  - `add_all` has all that there is and folds at once, whoever owns the memory: it needs it only until it returns.
//  - All checks are made when an update is added, so an error belongs to the call that caused it.

#include <cmath>
#include <cstring>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "dispatch.h"
#include "sums.h"
#include "topk.h"

namespace fedmq {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 62;  // elements, and positions
constexpr std::size_t kFoldAtOnce = 8;
constexpr std::size_t kKeptBytes = std::size_t{256} << 20;
constexpr std::size_t kMinKept = 4;  // fewer than these at once are not worth their memory

// The immutable bytes that a payload's memory belongs to; null if it is anything else.
py::object immutable_owner(py::handle payload) {
    PyObject* object = payload.ptr();
    if (PyMemoryView_Check(object)) object = PyMemoryView_GET_BASE(object);
    if (object == nullptr || !PyBytes_CheckExact(object)) return py::object();
    return py::reinterpret_borrow<py::object>(object);
}

class Accumulator {
public:
    Accumulator(py::handle n, py::handle frac_bits, py::handle offset, py::handle threads)
        : sum_(checked(n, frac_bits, offset, threads)) {}

    py::object add(py::handle payload, py::handle encoding, py::handle weight, py::handle norm, py::handle max_norm,
                   bool truncate) {
        const Payload update = payload_argument(payload, "payload", encoding_argument(encoding), sum_.n());
        Addition how;
        how.weight = weight_argument(weight, "weight");
        if (!norm.is_none()) how.norm = nonnegative_argument(norm, "norm");
        if (!max_norm.is_none()) how.max_norm = positive_argument(max_norm, "max_norm");
        how.truncate = truncate;
        py::object owner;
        const std::size_t size = update.memory.size();
        // One of topk alone moves no more of the totals than one of many.
        const bool waits = update.view.encoding != Encoding::topk && size <= kKeptBytes / kMinKept;
        if (waits) owner = immutable_owner(payload);

        std::optional<double> computed;
        std::vector<py::object> released;
        {
            const py::gil_scoped_release unlocked;
            const std::lock_guard<std::mutex> lock(mutex_);
            waiting_.reserve(kFoldAtOnce);
            owners_.reserve(kFoldAtOnce);
            const Row row = sum_.admit(update.view, how, computed);
            if (owner) {
                waiting_.push_back(row);
                owners_.push_back(std::move(owner));
                kept_bytes_ += size;
                if (waiting_.size() == kFoldAtOnce || kept_bytes_ > kKeptBytes - size) released = fold();
            } else {
                sum_.fold(&row, 1);
            }
        }
        if (!computed) return py::none();
        return py::float_(*computed);
    }

    void add_all(py::handle payloads, py::handle weights, py::handle norms, py::handle encoding, py::handle max_norm,
                 bool truncate) {
        const std::vector<Payload> updates = payloads_argument(payloads, encoding, sum_.n());
        const std::vector<double> factors = numbers_argument(weights, "weights", updates.size(), weight_argument);
        const std::vector<double> lengths = numbers_argument(norms, "norms", updates.size(), nonnegative_argument);
        Addition how;
        if (!max_norm.is_none()) how.max_norm = positive_argument(max_norm, "max_norm");
        how.truncate = truncate;
        const py::gil_scoped_release unlocked;
        std::vector<View> views;
        std::vector<Addition> additions(updates.size(), how);
        for (std::size_t i = 0; i < updates.size(); ++i) {
            views.push_back(updates[i].view);
            additions[i].weight = factors[i];
            additions[i].norm = lengths[i];
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        sum_.add_all(views, additions);
    }

    void add_noise(py::handle sigma, py::handle key, py::handle nonce) {
        noise(nonnegative_argument(sigma, "sigma"), key, nonce);
    }

    void subtract_noise(py::handle sigma, py::handle key, py::handle nonce) {
        noise(-nonnegative_argument(sigma, "sigma"), key, nonce);
    }

    void noise(double deviation, py::handle key, py::handle nonce) {
        const auto secret = key_argument(key);
        const auto number = nonce_argument(nonce);
        const py::gil_scoped_release unlocked;
        const std::lock_guard<std::mutex> lock(mutex_);
        sum_.add_noise(deviation, secret.data(), number.data());
    }

    py::object mean(py::handle denominator, py::handle out) {
        const double divisor = sum_.divisor(positive_argument(denominator, "denominator"));
        Floats result = output_argument(out, sum_.n());
        std::vector<py::object> released;
        {
            const py::gil_scoped_release unlocked;
            const std::lock_guard<std::mutex> lock(mutex_);
            released = fold();
            sum_.mean(divisor, result.data);
        }
        return std::move(result.owner);
    }

    void merge(py::handle object) {
        if (!py::isinstance<Accumulator>(object)) {
            throw py::type_error("other must be an Accumulator of this backend, not " + type_name(object));
        }
        Accumulator& other = object.cast<Accumulator&>();
        std::vector<py::object> released, also_released;
        const py::gil_scoped_release unlocked;
        if (this == &other) {
            const std::lock_guard<std::mutex> lock(mutex_);
            released = fold();
            sum_.merge(sum_);
        } else {
            const std::scoped_lock lock(mutex_, other.mutex_);
            released = fold();
            also_released = other.fold();
            sum_.merge(other.sum_);
        }
    }

    void reset(py::handle offset) {
        const std::uint64_t start = checked_offset(offset);
        std::vector<py::object> released;
        const py::gil_scoped_release unlocked;
        const std::lock_guard<std::mutex> lock(mutex_);
        waiting_.clear();
        kept_bytes_ = 0;
        released.swap(owners_);
        sum_.reset(start);
    }

    py::array_t<std::int64_t> totals() {
        py::array_t<std::int64_t> result(static_cast<py::ssize_t>(sum_.n()));
        std::int64_t* out = result.mutable_data();
        std::vector<py::object> released;
        {
            const py::gil_scoped_release unlocked;
            const std::lock_guard<std::mutex> lock(mutex_);
            released = fold();
            sum_.copy_totals(out);
        }
        return result;
    }

private:
    static ExactSum checked(py::handle n, py::handle frac_bits, py::handle offset, py::handle threads) {
        const auto size = static_cast<std::size_t>(count_argument(n, "n", 0, kMost));
        const auto bits = static_cast<int>(count_argument(frac_bits, "frac_bits", kMinFracBits, kMaxFracBits));
        return ExactSum(size, bits, checked_offset(offset), threads_argument(threads));
    }

    static std::uint64_t checked_offset(py::handle offset) {
        constexpr std::int64_t step = 1024;
        const auto start = static_cast<std::uint64_t>(count_argument(offset, "offset", 0, kMost));
        if (start % step != 0) {
            throw py::value_error("offset must be a multiple of 1024, not " + std::to_string(start));
        }
        return start;
    }

    // Adds what waits. The caller destroys the owners when it has the GIL again.
    std::vector<py::object> fold() {
        sum_.fold(waiting_.data(), waiting_.size());
        waiting_.clear();
        kept_bytes_ = 0;
        return std::exchange(owners_, {});
    }

    std::mutex mutex_;
    ExactSum sum_;
    std::vector<Row> waiting_;
    std::vector<py::object> owners_;  // of the memory of `waiting_`
    std::size_t kept_bytes_ = 0;
};

// The norm of a payload that arrives in pieces: a block of the sum of squares at a time.
class Norm {
public:
    Norm(py::handle encoding, py::handle n) : encoding_(encoding_argument(encoding)), expected_(values_argument(n)) {}

    void update(py::handle data) {
        const Memory piece = bytes_argument(data, "data", encoding_);
        const py::gil_scoped_release unlocked;
        const std::lock_guard<std::mutex> lock(mutex_);
        const std::byte* at = piece.data();
        const std::byte* const end = at + piece.size();
        for (;;) {
            // Blocks are read where they lie; one that a piece ends in is put together in `pending_`.
            const bool waits = !pending_.empty();
            const std::byte* const from = waits ? pending_.data() : at;
            const std::size_t here = waits ? pending_.size() : static_cast<std::size_t>(end - at);
            const std::size_t whole = block_bytes(from, here);
            if (here >= whole) {
                take(from, whole);
                if (waits) pending_.clear();
                else at += whole;
                continue;
            }
            const std::size_t missing = waits ? whole - here : whole;
            const std::size_t left = static_cast<std::size_t>(end - at);
            const std::size_t taken = left < missing ? left : missing;
            pending_.insert(pending_.end(), at, at + taken);
            at += taken;
            if (pending_.size() < whole) return;
        }
    }

    double value() {
        const py::gil_scoped_release unlocked;
        const std::lock_guard<std::mutex> lock(mutex_);
        double total = total_;
        std::size_t n = n_;
        if (!pending_.empty() && encoding_ == Encoding::topk) {
            blocks_of(pending_.data(), pending_.size());  // throws: it is not whole
        } else if (!pending_.empty()) {
            const std::size_t rest = element_count(pending_.size(), kSoFar, encoding_);
            total += block_sum(View{pending_.data(), encoding_, rest});
            n += rest;
        }
        check_values(n, expected_, kSoFar, encoding_);
        return std::sqrt(total);
    }

private:
    static constexpr const char* kSoFar = "the data so far";

    // The size of the block that begins at `data`, of which `size` bytes are here; for topk, as far as can be told.
    std::size_t block_bytes(const std::byte* data, std::size_t size) const {
        return encoding_ == Encoding::topk ? topk_block_size(data, size) : payload_size(encoding_, kNormBlock);
    }

    void take(const std::byte* data, std::size_t size) {
        View block{data, encoding_, kNormBlock};
        TopkBlocks found;
        if (encoding_ == Encoding::topk) {
            found = blocks_of(data, size);
            block.n = found.n;
            block.starts = found.starts.data();
        }
        total_ += block_sum(block);
        n_ += block.n;
        ++blocks_;
    }

    // The blocks that follow those so far.
    TopkBlocks blocks_of(const std::byte* data, std::size_t size) const {
        if (n_ % kTopkBlock != 0) {
            throw std::invalid_argument(std::string(kSoFar) + ": block " + std::to_string(blocks_ - 1) +
                                        " of a topk payload is of " + std::to_string(n_ % kTopkBlock) +
                                        " values, and not the last one");
        }
        return topk_blocks(data, size, kSoFar, blocks_);
    }

    double block_sum(const View& block) const {
        double sum = 0.0;
        kernels().square_blocks(block, &sum, 0, block.n);
        return sum;
    }

    const Encoding encoding_;
    const std::optional<std::size_t> expected_;
    std::mutex mutex_;
    std::vector<std::byte> pending_;  // less than a block
    double total_ = 0.0;
    std::size_t n_ = 0, blocks_ = 0;
};

}  // namespace

void bind_accumulator(py::module_& module) {
    py::class_<Accumulator>(module, "Accumulator", "The exact, order-independent weighted sum of encoded updates.")
        .def(py::init<py::handle, py::handle, py::handle, py::handle>(), py::arg("n"), py::kw_only(),
             py::arg("frac_bits"), py::arg("offset") = 0, py::arg("threads") = py::none())
        .def("add", &Accumulator::add, py::arg("payload"), py::kw_only(), py::arg("encoding") = "f32",
             py::arg("weight") = 1.0, py::arg("norm") = py::none(), py::arg("max_norm") = py::none(),
             py::arg("truncate") = false, "Add weight · update.")
        .def("add_all", &Accumulator::add_all, py::arg("payloads"), py::arg("weights"), py::arg("norms"), py::kw_only(),
             py::arg("encoding") = "f32", py::arg("max_norm") = py::none(), py::arg("truncate") = false,
             "Add Σ weight_k · update_k, or nothing.")
        .def("add_noise", &Accumulator::add_noise, py::arg("sigma"), py::kw_only(), py::arg("key"), py::arg("nonce"),
             "Add rounded Gaussian noise to the sum.")
        .def("subtract_noise", &Accumulator::subtract_noise, py::arg("sigma"), py::kw_only(), py::arg("key"),
             py::arg("nonce"), "Take the same noise away again, to the bit.")
        .def("mean", &Accumulator::mean, py::arg("denominator"), py::arg("out") = py::none(),
             "Return the sum divided by `denominator`, as float32.")
        .def("merge", &Accumulator::merge, py::arg("other"),
             "Add what another accumulator of the same n, frac_bits and offset holds.")
        .def("reset", &Accumulator::reset, py::arg("offset") = 0, "Make the sum zero again, at a position.")
        .def("totals", &Accumulator::totals, "Return a copy of the sum, int64[n], in units of 2^-frac_bits.");

    py::class_<Norm>(module, "Norm", "The norm of a payload that arrives in pieces.")
        .def(py::init<py::handle, py::handle>(), py::arg("encoding") = "f32", py::arg("n") = py::none())
        .def("update", &Norm::update, py::arg("data"), "Take the next bytes, any number of them.")
        .def("value", &Norm::value, "Return the norm of what has come so far, which must end with a whole value.");
}

}  // namespace fedmq
