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

void ExactSum::fold(const Row* rows, std::size_t count) {
    if (count == 0) return;
    const KernelTable& kernel = kernels();
    parallel_for(n_, kRangeStep, threads_, [&](std::size_t first, std::size_t last) {
        kernel.fold_exact(totals_.get(), rows, count, first, last);
    });
}

void ExactSum::add_noise(double sigma, const std::uint8_t* key, const std::uint8_t* nonce) {
    const double scale = grid_.in_units(sigma);
    if (offset_ > kMaxPosition || n_ > kMaxPosition - offset_) {
        throw std::invalid_argument("offset + n must be at most 2^35, where the stream ends, not " +
                                    std::to_string(offset_) + " + " + std::to_string(n_));
    }
    if (!(scale < std::ldexp(1.0, kSumBits))) {
        throw std::invalid_argument("sigma must be below 2^(" + std::to_string(kSumBits) + " - frac_bits), not " +
                                    text(sigma));
    }
    // Below 2^66; what does not fit into 64 bits does not fit into the sum either.
    const double by = std::ceil(kMaxRadius * scale);
    grid_.extend(by < 0x1p63 ? static_cast<std::uint64_t>(by) : std::uint64_t{1} << 63, "sigma");
    const Stream stream{key, nonce, offset_};
    const KernelTable& kernel = kernels();
    parallel_for(n_, kRangeStep, threads_, [&](std::size_t first, std::size_t last) {
        kernel.add_gaussian_exact(totals_.get(), scale, stream, first, last);
    });
}

void ExactSum::mean(double divisor, f32u* out) const {
    const KernelTable& kernel = kernels();
    parallel_for(n_, kRangeStep, threads_, [&](std::size_t first, std::size_t last) {
        kernel.divide_exact(totals_.get(), divisor, out, first, last);
    });
}

void ExactSum::merge(const ExactSum& other) {
    if (n_ != other.n_ || grid_.frac_bits() != other.grid_.frac_bits() || offset_ != other.offset_) {
        const auto shape = [](const ExactSum& sum) {
            return "(" + std::to_string(sum.n_) + ", " + std::to_string(sum.grid_.frac_bits()) + ", " +
                   std::to_string(sum.offset_) + ")";
        };
        throw std::invalid_argument("other must have (n, frac_bits, offset) = " + shape(*this) + ", not " +
                                    shape(other));
    }
    grid_.extend(other.grid_.reach(), "other");
    for (std::size_t i = 0; i < n_; ++i) totals_[i] += other.totals_[i];
}

void ExactSum::reset() {
    std::fill_n(totals_.get(), n_, 0);
    grid_.reset();
}

void ExactSum::copy_totals(std::int64_t* out) const { std::copy_n(totals_.get(), n_, out); }

}  // namespace fedmq
