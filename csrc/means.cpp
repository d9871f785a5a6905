#include "means.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "pool.h"
#include "sums.h"

namespace fedmq {
namespace {

constexpr double kInfinity = HUGE_VAL;

int frac_bits_for(double bound, std::size_t k) {
    if (bound == 0.0) return 0;
    const double total = static_cast<double>(k) * bound;
    if (!(total < kInfinity)) {
        throw std::invalid_argument("weights and norms must keep the sum finite, not " + std::to_string(k) + " * " +
                                    text(bound));
    }
    // frexp(a) = (m, e) with a = m 2^e, ½ <= m < 1: a 2^F < 2^b just when e + F <= b.
    int bound_bits = 0, total_bits = 0;
    std::frexp(bound, &bound_bits);
    std::frexp(total, &total_bits);
    const int room = std::min({kMaxFracBits, kValueBits - bound_bits, kSumBits - total_bits});
    if (room < kMinFracBits) {
        throw std::invalid_argument("bound " + text(bound) + " is too large for a sum in 63 bits");
    }
    return room;
}

// Norms of payloads that must be finite.
std::vector<double> finite_norms(const std::vector<View>& payloads, int threads) {
    std::vector<double> norms;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        norms.push_back(norm_of(payloads[i], threads));
        if (!(norms[i] < kInfinity)) {
            throw std::invalid_argument("payloads[" + std::to_string(i) +
                                        "] must be finite; it holds a NaN or an infinity");
        }
    }
    return norms;
}

// The rows of an exact mean, on a grid that the norms determine. No check of ranges is needed: no element is larger
// than its update's norm, and the grid has room for all norms.
std::vector<Row> derived_rows(const std::vector<View>& payloads, const std::vector<double>& weights,
                              const std::vector<double>& norms, const MeanOptions& options, FixedPoint& grid) {
    double bound = 0.0;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        const double factor = options.max_norm ? clip_factor(norms[i], *options.max_norm, false) : 1.0;
        bound = std::max(bound, weights[i] * factor * norms[i]);
    }
    grid = FixedPoint(frac_bits_for(bound, payloads.size()));
    std::vector<Row> rows;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        rows.push_back(grid.row(payloads[i], Addition{weights[i], norms[i], options.max_norm, false}));
    }
    return rows;
}

// The rows of an exact mean on a grid that the caller chose.
std::vector<Row> admitted_rows(const std::vector<View>& payloads, const std::vector<double>& weights,
                               const std::vector<double>& norms, const MeanOptions& options, FixedPoint& grid) {
    std::vector<Row> rows;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        Addition how{weights[i], std::nullopt, options.max_norm, false};
        if (options.max_norm) how.norm = norms[i];
        std::optional<double> computed;
        try {
            rows.push_back(grid.admit(payloads[i], how, options.threads, computed));
        } catch (const std::invalid_argument& error) {
            throw std::invalid_argument("payloads[" + std::to_string(i) + "]: " + error.what());
        }
    }
    return rows;
}

// The rows of a floating-point mean: f32 divides the weights beforehand, f64 the sum afterwards.
std::vector<Row> float_rows(const std::vector<View>& payloads, const std::vector<double>& weights,
                            const std::vector<double>& norms, const MeanOptions& options, double divisor) {
    std::vector<Row> rows;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        const double factor = options.max_norm ? clip_factor(norms[i], *options.max_norm, false) : 1.0;
        rows.push_back(Row{payloads[i], weights[i] * factor / divisor, false});
    }
    return rows;
}

}  // namespace

void weighted_mean(const std::vector<View>& payloads, std::vector<double> weights, const MeanOptions& options,
                   f32u* out) {
    const bool exact = options.mode == Mode::exact;
    if (exact) std::transform(weights.begin(), weights.end(), weights.begin(), dyadic);
    double total = 0.0;
    for (const double weight : weights) total += weight;
    if (!(total > 0.0)) {
        throw std::invalid_argument(std::string("weights must not all be 0") + (exact ? " when rounded to 2^-20" : ""));
    }
    std::vector<double> norms;
    if (options.max_norm || (exact && !options.frac_bits)) norms = finite_norms(payloads, options.threads);

    const KernelTable& kernel = kernels();
    auto mean = kernel.mean_exact;
    std::vector<Row> rows;
    double divisor = total;
    if (exact) {
        FixedPoint grid(options.frac_bits.value_or(0));
        rows = options.frac_bits ? admitted_rows(payloads, weights, norms, options, grid)
                                 : derived_rows(payloads, weights, norms, options, grid);
        divisor = grid.divisor(total);
    } else {
        mean = options.mode == Mode::f64 ? kernel.mean_f64 : kernel.mean_f32;
        rows = float_rows(payloads, weights, norms, options, options.mode == Mode::f64 ? 1.0 : total);
    }
    parallel_for(payloads[0].n, kRangeStep, options.threads, [&](std::size_t first, std::size_t last) {
        mean(rows.data(), rows.size(), divisor, out, first, last);
    });
}

}  // namespace fedmq
