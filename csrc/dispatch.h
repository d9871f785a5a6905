// The kernels of one instruction-set level, and the choice between levels.
//
// Rules:
//  - Every level gives the same bits; the choice is about speed only.
//  - It is made once, at the first use: the best level that both this build and this CPU have, or FEDMQ_ISA.
//  - Kernels are serial, take ranges [first, last) of elements, never throw and never allocate.
#pragma once

#include <cstddef>
#include <cstdint>

#include "buffer.h"

namespace fedmq {

// One update of a fold: element j contributes x_j · scale to the sum.
struct Row {
    View payload;
    double scale;
    bool truncate;  // exact folds only: round toward zero instead of to nearest even
};

// Where a keyed stream stands: RFC 8439's key and nonce, and the position of the array's element 0 in the stream.
struct Stream {
    const std::uint8_t* key;    // 32 bytes
    const std::uint8_t* nonce;  // 12 bytes
    std::uint64_t offset;
};

// A norm is the root of a sum over blocks of this many elements; see kernels/norm.inc.
constexpr std::size_t kNormBlock = std::size_t{16} << 10;

// Every range that a kernel gets starts at a multiple of this many elements: whole blocks of every encoding and norm.
constexpr std::size_t kRangeStep = kNormBlock;
static_assert(kRangeStep % kTopkBlock == 0, "a range cuts no block");

// The numbers of an adaptive server optimizer.
struct Adaptive {
    double lr, beta1, beta2, eps;
};

// Order statistics work on tiles of this many columns. Their rows are so far apart in scratch, which is aligned to a
// cache line: not a power of two, or they would all compete for the same lines of the cache.
constexpr std::size_t kRankTile = 1024;
constexpr std::size_t kRowStep = kRankTile + 16;

// Distances are of so many rows against as many others, and take so many doubles of scratch; see distances.inc.
constexpr std::size_t kDistanceRows = 32;
constexpr std::size_t kDistanceScratch = 2 * kDistanceRows * (512 + 256) + kDistanceRows * kDistanceRows * 16;

struct KernelTable {
    const char* isa;

    // fold.inc
    void (*fold_exact)(std::int64_t* totals, const Row* rows, std::size_t count, std::size_t first, std::size_t last);
    bool (*fold_exact_checked)(std::int64_t* totals, const Row* rows, std::size_t count, int range_bits,
                               std::size_t first, std::size_t last);
    void (*unfold_exact)(std::int64_t* totals, const Row* rows, std::size_t count, int range_bits, std::size_t first,
                         std::size_t last);
    void (*divide_exact)(const std::int64_t* totals, double divisor, f32u* out, std::size_t first, std::size_t last);
    void (*mean_exact)(const Row* rows, std::size_t count, double divisor, f32u* out, std::size_t first,
                       std::size_t last);
    bool (*mean_exact_checked)(const Row* rows, std::size_t count, double divisor, f32u* out, std::size_t first,
                               std::size_t last);
    void (*mean_f64)(const Row* rows, std::size_t count, double divisor, f32u* out, std::size_t first,
                     std::size_t last);
    void (*mean_f32)(const Row* rows, std::size_t count, double divisor, f32u* out, std::size_t first,
                     std::size_t last);

    // norm.inc
    float (*largest)(const View& payload, std::size_t first, std::size_t last);
    void (*square_blocks)(const View& payload, double* blocks, std::size_t first, std::size_t last);
    void (*multiply)(f32u* x, double factor, std::size_t first, std::size_t last);

    // noise.inc
    void (*add_gaussian)(f32u* x, double sigma, const Stream& stream, std::size_t first, std::size_t last);
    void (*add_gaussian_exact)(std::int64_t* totals, double scale, const Stream& stream, std::size_t first,
                               std::size_t last);

    // codec.inc
    void (*encode)(const f32u* x, Encoding encoding, std::byte* data, const Stream& stream, std::size_t first,
                   std::size_t last);
    void (*decode)(const View& payload, float* out, std::size_t first, std::size_t last);

    // topk.inc; `encode` is for the encodings whose size is known beforehand
    std::size_t (*encode_topk)(const f32u* x, std::size_t n, std::byte* out);

    // robust.inc; scratch: `x` is room for count pointers, `tile` for count * kRowStep floats
    bool (*median)(const View* rows, std::size_t count, const f32u** x, float* tile, f32u* out, std::size_t first,
                   std::size_t last);
    bool (*trimmed_mean)(const View* rows, std::size_t count, std::size_t trim, const f32u** x, float* tile,
                         f32u* out, std::size_t first, std::size_t last);

    // distances.inc
    void (*square_distances)(const View* left, std::size_t left_count, const View* right, std::size_t right_count,
                             double* scratch, double* sums, std::size_t first, std::size_t last);

    // roofline.inc
    std::uint32_t (*read4)(const View* x, std::size_t count, std::size_t first, std::size_t last);

    // optimizers.inc
    void (*sgd)(f32u* w, const f32u* d, double lr, std::size_t first, std::size_t last);
    void (*momentum)(f32u* w, f32u* v, const f32u* d, double lr, double beta, std::size_t first, std::size_t last);
    void (*adagrad)(f32u* w, f32u* v, const f32u* d, double lr, double eps, std::size_t first, std::size_t last);
    void (*adam)(f32u* w, f32u* m, f32u* v, const f32u* d, const Adaptive& hyper, std::size_t first, std::size_t last);
    void (*yogi)(f32u* w, f32u* m, f32u* v, const f32u* d, const Adaptive& hyper, std::size_t first, std::size_t last);
    void (*fadas)(f32u* w, f32u* m, f32u* v, f32u* vhat, const f32u* d, const Adaptive& hyper, std::size_t first,
                  std::size_t last);
};

// The table of the level in use. Throws std::invalid_argument when FEDMQ_ISA names a level that is unknown, that
// this build lacks or that this CPU lacks.
const KernelTable& kernels();

}  // namespace fedmq
