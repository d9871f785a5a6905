// The weighted mean of payloads that are all there.
//
// The twin of fedcore/kernels/reference_means.py. Knows nothing of Python and needs no GIL; throws
// std::invalid_argument before anything is written.
#pragma once

#include <optional>
#include <vector>

#include "buffer.h"

namespace fedmq {

enum class Mode { exact, f64, f32 };

struct MeanOptions {
    Mode mode = Mode::exact;
    std::optional<int> frac_bits;  // exact only; derived from the norms where it is not given
    std::optional<double> max_norm;
    int threads = 0;
    bool may_spoil_out = false;  // nobody sees `out` when an exception is thrown
};

// out_j = Σ weight_k · x_kj / Σ weight_k. There is at least one payload, and all have as many elements as `out`.
void weighted_mean(const std::vector<View>& payloads, std::vector<double> weights, const MeanOptions& options,
                   f32u* out);

}  // namespace fedmq
