#include "means.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "pages.h"
#include "pool.h"
#include "sums.h"

namespace fedmq {
namespace {

constexpr double kInfinity = HUGE_VAL;

// So many addends of up to 2^50 stay within 63 bits.
constexpr std::size_t kCheckedRows = std::size_t{1} << 12;

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

// The mean on a grid that the caller chose, of payloads that are read once: folded first and believed afterwards, if no
// value was in the outer half of the range (looking first was half of all the time). Else it returns false, nothing that
// anybody sees has been written, and admitted_rows finds out what there is to say about which payload.
bool checked_mean(const std::vector<View>& payloads, const std::vector<double>& weights,
                  const std::vector<double>& norms, const MeanOptions& options, const FixedPoint& grid, double total,
                  f32u* out) {
    if (payloads.size() > kCheckedRows) return false;
    std::vector<Row> rows;
    for (std::size_t i = 0; i < payloads.size(); ++i) {
        Addition how{weights[i], std::nullopt, options.max_norm, false};
        if (options.max_norm) how.norm = norms[i];
        rows.push_back(grid.row(payloads[i], how));
    }
    const double divisor = grid.divisor(total);
    const KernelTable& kernel = kernels();
    const std::size_t n = payloads[0].n;
    Zeros<float> aside;
    f32u* to = out;
    if (!options.may_spoil_out) {  // one copy more, far below a second read of all payloads
        aside = zeros<float>(n);
        to = aside.get();
    }
    std::atomic<bool> inside{true};
    parallel_for(n, kRangeStep, options.threads, [&](std::size_t first, std::size_t last) {
        if (!kernel.mean_exact_checked(rows.data(), rows.size(), divisor, to, first, last)) {
            inside.store(false, std::memory_order_relaxed);
        }
    });
    if (!inside.load(std::memory_order_relaxed)) return false;
    if (to != out) {
        parallel_for(n, kRangeStep, options.threads, [&](std::size_t first, std::size_t last) {
            std::memcpy(out + first, to + first, (last - first) * sizeof(float));
        });
    }
    return true;
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
    const std::size_t n = payloads[0].n;
    auto mean = kernel.mean_exact;
    std::vector<Row> rows;
    double divisor = total;
    if (exact) {
        FixedPoint grid(options.frac_bits.value_or(0));
        if (options.frac_bits && checked_mean(payloads, weights, norms, options, grid, total, out)) return;
        rows = options.frac_bits ? admitted_rows(payloads, weights, norms, options, grid)
                                 : derived_rows(payloads, weights, norms, options, grid);
        divisor = grid.divisor(total);
    } else {
        mean = options.mode == Mode::f64 ? kernel.mean_f64 : kernel.mean_f32;
        rows = float_rows(payloads, weights, norms, options, options.mode == Mode::f64 ? 1.0 : total);
    }
    parallel_for(n, kRangeStep, options.threads, [&](std::size_t first, std::size_t last) {
        mean(rows.data(), rows.size(), divisor, out, first, last);
    });
}

}  // namespace fedmq
