// Checks the arguments of a binding, once, before anything is written; the twin of
// fedcore/kernels/reference_checks.py.
//
// Rules:
//  - A wrong kind of thing is a TypeError, a wrong size or value a ValueError; the message names the argument, what it
//    was and what it may be. Both backends raise the same type for the same mistake.
//  - Everything here needs the GIL, the destructors of Memory and Floats too: declare them before
//    the py::gil_scoped_release of the function that owns them.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "buffer.h"

namespace fedmq {

namespace py = pybind11;

// The bytes of a Python object, held until destroyed.
class Memory {
public:
    Memory(py::handle object, const std::string& name);
    Memory(Memory&& other) noexcept : view_(std::exchange(other.view_, Py_buffer{})) {}
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    Memory& operator=(Memory&&) = delete;
    ~Memory() {
        if (view_.obj != nullptr) PyBuffer_Release(&view_);
    }

    const std::byte* data() const { return static_cast<const std::byte*>(view_.buf); }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }
    std::string format() const;  // of an element, in the struct module's terms and without a byte-order prefix

private:
    Py_buffer view_{};
};

struct Payload {
    Memory memory;
    View view;
    std::vector<std::uint64_t> starts = {};  // what view.starts points to
};

// A contiguous float32 array.
struct Floats {
    py::array owner;
    f32u* data;
    std::size_t n;
};

enum class Access { read, write };

Encoding encoding_argument(py::handle value);
std::size_t payload_size(Encoding encoding, std::size_t n);  // of any encoding but topk

// Bytes, or elements of the encoding's own type; any number of bytes.
Memory bytes_argument(py::handle value, const std::string& name, Encoding encoding);

// How many values so many bytes hold, in any encoding but topk.
std::size_t element_count(std::size_t size, const std::string& name, Encoding encoding);

// A payload of exactly n values, or of any whole number of them.
Payload payload_argument(py::handle value, const std::string& name, Encoding encoding,
                         std::optional<std::size_t> n = std::nullopt);

// None, or a number of values.
std::optional<std::size_t> values_argument(py::handle value);

// Throws unless there are as many values as there should be.
void check_values(std::size_t n, std::optional<std::size_t> expected, const std::string& name, Encoding encoding);

// One or more payloads of n values, or of any one number of them; `encoding` is one for all of them, or one for each.
std::vector<Payload> payloads_argument(py::handle payloads, py::handle encoding,
                                       std::optional<std::size_t> n = std::nullopt);

py::sequence sequence_argument(py::handle value, const char* name);

Floats floats_argument(py::handle value, const char* name, Access access, std::optional<std::size_t> n = std::nullopt);

// The caller's array for n results, or a new one where `out` is None.
Floats output_argument(py::handle out, std::size_t n);

// What is written must not share memory with anything else: what came out would depend on tiles and threads.
void disjoint_arguments(std::initializer_list<std::pair<const char*, const Floats*>> arrays);
void disjoint_output(const Floats& out, const std::vector<Payload>& payloads);

std::int64_t count_argument(py::handle value, const char* name, std::int64_t low, std::int64_t high);
int threads_argument(py::handle value);  // 0 for None: default_threads()

double nonnegative_argument(py::handle value, const std::string& name);
double positive_argument(py::handle value, const char* name);
double fraction_argument(py::handle value, const char* name);
double weight_argument(py::handle value, const std::string& name);

// One number for each of k payloads; `check` looks at one of them.
std::vector<double> numbers_argument(py::handle values, const char* name, std::size_t k,
                                     double (*check)(py::handle value, const std::string& name));

std::array<std::uint8_t, 32> key_argument(py::handle value);
std::array<std::uint8_t, 12> nonce_argument(py::handle value);

// Where a keyed stream of n positions from there on begins.
std::uint64_t offset_argument(py::handle value, std::size_t n);

std::string type_name(py::handle value);
std::string describe(py::handle value);  // its repr
std::string item(const char* name, std::size_t i);  // name[i]

}  // namespace fedmq
