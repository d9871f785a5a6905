// ChaCha20 (RFC 8439), many blocks side by side.
//
// Numerics: integers only. The state is kept word by word, each word an array over `kLanes` blocks, so that the
// quarter rounds are plain loops over lanes that vectorise at any width and no transposition is ever needed:
// rng/normal.h and kernels/codec.inc define their streams in this order of words.
//
// Included once per instruction-set level, inside that level's unnamed namespace.
#pragma once

constexpr int kLanes = 16;

struct ChaChaWords {
    alignas(64) std::uint32_t word[16][kLanes];
};

inline __attribute__((always_inline)) std::uint32_t rotate_left(std::uint32_t x, int by) {
    return (x << by) | (x >> (32 - by));
}

inline __attribute__((always_inline)) void quarter_round(ChaChaWords& s, int a, int b, int c, int d) {
    for (int l = 0; l < kLanes; ++l) {
        std::uint32_t wa = s.word[a][l], wb = s.word[b][l], wc = s.word[c][l], wd = s.word[d][l];
        wa += wb; wd = rotate_left(wd ^ wa, 16);
        wc += wd; wb = rotate_left(wb ^ wc, 12);
        wa += wb; wd = rotate_left(wd ^ wa, 8);
        wc += wd; wb = rotate_left(wb ^ wc, 7);
        s.word[a][l] = wa; s.word[b][l] = wb; s.word[c][l] = wc; s.word[d][l] = wd;
    }
}

// The words of blocks counter, counter + 1, …, counter + kLanes - 1 of the stream.
inline void chacha20(const Stream& stream, std::uint32_t counter, ChaChaWords& out) {
    std::uint32_t start[16] = {0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u};
    __builtin_memcpy(start + 4, stream.key, 32);
    __builtin_memcpy(start + 13, stream.nonce, 12);
    for (int w = 0; w < 16; ++w)
        for (int l = 0; l < kLanes; ++l) out.word[w][l] = start[w];
    for (int l = 0; l < kLanes; ++l) out.word[12][l] = counter + static_cast<std::uint32_t>(l);

    for (int round = 0; round < 10; ++round) {
        quarter_round(out, 0, 4, 8, 12);
        quarter_round(out, 1, 5, 9, 13);
        quarter_round(out, 2, 6, 10, 14);
        quarter_round(out, 3, 7, 11, 15);
        quarter_round(out, 0, 5, 10, 15);
        quarter_round(out, 1, 6, 11, 12);
        quarter_round(out, 2, 7, 8, 13);
        quarter_round(out, 3, 4, 9, 14);
    }
    for (int w = 0; w < 16; ++w)
        for (int l = 0; l < kLanes; ++l)
            out.word[w][l] += w == 12 ? counter + static_cast<std::uint32_t>(l) : start[w];
}
