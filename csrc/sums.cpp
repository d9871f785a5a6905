#include "sums.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "pool.h"

namespace fedmq {
namespace {

constexpr double kSurplus = 1.0 + 0x1p-32;
constexpr double kMaxRadius = 9.5;
constexpr int kCheckedBits = 50;  // the widest range that a checked fold can watch over
constexpr double kInfinity = HUGE_VAL;

double largest_of(const View& payload, int threads) {
    const KernelTable& kernel = kernels();
    std::atomic<std::uint32_t> found{0};
    parallel_for(payload.n, kRangeStep, threads, [&](std::size_t first, std::size_t last) {
        const float largest = kernel.largest(payload, first, last);
        std::uint32_t here;
        static_assert(sizeof here == sizeof largest, "magnitudes compare as integers, NaN being the largest");
        std::memcpy(&here, &largest, sizeof here);
        std::uint32_t seen = found.load(std::memory_order_relaxed);
        while (seen < here && !found.compare_exchange_weak(seen, here, std::memory_order_relaxed)) {
        }
    });
    const std::uint32_t bits = found.load(std::memory_order_relaxed);
    float largest;
    std::memcpy(&largest, &bits, sizeof largest);
    return static_cast<double>(largest);
}

}  // namespace

std::string text(double number) {
    char buffer[32];
    std::snprintf(buffer, sizeof buffer, "%.9g", number);
    return buffer;
}

double sum_squares(const View& payload, int threads) {
    const KernelTable& kernel = kernels();
    std::vector<double> blocks((payload.n + kNormBlock - 1) / kNormBlock);
    parallel_for(payload.n, kRangeStep, threads, [&](std::size_t first, std::size_t last) {
        kernel.square_blocks(payload, blocks.data(), first, last);
    });
    double total = 0.0;
    for (const double block : blocks) total += block;
    return total;
}

double norm_of(const View& payload, int threads) { return std::sqrt(sum_squares(payload, threads)); }

double dyadic(double weight) { return std::nearbyint(weight * 0x1p20) / 0x1p20; }

double clip_factor(double norm, double max_norm, bool truncate) {
    if (truncate) norm *= kSurplus;
    return norm > max_norm ? max_norm / norm : 1.0;
}

FixedPoint::FixedPoint(int frac_bits) : frac_bits_(frac_bits), unit_(std::ldexp(1.0, frac_bits)) {}

Row FixedPoint::row(const View& payload, const Addition& how) const {
    double scale = dyadic(how.weight);
    if (how.max_norm) scale *= clip_factor(*how.norm, *how.max_norm, how.truncate);
    return Row{payload, in_units(scale), how.truncate};
}

Row FixedPoint::admit(const View& payload, const Addition& how, int threads, std::optional<double>& computed) {
    Addition known = how;
    if (how.max_norm && !how.norm) {
        const double norm = norm_of(payload, threads);
        if (!(norm < kInfinity)) {
            throw std::invalid_argument("payload must be finite to be clipped; it holds a NaN or an infinity");
        }
        known.norm = computed = norm;
    }
    const Row admitted = row(payload, known);
    const double largest = largest_of(payload, threads) * admitted.scale;
    if (!(largest < std::ldexp(1.0, kValueBits))) {
        throw std::invalid_argument("payload must be finite and weight * value * 2^" + std::to_string(frac_bits_) +
                                    " below 2^" + std::to_string(kValueBits) + ", frac_bits being " +
                                    std::to_string(frac_bits_) + "; the largest is " + text(largest));
    }
    extend(static_cast<std::uint64_t>(how.truncate ? std::trunc(largest) : std::nearbyint(largest)), "payload");
    return admitted;
}

bool FixedPoint::try_extend(std::size_t count, int bits) {
    if (count > ((std::uint64_t{1} << 63) - 1 - reach_) >> bits) return false;
    reach_ += static_cast<std::uint64_t>(count) << bits;
    return true;
}

void FixedPoint::extend(std::uint64_t by, const char* what) {
    constexpr std::uint64_t end = std::uint64_t{1} << 63;
    if (by >= end - reach_) {
        throw std::invalid_argument(std::string(what) + " must not let the sum leave 63 bits; with frac_bits " +
                                    std::to_string(frac_bits_) + " it could, so use fewer (frac_bits_for)");
    }
    reach_ += by;
}

double FixedPoint::divisor(double denominator) const {
    const double divisor = in_units(denominator);
    if (!(divisor > 0.0 && divisor < kInfinity)) {
        throw std::invalid_argument("denominator must leave denominator * 2^frac_bits finite and above 0, not " +
                                    text(denominator));
    }
    return divisor;
}

ExactSum::ExactSum(std::size_t n, int frac_bits, std::uint64_t offset, int threads)
    : n_(n), grid_(frac_bits), offset_(offset), threads_(threads), totals_(zeros<std::int64_t>(n)) {}

// After a reset the totals are cleared a range at a time, by who is about to write there: a sum that is used again for
// the next tile does not go through memory once more for it.
template <class Body>
void ExactSum::over_totals(const Body& body) {
    parallel_for(n_, kRangeStep, threads_, [&](std::size_t first, std::size_t last) {
        if (stale_) std::fill(totals_.get() + first, totals_.get() + last, 0);
        body(first, last);
    });
    stale_ = false;
}

void ExactSum::clear() {
    if (stale_) over_totals([](std::size_t, std::size_t) {});
}

void ExactSum::fold(const Row* rows, std::size_t count) {
    if (count == 0) return;
    const KernelTable& kernel = kernels();
    over_totals([&](std::size_t first, std::size_t last) {
        kernel.fold_exact(totals_.get(), rows, count, first, last);
    });
}

void ExactSum::add_all(const std::vector<View>& payloads, const std::vector<Addition>& how) {
    std::vector<Row> rows;
    double largest = 0.0;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        rows.push_back(grid_.row(payloads[i], how[i]));
        largest = std::max(largest, *how[i].norm * rows[i].scale);
    }
    // No value is larger than its norm. A caller may be wrong about norms, so the fold watches.
    int bits = kCheckedBits;
    if (largest < std::ldexp(1.0, kCheckedBits)) std::frexp(largest, &bits);
    bits = std::max(bits, 1);
    const FixedPoint before = grid_;
    if (grid_.try_extend(rows.size(), bits)) {
        if (fold_checked(rows, bits)) return;
        grid_ = before;
    }
    try {
        std::optional<double> computed;
        for (std::size_t i = 0; i < payloads.size(); ++i) {
            try {
                rows[i] = grid_.admit(payloads[i], how[i], threads_, computed);
            } catch (const std::invalid_argument& error) {
                throw std::invalid_argument("payloads[" + std::to_string(i) + "]: " + error.what());
            }
        }
    } catch (...) {
        grid_ = before;
        throw;
    }
    fold(rows.data(), rows.size());
}

// Folds rows and says whether all integers were in [-2^range_bits, 2^range_bits). If not, the totals are as before.
bool ExactSum::fold_checked(const std::vector<Row>& rows, int range_bits) {
    const KernelTable& kernel = kernels();
    std::atomic<bool> inside{true};
    over_totals([&](std::size_t first, std::size_t last) {
        if (!kernel.fold_exact_checked(totals_.get(), rows.data(), rows.size(), range_bits, first, last)) {
            inside.store(false, std::memory_order_relaxed);
        }
    });
    if (inside.load(std::memory_order_relaxed)) return true;
    parallel_for(n_, kRangeStep, threads_, [&](std::size_t first, std::size_t last) {
        kernel.unfold_exact(totals_.get(), rows.data(), rows.size(), range_bits, first, last);
    });
    return false;
}

void ExactSum::add_noise(double sigma, const std::uint8_t* key, const std::uint8_t* nonce) {
    const double scale = grid_.in_units(sigma);
    if (offset_ > kMaxPosition || n_ > kMaxPosition - offset_) {
        throw std::invalid_argument("offset + n must be at most 2^35, where the stream ends, not " +
                                    std::to_string(offset_) + " + " + std::to_string(n_));
    }
    const double size = std::fabs(scale);
    if (!(size < std::ldexp(1.0, kSumBits))) {
        throw std::invalid_argument("sigma must be below 2^(" + std::to_string(kSumBits) + " - frac_bits), not " +
                                    text(std::fabs(sigma)));
    }
    // Below 2^66; what does not fit into 64 bits does not fit into the sum either.
    const double by = std::ceil(kMaxRadius * size);
    grid_.extend(by < 0x1p63 ? static_cast<std::uint64_t>(by) : std::uint64_t{1} << 63, "sigma");
    const Stream stream{key, nonce, offset_};
    const KernelTable& kernel = kernels();
    over_totals([&](std::size_t first, std::size_t last) {
        kernel.add_gaussian_exact(totals_.get(), scale, stream, first, last);
    });
}

void ExactSum::mean(double divisor, f32u* out) {
    const KernelTable& kernel = kernels();
    over_totals([&](std::size_t first, std::size_t last) {
        kernel.divide_exact(totals_.get(), divisor, out, first, last);
    });
}

void ExactSum::merge(ExactSum& other) {
    if (n_ != other.n_ || grid_.frac_bits() != other.grid_.frac_bits() || offset_ != other.offset_) {
        const auto shape = [](const ExactSum& sum) {
            return "(" + std::to_string(sum.n_) + ", " + std::to_string(sum.grid_.frac_bits()) + ", " +
                   std::to_string(sum.offset_) + ")";
        };
        throw std::invalid_argument("other must have (n, frac_bits, offset) = " + shape(*this) + ", not " +
                                    shape(other));
    }
    grid_.extend(other.grid_.reach(), "other");
    clear();
    other.clear();
    for (std::size_t i = 0; i < n_; ++i) totals_[i] += other.totals_[i];
}

void ExactSum::reset(std::uint64_t offset) {
    stale_ = true;
    offset_ = offset;
    grid_.reset();
}

void ExactSum::copy_totals(std::int64_t* out) {
    clear();
    std::copy_n(totals_.get(), n_, out);
}

}  // namespace fedmq
