// What the kernels see of a caller's memory.
//
// Rules:
//  - Payloads come from sockets, mapped files and slices of either: a pointer may have any alignment. Kernels read and
//    write float data through `f32u` and its kin, never through `float*`.
//  - Little-endian machines only; a payload is the wire's bytes as they are.
//  - Plain data without member functions: an inline function that two ISA levels share would be merged by the linker,
//    and every machine might get the AVX-512 copy of it.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "fedmq's payloads are little-endian and so must be the machine; install with FEDMQ_PURE_PYTHON=1"
#endif

namespace fedmq {

enum class Encoding : std::uint8_t { f32, f16, bf16, i8, topk };

// i8: blocks of 1024 values, each a float32 scale followed by the int8 values; the last block is shorter.
constexpr std::size_t kBlockI8 = 1024;
constexpr std::size_t kScaleBytes = 4;

// topk: blocks of 16 Ki positions, the last block shorter, with only what is not zero in them: three uint16 (how many
// positions, how many values, bytes of gaps), the gaps between positions (1 or 2 bytes each), the values as halves.
constexpr std::size_t kTopkBlock = std::size_t{16} << 10;
constexpr std::size_t kTopkHeadBytes = 6;
constexpr std::size_t kTopkValueBytes = 2;
constexpr std::size_t kTopkBlockMost = kTopkHeadBytes + (1 + kTopkValueBytes) * kTopkBlock;  // nothing is zero

// An encoded vector of n elements that somebody else keeps alive.
struct View {
    const std::byte* data;
    Encoding encoding;
    std::size_t n;
    const std::uint64_t* starts = nullptr;  // topk: where each block begins in `data`, and where the last one ends
};

// Types that may lie anywhere and alias anything.
typedef float f32u __attribute__((aligned(1), may_alias));
typedef double f64u __attribute__((aligned(1), may_alias));
typedef std::int64_t i64u __attribute__((aligned(1), may_alias));
typedef std::uint16_t u16u __attribute__((aligned(1), may_alias));
typedef std::uint32_t u32u __attribute__((aligned(1), may_alias));

}  // namespace fedmq
