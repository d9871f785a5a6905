#include "robust.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "pool.h"

namespace fedmq {
namespace {

// Distances of so many blocks are kept until they are added in order; a bound on memory, not on threads.
constexpr std::size_t kWave = 256;

// What scratch is made of: kernels want it aligned to a cache line, and it is not worth clearing.
struct alignas(64) Line {
    std::byte bytes[64];
};

std::size_t divide_up(std::size_t n, std::size_t step) { return (n + step - 1) / step; }

// Calls body(item, scratch) once for each item, in any order, on as many threads as `values` elements are worth. Items
// are large and few; each worker takes the next one, and keeps its scratch.
void for_each_item(std::size_t items, std::size_t values, int threads, std::size_t scratch_bytes,
                   const std::function<void(std::size_t item, std::byte* scratch)>& body) {
    if (items == 0) return;
    if (threads == 0) threads = default_threads();
    const std::size_t worth = std::max<std::size_t>(1, std::min(items, values / kSerialBelow));
    const std::size_t workers = std::min(static_cast<std::size_t>(threads), worth);
    const std::size_t lines = divide_up(scratch_bytes, sizeof(Line));
    const std::unique_ptr<Line[]> scratch(new Line[workers * lines]);
    std::atomic<std::size_t> next{0};
    // One range, of the smallest size that goes to a thread, for each worker.
    parallel_for(workers * kSerialBelow, kSerialBelow, static_cast<int>(workers),
                 [&](std::size_t first, std::size_t) {
                     Line* const mine = scratch.get() + first / kSerialBelow * lines;
                     for (std::size_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
                         body(item, mine->bytes);
                     }
                 });
}

// Calls rank(x, tile, first, last) for every block of columns; false from it means that a value there is not finite.
template <class Rank>
void rank_columns(const std::vector<View>& payloads, int threads, Rank rank) {
    const std::size_t n = payloads[0].n, count = payloads.size();
    std::atomic<bool> finite{true};
    const std::size_t tile_bytes = count * kRowStep * sizeof(float);
    for_each_item(divide_up(n, kRangeStep), n * count, threads, tile_bytes + count * sizeof(const f32u*),
                  [&](std::size_t item, std::byte* scratch) {
                      const std::size_t first = item * kRangeStep;
                      const f32u** const x = reinterpret_cast<const f32u**>(scratch + tile_bytes);
                      if (!rank(x, reinterpret_cast<float*>(scratch), first, std::min(n, first + kRangeStep))) {
                          finite.store(false, std::memory_order_relaxed);
                      }
                  });
    if (finite.load(std::memory_order_relaxed)) return;
    for (std::size_t i = 0; i < count; ++i) {
        if (!(kernels().largest(payloads[i], 0, n) < HUGE_VALF)) {
            throw std::invalid_argument("payloads[" + std::to_string(i) +
                                        "] must be finite; it holds a NaN or an infinity");
        }
    }
}

}  // namespace

void median(const std::vector<View>& payloads, int threads, f32u* out) {
    const KernelTable& kernel = kernels();
    rank_columns(payloads, threads, [&](const f32u** x, float* tile, std::size_t first, std::size_t last) {
        return kernel.median(payloads.data(), payloads.size(), x, tile, out, first, last);
    });
}

void trimmed_mean(const std::vector<View>& payloads, std::size_t trim, int threads, f32u* out) {
    const KernelTable& kernel = kernels();
    rank_columns(payloads, threads, [&](const f32u** x, float* tile, std::size_t first, std::size_t last) {
        return kernel.trimmed_mean(payloads.data(), payloads.size(), trim, x, tile, out, first, last);
    });
}

void pairwise_sq_distances(const std::vector<View>& payloads, int threads, double* out) {
    // Work is cut into blocks of columns, and these into pairs of groups of rows. An item is one pair in one block.
    struct Groups {
        std::size_t left, right;  // where they begin
    };
    const std::size_t n = payloads[0].n, count = payloads.size();
    const auto rows_from = [count](std::size_t start) { return std::min(kDistanceRows, count - start); };
    std::vector<Groups> pairs;
    for (std::size_t left = 0; left < count; left += kDistanceRows) {
        for (std::size_t right = left; right < count; right += kDistanceRows) pairs.push_back({left, right});
    }
    const std::size_t items = divide_up(n, kNormBlock) * pairs.size();
    constexpr std::size_t kItemSums = kDistanceRows * kDistanceRows;
    const std::unique_ptr<double[]> sums(new double[std::min(items, kWave) * kItemSums]);
    const KernelTable& kernel = kernels();

    std::fill(out, out + count * count, 0.0);
    for (std::size_t start = 0; start < items; start += kWave) {
        const std::size_t wave = std::min(kWave, items - start);
        for_each_item(wave, wave * kNormBlock * count, threads, kDistanceScratch * sizeof(double),
                      [&](std::size_t item, std::byte* scratch) {
                          const std::size_t first = (start + item) / pairs.size() * kNormBlock;
                          const Groups& pair = pairs[(start + item) % pairs.size()];
                          const std::size_t right_count = pair.left == pair.right ? 0 : rows_from(pair.right);
                          kernel.square_distances(payloads.data() + pair.left, rows_from(pair.left),
                                                  payloads.data() + pair.right, right_count,
                                                  reinterpret_cast<double*>(scratch), sums.get() + item * kItemSums,
                                                  first, std::min(n, first + kNormBlock));
                      });
        for (std::size_t item = 0; item < wave; ++item) {
            const Groups& pair = pairs[(start + item) % pairs.size()];
            for (std::size_t i = pair.left; i < pair.left + rows_from(pair.left); ++i) {
                for (std::size_t j = std::max(i + 1, pair.right); j < pair.right + rows_from(pair.right); ++j) {
                    out[i * count + j] += sums[item * kItemSums + (i - pair.left) * kDistanceRows + (j - pair.right)];
                }
            }
        }
    }
    for (std::size_t i = 0; i < count; ++i) {
        for (std::size_t j = 0; j < i; ++j) out[i * count + j] = out[j * count + i];
    }
}

}  // namespace fedmq
