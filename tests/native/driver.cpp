// Calls every kernel of a level's table over fixed inputs and prints, as JSON, a digest of what each call wrote.
// FEDMQ_ISA chooses the level.
//
// Rules:
//  - Needs no Python, so it runs where that cannot: under callgrind, or cross-compiled under an emulator.
//  - reference.py makes the same inputs, by the same integer hash, and the same digests with the numpy kernels. A case
//    is named "<kernel> <what differs>"; each member of KernelTable has one or more, and a test holds both files to it.
//  - A kernel is called for the ranges [0, 16 Ki) and [16 Ki, n), as by a pool. Float data lies at odd addresses.
//  - Only the kernel runs inside measured(): test_instructions.py counts there.

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#if defined(__GLIBC__)
#include <gnu/libc-version.h>
#endif

#include "dispatch.h"

namespace {

using namespace fedmq;

constexpr std::size_t kN = kRangeStep + 5 * kBlockI8 + 77;  // two ranges; the last tile, block and vector are short
constexpr std::size_t kRows = 6;                            // a group of four and a rest
constexpr double kUnit = 0x1p15;                            // of exact sums: most products have to be rounded

#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler = "gcc " __VERSION__;
#endif

using Integers = std::shared_ptr<std::array<std::int64_t, kN>>;
using Digest = std::uint64_t;

struct Case {
    std::string name;
    std::function<void(std::size_t first, std::size_t last)> call;
    std::function<Digest()> digest;
};

struct Named {
    const char* name;
    Encoding encoding;
    std::size_t size;  // of a payload of kN values; topk: 0, it depends
};

constexpr Named kEncodings[] = {
    {"f32", Encoding::f32, 4 * kN},
    {"f16", Encoding::f16, 2 * kN},
    {"bf16", Encoding::bf16, 2 * kN},
    {"i8", Encoding::i8, kN + (kN + kBlockI8 - 1) / kBlockI8 * kScaleBytes},
    {"topk", Encoding::topk, 0},
};

// splitmix64's finalizer.
std::uint64_t mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

std::uint64_t hash(std::uint64_t seed, std::uint64_t j) { return mix(mix(seed + 1) + j * 0x9e3779b97f4a7c15u); }

// The sum of a hash of each 64-bit word, zero-padded, and its place.
Digest digest_of(const void* data, std::size_t size) {
    Digest sum = 0;
    for (std::size_t at = 0; at < size; at += 8) {
        std::uint64_t word = 0;
        std::memcpy(&word, static_cast<const char*>(data) + at, size - at < 8 ? size - at : 8);
        sum += hash(word, at / 8);
    }
    return sum;
}

// Memory at an odd address that ends where its allocation ends, so that a sanitizer sees a step beyond it. The closures
// of a case share it.
class Bytes {
public:
    explicit Bytes(std::size_t size) : memory_(new std::byte[size + 1](), std::default_delete<std::byte[]>()) {}

    std::byte* data() const { return memory_.get() + 1; }
    f32u* floats() const { return reinterpret_cast<f32u*>(data()); }
    View view(const Named& as) const {
        return View{data(), as.encoding, kN, starts_ ? starts_->data() : nullptr};
    }

    // Where the blocks of a topk payload begin.
    void set_starts(std::vector<std::uint64_t> starts) {
        starts_ = std::make_shared<std::vector<std::uint64_t>>(std::move(starts));
    }

    // Of kN floats. Which NaN a NaN is, no kernel promises.
    Digest digest() const {
        std::vector<float> x(floats(), floats() + kN);
        for (float& value : x) value = std::isnan(value) ? std::nanf("") : value;
        return digest_of(x.data(), 4 * kN);
    }

private:
    std::shared_ptr<std::byte> memory_;
    std::shared_ptr<std::vector<std::uint64_t>> starts_;
};

Bytes zeros() { return Bytes(4 * kN); }

// 24-bit integers times 2^-20 … 2^-51: within ±8, and sums of them are rounded in float64 too.
Bytes values(std::uint64_t seed) {
    const Bytes x(4 * kN);
    for (std::size_t j = 0; j < kN; ++j) {
        const std::uint64_t h = hash(seed, j);
        const double integer = static_cast<double>(h >> 40) - 0x1p23;
        x.floats()[j] = static_cast<float>(std::ldexp(integer, -20 - static_cast<int>(h % 32)));
    }
    return x;
}

// Second moments: not below zero.
Bytes squares(std::uint64_t seed) {
    const Bytes x = values(seed);
    for (std::size_t j = 0; j < kN; ++j) x.floats()[j] = std::fabs(x.floats()[j]);
    return x;
}

// Any bits: as floats, NaNs, infinities and subnormals among them.
Bytes anything(std::uint64_t seed, std::size_t size) {
    const Bytes bytes(size);
    for (std::size_t j = 0; j < size; ++j) bytes.data()[j] = static_cast<std::byte>(hash(seed, j) >> 56);
    return bytes;
}

Stream stream(std::uint64_t offset) {
    static const Bytes secret = anything(100, 44);
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(secret.data());
    return Stream{bytes, bytes + 32, offset};
}

// One of 64 values, as topk is for: some gaps take two bytes.
Bytes few(std::uint64_t seed) {
    const Bytes x = values(seed);
    for (std::size_t j = 0; j < kN; ++j) {
        if (hash(seed + 50, j) >> 58 != 0) x.floats()[j] = 0.0f;
    }
    return x;
}

Bytes encoded_topk(const Bytes& x) {
    std::vector<std::byte> payload;
    std::vector<std::uint64_t> starts{0};
    const Bytes block(kTopkBlockMost);
    for (std::size_t first = 0; first < kN; first += kTopkBlock) {
        const std::size_t n = kN - first < kTopkBlock ? kN - first : kTopkBlock;
        const std::size_t size = kernels().encode_topk(x.floats() + first, n, block.data());
        payload.insert(payload.end(), block.data(), block.data() + size);
        starts.push_back(payload.size());
    }
    Bytes made(payload.size());
    std::memcpy(made.data(), payload.data(), payload.size());
    made.set_starts(std::move(starts));
    return made;
}

Bytes encoded(std::uint64_t seed, const Named& as) {
    if (as.encoding == Encoding::topk) return encoded_topk(few(seed));
    const Bytes payload(as.size);
    kernels().encode(values(seed).floats(), as.encoding, payload.data(), stream(0), 0, kN);
    return payload;
}

double weight(std::size_t row) { return 1.0 + 0.25 * static_cast<double>(row); }
constexpr double kTotalWeight = kRows + 0.25 * kRows * (kRows - 1) / 2;

// kRows updates, row r with the scale weight(r) · unit.
struct Rows {
    std::vector<Bytes> payloads;
    std::vector<Row> rows;

    Rows(const Named& as, double unit, bool truncate = false) {
        for (std::size_t r = 0; r < kRows; ++r) {
            payloads.push_back(encoded(r, as));
            rows.push_back(Row{payloads[r].view(as), weight(r) * unit, truncate});
        }
    }
};

Integers integers() { return std::make_shared<Integers::element_type>(); }
Digest digest_of(const Integers& totals) { return digest_of(totals->data(), sizeof *totals); }

Case fold_exact(const Named& as, bool truncate) {
    const Integers totals = integers();
    return {std::string("fold_exact ") + as.name + (truncate ? " truncated" : ""),
            [totals, in = Rows(as, kUnit, truncate)](std::size_t first, std::size_t last) {
                kernels().fold_exact(totals->data(), in.rows.data(), kRows, first, last);
            },
            [totals] { return digest_of(totals); }};
}

constexpr int kRangeBits = 21;  // no scaled value is beyond 8 · weight · unit

Case fold_exact_checked(const Named& as, bool truncate) {
    const Integers totals = integers();
    const auto inside = std::make_shared<bool>(true);
    return {std::string("fold_exact_checked ") + as.name + (truncate ? " truncated" : ""),
            [=, in = Rows(as, kUnit, truncate)](std::size_t first, std::size_t last) {
                *inside &= kernels().fold_exact_checked(totals->data(), in.rows.data(), kRows, kRangeBits, first, last);
            },
            [=] { return *inside ? digest_of(totals) : 0; }};
}

// Takes out what it finds folded onto other sums, which are left.
Case unfold_exact(const Named& as, bool truncate) {
    const Integers totals = integers();
    const Rows in(as, kUnit, truncate);
    kernels().fold_exact(totals->data(), Rows(kEncodings[0], kUnit).rows.data(), kRows, 0, kN);
    kernels().fold_exact_checked(totals->data(), in.rows.data(), kRows, kRangeBits, 0, kN);
    return {std::string("unfold_exact ") + as.name + (truncate ? " truncated" : ""),
            [=](std::size_t first, std::size_t last) {
                kernels().unfold_exact(totals->data(), in.rows.data(), kRows, kRangeBits, first, last);
            },
            [totals] { return digest_of(totals); }};
}

Case divide_exact() {
    const Integers totals = integers();
    kernels().fold_exact(totals->data(), Rows(kEncodings[0], kUnit).rows.data(), kRows, 0, kN);
    const Bytes out = zeros();
    return {"divide_exact",
            [totals, out](std::size_t first, std::size_t last) {
                kernels().divide_exact(totals->data(), kTotalWeight * kUnit, out.floats(), first, last);
            },
            [out] { return out.digest(); }};
}

using Mean = void (*)(const Row*, std::size_t, double, f32u*, std::size_t, std::size_t);

Case mean(const char* name, Mean kernel, const Named& as, double unit, double divisor) {
    const Bytes out = zeros();
    return {std::string(name) + " " + as.name,
            [=, in = Rows(as, unit)](std::size_t first, std::size_t last) {
                kernel(in.rows.data(), kRows, divisor, out.floats(), first, last);
            },
            [out] { return out.digest(); }};
}

// Of values in range, which these are.
void mean_exact_checked(const Row* rows, std::size_t count, double divisor, f32u* out, std::size_t first,
                        std::size_t last) {
    kernels().mean_exact_checked(rows, count, divisor, out, first, last);
}

Case largest(const Named& as) {
    const Bytes payload = encoded(0, as);
    const auto found = std::make_shared<float>(0.0f);
    return {std::string("largest ") + as.name,
            [=](std::size_t first, std::size_t last) {
                *found = std::fmax(*found, kernels().largest(payload.view(as), first, last));
            },
            [found] { return digest_of(found.get(), sizeof *found); }};
}

Case square_blocks(const Named& as) {
    const Bytes payload = encoded(0, as);
    const auto blocks = std::make_shared<std::array<double, 2>>();
    return {std::string("square_blocks ") + as.name,
            [=](std::size_t first, std::size_t last) {
                kernels().square_blocks(payload.view(as), blocks->data(), first, last);
            },
            [blocks] { return digest_of(blocks->data(), sizeof *blocks); }};
}

Case read4() {
    std::vector<Bytes> payloads;
    std::vector<View> views;
    for (std::uint64_t r = 0; r < 4; ++r) {
        payloads.push_back(values(r));
        views.push_back(payloads.back().view(kEncodings[0]));
    }
    const auto sum = std::make_shared<std::uint32_t>(0);
    return {"read4",
            [=](std::size_t first, std::size_t last) { *sum += kernels().read4(views.data(), 4, first, last); },
            [sum, payloads] { return digest_of(sum.get(), sizeof *sum); }};
}

Case multiply() {
    const Bytes x = values(0);
    double blocks[2];
    kernels().square_blocks(x.view(kEncodings[0]), blocks, 0, kN);
    const double factor = 5.0 / std::sqrt(blocks[0] + blocks[1]);
    return {"multiply",
            [=](std::size_t first, std::size_t last) { kernels().multiply(x.floats(), factor, first, last); },
            [x] { return x.digest(); }};
}

Case add_gaussian() {
    const Bytes x = values(0);
    return {"add_gaussian",
            [x](std::size_t first, std::size_t last) {
                kernels().add_gaussian(x.floats(), 1.5, stream(77), first, last);
            },
            [x] { return x.digest(); }};
}

Case add_gaussian_exact() {
    const Integers totals = integers();
    return {"add_gaussian_exact",
            [totals](std::size_t first, std::size_t last) {
                kernels().add_gaussian_exact(totals->data(), 1.5 * kUnit, stream(3 * 1024), first, last);
            },
            [totals] { return digest_of(totals); }};
}

Case encode(const Named& as, const char* what, const Bytes& x) {
    const Bytes payload(as.size);
    return {std::string("encode ") + as.name + " " + what,
            [=](std::size_t first, std::size_t last) {
                kernels().encode(x.floats(), as.encoding, payload.data(), stream(0), first, last);
            },
            [=] { return digest_of(payload.data(), as.size); }};
}

Case encode_topk(const char* what, const Bytes& x) {
    const auto blocks = std::make_shared<std::vector<Bytes>>();
    const auto sizes = std::make_shared<std::vector<std::size_t>>();
    return {std::string("encode_topk ") + what,
            [=](std::size_t first, std::size_t last) {
                blocks->emplace_back(kTopkBlockMost);
                sizes->push_back(kernels().encode_topk(x.floats() + first, last - first, blocks->back().data()));
            },
            [=] {
                std::vector<std::byte> payload;
                for (std::size_t b = 0; b < blocks->size(); ++b) {
                    const std::byte* const data = (*blocks)[b].data();
                    payload.insert(payload.end(), data, data + (*sizes)[b]);
                }
                return digest_of(payload.data(), payload.size());
            }};
}

Case decode(const Named& as) {
    const Bytes payload = as.encoding == Encoding::topk ? encoded(0, as) : anything(0, as.size);
    const auto out = std::make_shared<std::vector<float>>(kN);
    return {std::string("decode ") + as.name,
            [=](std::size_t first, std::size_t last) {
                kernels().decode(payload.view(as), out->data() + first, first, last);
            },
            [out] {
                const Bytes copy = zeros();
                std::memcpy(copy.data(), out->data(), 4 * kN);
                return copy.digest();
            }};
}

// The same updates as the views of a rank or distance kernel, with scratch aligned to a cache line.
struct Ranked {
    Rows rows;
    std::vector<View> views;
    std::shared_ptr<void> scratch;

    Ranked(const Named& as, std::size_t scratch_bytes)
        : rows(as, 1.0), scratch(::operator new(scratch_bytes, std::align_val_t{64}), [](void* memory) {
              ::operator delete(memory, std::align_val_t{64});
          }) {
        for (const Row& row : rows.rows) views.push_back(row.payload);
    }
};

Case rank(const Named& as, bool trimmed) {
    const Bytes out = zeros();
    return {std::string(trimmed ? "trimmed_mean " : "median ") + as.name,
            [=, in = Ranked(as, kRows * kRowStep * sizeof(float))](std::size_t first, std::size_t last) {
                const f32u* x[kRows];
                float* tile = static_cast<float*>(in.scratch.get());
                if (trimmed) {
                    kernels().trimmed_mean(in.views.data(), kRows, 1, x, tile, out.floats(), first, last);
                } else {
                    kernels().median(in.views.data(), kRows, x, tile, out.floats(), first, last);
                }
            },
            [out] { return out.digest(); }};
}

Case square_distances(const Named& as) {
    const auto totals = std::make_shared<std::array<double, kRows * kRows>>();
    return {std::string("square_distances ") + as.name,
            [totals, in = Ranked(as, kDistanceScratch * sizeof(double))](std::size_t first, std::size_t last) {
                std::vector<double> sums(kDistanceRows * kDistanceRows);
                kernels().square_distances(in.views.data(), kRows, in.views.data(), 0,
                                           static_cast<double*>(in.scratch.get()), sums.data(), first, last);
                for (std::size_t i = 0; i < kRows; ++i) {
                    for (std::size_t j = i + 1; j < kRows; ++j) {
                        (*totals)[i * kRows + j] += sums[i * kDistanceRows + j];
                        (*totals)[j * kRows + i] = (*totals)[i * kRows + j];
                    }
                }
            },
            [totals] { return digest_of(totals->data(), sizeof *totals); }};
}

Case sgd() {
    const Bytes w = values(0), d = values(1);
    return {"sgd", [=](std::size_t first, std::size_t last) { kernels().sgd(w.floats(), d.floats(), 0.1, first, last); },
            [w] { return w.digest(); }};
}

Case momentum() {
    const Bytes w = values(0), v = values(1), d = values(2);
    return {"momentum",
            [=](std::size_t first, std::size_t last) {
                kernels().momentum(w.floats(), v.floats(), d.floats(), 0.1, 0.9, first, last);
            },
            [=] { return w.digest() + 3 * v.digest(); }};
}

Case adagrad() {
    const Bytes w = values(0), v = squares(1), d = values(2);
    return {"adagrad",
            [=](std::size_t first, std::size_t last) {
                kernels().adagrad(w.floats(), v.floats(), d.floats(), 0.1, 1e-3, first, last);
            },
            [=] { return w.digest() + 3 * v.digest(); }};
}

constexpr Adaptive kAdaptive{0.1, 0.9, 0.99, 1e-3};
using Moments = void (*)(f32u*, f32u*, f32u*, const f32u*, const Adaptive&, std::size_t, std::size_t);

Case adaptive(const char* name, Moments kernel) {
    const Bytes w = values(0), m = values(1), v = squares(2), d = values(3);
    return {name,
            [=](std::size_t first, std::size_t last) {
                kernel(w.floats(), m.floats(), v.floats(), d.floats(), kAdaptive, first, last);
            },
            [=] { return w.digest() + 3 * m.digest() + 5 * v.digest(); }};
}

Case fadas() {
    const Bytes w = values(0), m = values(1), v = squares(2), vhat = squares(3), d = values(4);
    return {"fadas",
            [=](std::size_t first, std::size_t last) {
                kernels().fadas(w.floats(), m.floats(), v.floats(), vhat.floats(), d.floats(), kAdaptive, first, last);
            },
            [=] { return w.digest() + 3 * m.digest() + 5 * v.digest() + 7 * vhat.digest(); }};
}

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const Named& as : kEncodings) {
        if (as.encoding == Encoding::topk) {
            all.push_back(encode_topk("values", few(0)));
            all.push_back(encode_topk("anything", anything(1, 4 * kN)));
        } else {
            all.push_back(encode(as, "values", values(0)));
            all.push_back(encode(as, "anything", anything(1, 4 * kN)));
        }
        all.push_back(decode(as));
        all.push_back(largest(as));
        all.push_back(square_blocks(as));
        all.push_back(rank(as, false));
        all.push_back(rank(as, true));
        all.push_back(square_distances(as));
        all.push_back(fold_exact(as, false));
        all.push_back(fold_exact(as, true));
        all.push_back(fold_exact_checked(as, false));
        all.push_back(fold_exact_checked(as, true));
        all.push_back(unfold_exact(as, false));
        all.push_back(unfold_exact(as, true));
        all.push_back(mean("mean_exact", kernels().mean_exact, as, kUnit, kTotalWeight * kUnit));
        all.push_back(mean("mean_exact_checked", mean_exact_checked, as, kUnit, kTotalWeight * kUnit));
        all.push_back(mean("mean_f64", kernels().mean_f64, as, 1.0, kTotalWeight));
        all.push_back(mean("mean_f32", kernels().mean_f32, as, 1.0 / kTotalWeight, 1.0));
    }
    for (const auto& make : {divide_exact, multiply, add_gaussian, add_gaussian_exact, sgd, momentum}) {
        all.push_back(make());
    }
    all.push_back(read4());
    all.push_back(adagrad());
    all.push_back(adaptive("adam", kernels().adam));
    all.push_back(adaptive("yogi", kernels().yogi));
    all.push_back(fadas());
    return all;
}

}  // namespace

// By this name callgrind knows where to count.
extern "C" __attribute__((noinline)) void measured(const Case& one) {
    one.call(0, kRangeStep);
    one.call(kRangeStep, kN);
}

int main() {
    try {
        std::string digests;
        for (const Case& one : cases()) {
            measured(one);
            char digest[17];
            std::snprintf(digest, sizeof digest, "%016llx", static_cast<unsigned long long>(one.digest()));
            digests += (digests.empty() ? "\n    \"" : ",\n    \"") + one.name + "\": \"" + digest + "\"";
        }
        std::string tools = kCompiler;
#if defined(__GLIBC__)
        tools += std::string(", glibc ") + gnu_get_libc_version();
#endif
        std::printf("{\n  \"isa\": \"%s\",\n  \"tools\": \"%s\",\n  \"digests\": {%s\n  }\n}\n", kernels().isa,
                    tools.c_str(), digests.c_str());
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s\n", error.what());
        return 1;
    }
    return 0;
}
