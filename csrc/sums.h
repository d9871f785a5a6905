// The exact sum of whole updates: the kernels of all ranges put together, and the scalar arithmetic around them.
//
// Rules:
//  - Knows nothing of Python and needs no GIL. Errors are std::invalid_argument, thrown before anything is written.
//  - The twin of fedcore/kernels/reference_sums.py, which defines the scalars as it does the loops: every step here is
//    float64 in the order that is written there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "buffer.h"
#include "dispatch.h"
#include "pages.h"

namespace fedmq {

constexpr int kMinFracBits = -200;
constexpr int kMaxFracBits = 100;
constexpr int kValueBits = 51;
constexpr int kSumBits = 62;
constexpr std::uint64_t kMaxPosition = std::uint64_t{1} << 35;  // where a keyed stream ends

double sum_squares(const View& payload, int threads);  // inf or NaN where the payload holds one
double norm_of(const View& payload, int threads);      // its root
double dyadic(double weight);                          // rounded to a multiple of 2^-20
double clip_factor(double norm, double max_norm, bool truncate);
std::string text(double number);  // for messages

// How an update is to be added.
struct Addition {
    double weight = 1.0;
    std::optional<double> norm;
    std::optional<double> max_norm;
    bool truncate = false;
};

// The grid of an exact sum, and how much of its range is used up.
class FixedPoint {
public:
    explicit FixedPoint(int frac_bits);

    int frac_bits() const { return frac_bits_; }
    std::uint64_t reach() const { return reach_; }
    void reset() { reach_ = 0; }

    // An update as a row of this sum, unchecked: the caller knows that it is finite and within range. `how.norm` is
    // given where `how.max_norm` is.
    Row row(const View& payload, const Addition& how) const;

    // Checks an update and makes room for it: what is admitted must be folded. Sets `computed` to the update's norm
    // where that was needed and not given.
    Row admit(const View& payload, const Addition& how, int threads, std::optional<double>& computed);

    // Makes room for `count` integers in [-2^bits, 2^bits), if there is any.
    bool try_extend(std::size_t count, int bits);

    // Makes room for integers up to `by` in size.
    void extend(std::uint64_t by, const char* what);

    // number · 2^frac_bits
    double in_units(double number) const { return number * unit_; }
    double divisor(double denominator) const;

private:
    int frac_bits_;
    double unit_;              // 2^frac_bits
    std::uint64_t reach_ = 0;  // no total is farther from zero than this
};

// The exact sum of weighted updates, int64 in units of 2^-frac_bits.
class ExactSum {
public:
    ExactSum(std::size_t n, int frac_bits, std::uint64_t offset, int threads);

    std::size_t n() const { return n_; }

    // An update as a row of this sum; see FixedPoint::admit.
    Row admit(const View& payload, const Addition& how, std::optional<double>& computed) {
        return grid_.admit(payload, how, threads_, computed);
    }
    void fold(const Row* rows, std::size_t count);

    // Admits and folds updates whose norms are given: all of them or, where one is refused, none. Where the norms tell
    // the truth each is read once.
    void add_all(const std::vector<View>& payloads, const std::vector<Addition>& how);

    // A negative sigma takes away what the positive one adds, to the bit.
    void add_noise(double sigma, const std::uint8_t* key, const std::uint8_t* nonce);
    double divisor(double denominator) const { return grid_.divisor(denominator); }
    void mean(double divisor, f32u* out);
    void merge(ExactSum& other);
    void reset(std::uint64_t offset);
    void copy_totals(std::int64_t* out);

private:
    bool fold_checked(const std::vector<Row>& rows, int range_bits);

    // parallel_for over the totals, which are zeros where nothing has been added yet.
    template <class Body>
    void over_totals(const Body& body);
    void clear();

    std::size_t n_;
    FixedPoint grid_;
    std::uint64_t offset_;
    int threads_;
    Zeros<std::int64_t> totals_;
    bool stale_ = false;  // what totals_ holds is from before a reset
};

}  // namespace fedmq
