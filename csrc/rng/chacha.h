// ChaCha20 (RFC 8439), many blocks side by side.
//
// Numerics: integers only. The state is kept word by word, each word a vector of blocks, so that the quarter rounds
// are operations on whole vectors and no transposition is ever needed: rng/normal.h and kernels/codec.inc define their
// streams in this order of words.
//
// Shape: the sixteen words of as many blocks as a register has lanes stay in registers for all twenty rounds. Arrays of
// sixteen lanes, left to the vectoriser, went through memory at each quarter round where a register has fewer, and
// through scalar additions at the end: 1.25 times as long with AVX2, 1.6 with SSE2, 1.35 with AVX-512.
//
// Included once per instruction-set level, inside that level's unnamed namespace.
#pragma once

constexpr int kLanes = 16;  // blocks of a group, on every level

#if defined(__AVX512F__)
constexpr int kWidth = 16;  // blocks that are made at a time
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef std::uint32_t Words __attribute__((vector_size(4 * kWidth)));

// Lanes of two vectors by number; older GCCs lack Clang's name for it.
#if defined(__clang__)
#define FEDMQ_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define FEDMQ_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

template <int by>
inline __attribute__((always_inline)) void rotate_left(Words& x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // Whole bytes move in one instruction instead of three.
    if (by == 16 || by == 8) {
        constexpr long long low = by == 16 ? 0x0504070601000302 : 0x0605040702010003;
        constexpr long long high = by == 16 ? 0x0d0c0f0e09080b0a : 0x0e0d0c0f0a09080b;
        x = bits<Words>(_mm256_shuffle_epi8(bits<__m256i>(x), _mm256_setr_epi64x(low, high, low, high)));
        return;
    }
#endif
    x = (x << by) | (x >> (32 - by));
}

inline __attribute__((always_inline)) void quarter_round(Words& a, Words& b, Words& c, Words& d) {
    a += b; d ^= a; rotate_left<16>(d);
    c += d; b ^= c; rotate_left<12>(b);
    a += b; d ^= a; rotate_left<8>(d);
    c += d; b ^= c; rotate_left<7>(b);
}

// Makes blocks counter, …, counter + kLanes - 1 of the stream, kWidth at a time, and calls store(b, s) for each lot:
// s is its sixteen words, the lanes of which stand for blocks counter + b + order[0], counter + b + order[1], … .
template <class Store>
inline __attribute__((always_inline)) void chacha20_vectors(const Stream& stream, std::uint32_t counter,
                                                            const std::uint32_t* order, Store store) {
    std::uint32_t start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
    __builtin_memcpy(start + 4, stream.key, 32);
    __builtin_memcpy(start + 13, stream.nonce, 12);
    Words counters;
    __builtin_memcpy(&counters, order, sizeof counters);
    counters += counter;

    for (int block = 0; block < kLanes; block += kWidth) {
        Words s[16];
        for (int w = 0; w < 16; ++w) s[w] = start[w] - Words{};
        s[12] = counters;
        for (int round = 0; round < 10; ++round) {
            quarter_round(s[0], s[4], s[8], s[12]);
            quarter_round(s[1], s[5], s[9], s[13]);
            quarter_round(s[2], s[6], s[10], s[14]);
            quarter_round(s[3], s[7], s[11], s[15]);
            quarter_round(s[0], s[5], s[10], s[15]);
            quarter_round(s[1], s[6], s[11], s[12]);
            quarter_round(s[2], s[7], s[8], s[13]);
            quarter_round(s[3], s[4], s[9], s[14]);
        }
        for (int w = 0; w < 16; ++w) s[w] += start[w];
        s[12] += counters - start[12];
        store(block, s);
        counters += kWidth;
    }
}

// The words of a group of blocks, one by one: word[w][b] is word w of block counter + b.
struct ChaChaWords {
    alignas(64) std::uint32_t word[16][kLanes];
};

inline __attribute__((always_inline)) void chacha20(const Stream& stream, std::uint32_t counter, ChaChaWords& out) {
    alignas(64) static constexpr std::uint32_t kOrder[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    chacha20_vectors(stream, counter, kOrder, [&out](int block, const Words* s) {
        for (int w = 0; w < 16; ++w) __builtin_memcpy(out.word[w] + block, &s[w], sizeof s[w]);
    });
}

// The words of a group of blocks, two by two: pair[i][b] is word 2i of block counter + b, and word 2i + 1 above it.
//
// Interleaving two vectors is one instruction for each half, but it goes by 128-bit pieces: the low halves give lanes
// 0, 1, 4, 5, 8, 9 … . Blocks are dealt to lanes so that those are in sequence.
struct ChaChaPairs {
    alignas(64) std::uint64_t pair[8][kLanes];
};

inline __attribute__((always_inline)) void chacha20(const Stream& stream, std::uint32_t counter, ChaChaPairs& out) {
#if defined(__AVX512F__)
    alignas(64) static constexpr std::uint32_t kOrder[16] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
    const auto low = [](Words a, Words b) {
        return FEDMQ_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    };
    const auto high = [](Words a, Words b) {
        return FEDMQ_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    };
#elif defined(__AVX2__)
    alignas(64) static constexpr std::uint32_t kOrder[8] = {0, 1, 4, 5, 2, 3, 6, 7};
    const auto low = [](Words a, Words b) { return FEDMQ_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13); };
    const auto high = [](Words a, Words b) { return FEDMQ_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15); };
#else
    alignas(64) static constexpr std::uint32_t kOrder[4] = {0, 1, 2, 3};
    const auto low = [](Words a, Words b) { return FEDMQ_SHUFFLE(a, b, 0, 4, 1, 5); };
    const auto high = [](Words a, Words b) { return FEDMQ_SHUFFLE(a, b, 2, 6, 3, 7); };
#endif
    chacha20_vectors(stream, counter, kOrder, [&](int block, const Words* s) {
        for (int i = 0; i < 8; ++i) {
            const Words first = low(s[2 * i], s[2 * i + 1]);
            const Words second = high(s[2 * i], s[2 * i + 1]);
            __builtin_memcpy(out.pair[i] + block, &first, sizeof first);
            __builtin_memcpy(out.pair[i] + block + kWidth / 2, &second, sizeof second);
        }
    });
}
