// Median, trimmed mean and pairwise distances of payloads that are all there.
//
// The twin of fedcore/kernels/reference_robust.py and of pairwise_sq_distances in reference_norms.py. Knows nothing of
// Python and needs no GIL. There is at least one payload, and all have as many elements.
#pragma once

#include <vector>

#include "buffer.h"

namespace fedmq {

// Of each coordinate, as many as a payload has. Throws std::invalid_argument when a payload holds a NaN or an infinity;
// `out` then holds anything.
void median(const std::vector<View>& payloads, int threads, f32u* out);
void trimmed_mean(const std::vector<View>& payloads, std::size_t trim, int threads, f32u* out);

// All pairs, K × K row by row: symmetric, with a diagonal of zeros.
void pairwise_sq_distances(const std::vector<View>& payloads, int threads, double* out);

}  // namespace fedmq
