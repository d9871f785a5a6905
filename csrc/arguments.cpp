#include "arguments.h"

#include <cmath>
#include <cstring>
#include <functional>

#include "sums.h"
#include "topk.h"

namespace fedmq {
namespace {

constexpr double kMaxWeight = 0x1p32;
constexpr int kMaxThreads = 1024;

struct EncodingFacts {
    const char* name;
    std::size_t width;
    const char* formats;  // of buffers that hold such elements, besides bytes
};

// In the order of enum Encoding.
constexpr EncodingFacts kEncodings[] = {{"f32", 4, "f"}, {"f16", 2, "eH"}, {"bf16", 2, "H"}, {"i8", 1, ""},
                                       {"topk", 0, ""}};

const EncodingFacts& facts(Encoding encoding) { return kEncodings[static_cast<std::size_t>(encoding)]; }

// As the number that Python's float() would make of it, for what Python calls a real number.
double real_argument(py::handle value, const std::string& name) {
    if (!PyFloat_Check(value.ptr()) && !PyLong_Check(value.ptr()) &&
        !py::isinstance(value, py::module_::import("numbers").attr("Real"))) {
        throw py::type_error(name + " must be a number, not " + type_name(value));
    }
    const double number = PyFloat_AsDouble(value.ptr());
    if (number == -1.0 && PyErr_Occurred() != nullptr) throw py::error_already_set();
    return number;
}

bool overlap(const Floats& one, const void* other, std::size_t size) {
    const std::less<const void*> before;  // also of pointers into different arrays
    return one.n != 0 && size != 0 && before(one.data, static_cast<const std::byte*>(other) + size) &&
           before(other, one.data + one.n);
}

template <std::size_t Size>
std::array<std::uint8_t, Size> secret_argument(py::handle value, const char* name) {
    const std::string expected = std::string(name) + " must be " + std::to_string(Size) + " bytes, not ";
    if (PyObject_CheckBuffer(value.ptr()) == 0) throw py::type_error(expected + type_name(value));
    const Memory memory(value, name);
    if (memory.size() != Size) throw py::value_error(expected + std::to_string(memory.size()));
    std::array<std::uint8_t, Size> secret;
    std::memcpy(secret.data(), memory.data(), Size);
    return secret;
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

}  // namespace

std::string type_name(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

std::string describe(py::handle value) { return py::repr(value).cast<std::string>(); }

std::string item(const char* name, std::size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

py::sequence sequence_argument(py::handle value, const char* name) {
    if (!py::isinstance<py::sequence>(value)) {
        throw py::type_error(std::string(name) + " must be a sequence, not " + type_name(value));
    }
    return py::reinterpret_borrow<py::sequence>(value);
}

Memory::Memory(py::handle object, const std::string& name) {
    if (PyObject_CheckBuffer(object.ptr()) == 0) {
        throw py::type_error(name + " must be a bytes-like object, not " + type_name(object));
    }
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_FORMAT | PyBUF_STRIDES) != 0) {
        view_ = Py_buffer{};
        throw py::error_already_set();
    }
    if (PyBuffer_IsContiguous(&view_, 'C') == 0) {
        PyBuffer_Release(&view_);
        throw py::value_error(name + " must be contiguous; copy it first");
    }
}

std::string Memory::format() const {
    if (view_.format == nullptr) return "B";
    const char* format = view_.format;
    if (std::strlen(format) == 2 && std::strchr("@=<", format[0]) != nullptr) ++format;
    return format;
}

Encoding encoding_argument(py::handle value) {
    if (!PyUnicode_Check(value.ptr())) throw py::type_error("encoding must be a str, not " + type_name(value));
    for (std::size_t i = 0; i < std::size(kEncodings); ++i) {
        if (PyUnicode_CompareWithASCIIString(value.ptr(), kEncodings[i].name) == 0) return static_cast<Encoding>(i);
    }
    throw py::value_error("encoding must be one of f32, f16, bf16, i8, topk, not " + describe(value));
}

std::size_t payload_size(Encoding encoding, std::size_t n) {
    if (encoding == Encoding::i8) return n + (n + kBlockI8 - 1) / kBlockI8 * kScaleBytes;
    return n * facts(encoding).width;
}

Memory bytes_argument(py::handle value, const std::string& name, Encoding encoding) {
    Memory memory(value, name);
    const std::string format = memory.format();
    const bool known = format.size() == 1 && (std::strchr("Bbc", format[0]) != nullptr ||
                                              std::strchr(facts(encoding).formats, format[0]) != nullptr);
    if (!known) {
        throw py::type_error(name + " must hold bytes or " + facts(encoding).name +
                             " values, not elements of format '" + format + "'");
    }
    return memory;
}

std::size_t element_count(std::size_t size, const std::string& name, Encoding encoding) {
    if (encoding != Encoding::i8) {
        const std::size_t width = facts(encoding).width;
        if (size % width == 0) return size / width;
        throw py::value_error(name + ": a payload of encoding " + facts(encoding).name + " is a multiple of " +
                              std::to_string(width) + " bytes, not " + std::to_string(size));
    }
    const std::size_t blocks = size / (kScaleBytes + kBlockI8), rest = size % (kScaleBytes + kBlockI8);
    if (rest == 0) return blocks * kBlockI8;
    if (rest > kScaleBytes) return blocks * kBlockI8 + rest - kScaleBytes;
    throw py::value_error(name + ": a payload of encoding i8 is made of blocks of 4 bytes and up to 1024 values; " +
                          std::to_string(size) + " bytes end inside a scale");
}

Payload payload_argument(py::handle value, const std::string& name, Encoding encoding, std::optional<std::size_t> n) {
    Memory memory = bytes_argument(value, name, encoding);
    const std::size_t size = memory.size();
    if (encoding == Encoding::topk) {
        TopkBlocks blocks = topk_blocks(memory.data(), size, name);
        check_values(blocks.n, n, name, encoding);
        const View view{memory.data(), encoding, blocks.n, blocks.starts.data()};
        return {std::move(memory), view, std::move(blocks.starts)};
    }
    if (n && size != payload_size(encoding, *n)) {
        throw py::value_error(name + " must be " + std::to_string(payload_size(encoding, *n)) + " bytes (" +
                              std::to_string(*n) + " values as " + facts(encoding).name + "), not " +
                              std::to_string(size));
    }
    const View view{memory.data(), encoding, n ? *n : element_count(size, name, encoding)};
    return {std::move(memory), view};
}

std::optional<std::size_t> values_argument(py::handle value) {
    if (value.is_none()) return std::nullopt;
    return static_cast<std::size_t>(count_argument(value, "n", 0, std::int64_t{1} << 62));
}

void check_values(std::size_t n, std::optional<std::size_t> expected, const std::string& name, Encoding encoding) {
    if (expected && n != *expected) {
        throw std::invalid_argument(name + " must be of " + std::to_string(*expected) + " values, as " +
                                    facts(encoding).name + ", not of " + std::to_string(n));
    }
}

std::vector<Payload> payloads_argument(py::handle value, py::handle encoding, std::optional<std::size_t> n) {
    const py::sequence objects = sequence_argument(value, "payloads");
    const std::vector<Encoding> encodings = encodings_argument(encoding, objects.size());
    if (encodings.empty()) throw py::value_error("payloads must hold at least one payload, not none");
    std::vector<Payload> payloads;
    payloads.reserve(encodings.size());
    for (std::size_t i = 0; i < encodings.size(); ++i) {
        payloads.push_back(payload_argument(py::object(objects[i]), item("payloads", i), encodings[i], n));
        n = payloads[0].view.n;
    }
    return payloads;
}

Floats floats_argument(py::handle value, const char* name, Access access, std::optional<std::size_t> n) {
    const std::string subject(name);
    if (!py::isinstance<py::array>(value)) {
        throw py::type_error(subject + " must be a numpy array of float32, not " + type_name(value));
    }
    if (!py::isinstance<py::array_t<float, 0>>(value)) {
        throw py::type_error(subject + " must be a numpy array of float32, not of " +
                             py::str(value.attr("dtype")).cast<std::string>());
    }
    py::array array = py::reinterpret_borrow<py::array>(value);
    if ((array.flags() & py::array::c_style) == 0) {
        throw py::value_error(subject + " must be C-contiguous; its strides are " + describe(array.attr("strides")));
    }
    const std::size_t size = static_cast<std::size_t>(array.size());
    if (n && size != *n) {
        throw py::value_error(subject + " must have " + std::to_string(*n) + " elements, not " + std::to_string(size));
    }
    if (access == Access::write && !array.writeable()) {
        throw py::value_error(subject + " must be writable; this array is read-only");
    }
    // Reading is all that is done to an array that was asked for with Access::read.
    f32u* data = static_cast<f32u*>(const_cast<void*>(array.data()));
    return {std::move(array), data, size};
}

Floats output_argument(py::handle out, std::size_t n) {
    if (!out.is_none()) return floats_argument(out, "out", Access::write, n);
    py::array_t<float> array(static_cast<py::ssize_t>(n));
    f32u* data = static_cast<f32u*>(array.mutable_data());
    return {std::move(array), data, n};
}

void disjoint_arguments(std::initializer_list<std::pair<const char*, const Floats*>> arrays) {
    for (auto later = arrays.begin(); later != arrays.end(); ++later) {
        for (auto earlier = arrays.begin(); earlier != later; ++earlier) {
            if (overlap(*later->second, earlier->second->data, earlier->second->n * sizeof(float))) {
                throw py::value_error(std::string(later->first) + " must not overlap " + earlier->first);
            }
        }
    }
}

void disjoint_output(const Floats& out, const std::vector<Payload>& payloads) {
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        if (overlap(out, payloads[i].memory.data(), payloads[i].memory.size())) {
            throw py::value_error("out must not overlap payloads[" + std::to_string(i) + "]");
        }
    }
}

std::int64_t count_argument(py::handle value, const char* name, std::int64_t low, std::int64_t high) {
    if (PyIndex_Check(value.ptr()) == 0) {
        throw py::type_error(std::string(name) + " must be an int, not " + type_name(value));
    }
    const py::object number = py::reinterpret_steal<py::object>(PyNumber_Index(value.ptr()));
    if (!number) throw py::error_already_set();
    int overflow = 0;
    const long long count = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
    if (overflow != 0 || count < low || count > high) {
        throw py::value_error(std::string(name) + " must be from " + std::to_string(low) + " to " +
                              std::to_string(high) + ", not " + describe(number));
    }
    return count;
}

int threads_argument(py::handle value) {
    return value.is_none() ? 0 : static_cast<int>(count_argument(value, "threads", 1, kMaxThreads));
}

double nonnegative_argument(py::handle value, const std::string& name) {
    const double number = real_argument(value, name);
    if (number >= 0.0 && number < HUGE_VAL) return number;
    throw py::value_error(name + " must be finite and 0 or more, not " + text(number));
}

double positive_argument(py::handle value, const char* name) {
    const double number = real_argument(value, name);
    if (number > 0.0 && number < HUGE_VAL) return number;
    throw py::value_error(std::string(name) + " must be finite and above 0, not " + text(number));
}

double fraction_argument(py::handle value, const char* name) {
    const double number = real_argument(value, name);
    if (number >= 0.0 && number < 1.0) return number;
    throw py::value_error(std::string(name) + " must be at least 0 and below 1, not " + text(number));
}

double weight_argument(py::handle value, const std::string& name) {
    const double number = real_argument(value, name);
    if (number >= 0.0 && number <= kMaxWeight) return number;
    throw py::value_error(name + " must be from 0 to 2^32, not " + text(number));
}

std::vector<double> numbers_argument(py::handle values, const char* name, std::size_t k,
                                     double (*check)(py::handle, const std::string&)) {
    const py::sequence objects = sequence_argument(values, name);
    if (objects.size() != k) {
        throw py::value_error(std::string(name) + " must have one number per payload (" + std::to_string(k) +
                              "), not " + std::to_string(objects.size()));
    }
    std::vector<double> numbers;
    numbers.reserve(k);
    for (std::size_t i = 0; i < k; ++i) numbers.push_back(check(py::object(objects[i]), item(name, i)));
    return numbers;
}

std::array<std::uint8_t, 32> key_argument(py::handle value) { return secret_argument<32>(value, "key"); }

std::array<std::uint8_t, 12> nonce_argument(py::handle value) { return secret_argument<12>(value, "nonce"); }

std::uint64_t offset_argument(py::handle value, std::size_t n) {
    const auto offset = static_cast<std::uint64_t>(count_argument(value, "offset", 0, kMaxPosition));
    if (n > kMaxPosition - offset) {
        throw py::value_error("offset + n must be at most 2^35, where the stream ends, not " +
                              std::to_string(offset) + " + " + std::to_string(n));
    }
    return offset;
}

}  // namespace fedmq
