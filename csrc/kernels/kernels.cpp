// The loops of one instruction-set level. Compiled once per level, with its flags and FEDMQ_LEVEL=<its name>.
//
// Everything but the table lives in an unnamed namespace, and no std template is used: a symbol with linkage would be
// shared between levels, and a machine might get a copy that it cannot run. check_symbols.cmake holds the build to it.

#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "buffer.h"
#include "dispatch.h"

#define FEDMQ_JOIN_(a, b) a##b
#define FEDMQ_JOIN(a, b) FEDMQ_JOIN_(a, b)
#define FEDMQ_TEXT_(a) #a
#define FEDMQ_TEXT(a) FEDMQ_TEXT_(a)
#define FEDMQ_TABLE FEDMQ_JOIN(kernel_table_, FEDMQ_LEVEL)

namespace fedmq {
namespace {

#include "kernels/load.inc"
#include "kernels/rounding.inc"
#include "rng/chacha.h"
#include "rng/normal.h"
#include "kernels/topk.inc"
#include "kernels/codec.inc"
#include "kernels/norm.inc"
#include "kernels/fold.inc"
#include "kernels/noise.inc"
#include "kernels/robust.inc"
#include "kernels/distances.inc"
#include "kernels/roofline.inc"
#include "kernels/optimizers.inc"

}  // namespace

extern const KernelTable FEDMQ_TABLE;
const KernelTable FEDMQ_TABLE = {
    FEDMQ_TEXT(FEDMQ_LEVEL),
    fold_exact,
    fold_exact_checked,
    unfold_exact,
    divide_exact,
    mean_exact,
    mean_exact_checked,
    mean_f64,
    mean_f32,
    largest,
    square_blocks,
    multiply,
    add_gaussian,
    add_gaussian_exact,
    encode,
    decode,
    encode_topk,
    median,
    trimmed_mean,
    square_distances,
    read4,
    sgd,
    momentum,
    adagrad,
    adam,
    yogi,
    fadas,
};

}  // namespace fedmq
