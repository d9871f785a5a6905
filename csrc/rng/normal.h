// Gaussian noise from ChaCha20 by Box–Muller; the twin of fedcore/kernels/reference_noise.py, which says why each step
// is as it is.
//
// Numerics: float64 + − × ÷ √ in the order written, each rounded once, and integers; no libm. The radius comes from 64
// bits, so the tail ends at 9.49 σ. A group of 16 ChaCha20 blocks gives 128 normals; position 32 p + b of a group is
// the x, position 32 p + 16 + b the y of the pair that words 4p … 4p + 3 of block b make.
//
// Included once per instruction-set level, inside that level's unnamed namespace.
#pragma once

constexpr std::size_t kGroupNormals = 128;

constexpr std::uint64_t kExponentOne = std::uint64_t{1} << 52;
constexpr std::uint64_t kSignificand = kExponentOne - 1;

// Minimax polynomials, from the innermost coefficient out: of ln, of sin and of cos.
constexpr double kLog[7] = {0.14795949746796902, 0.1531405053943999, 0.18183564327008403, 0.22222198573157687,
                            0.2857142874238801,  0.39999999999414676, 0.6666666666666734};
constexpr double kSin[7] = {5.633721005314096e-08, -3.5986417543868745e-06, 0.00016044115029163048,
                            -0.004681754132282415, 0.07969262624603957,     -0.6459640975062443,
                            1.5707963267948966};
constexpr double kCos[7] = {-6.32120209209315e-09, 4.7106096695321593e-07, -2.5202036788294498e-05,
                            0.0009192602741910677, -0.02086348076331257,   0.2536695079010468,
                            -1.2337005501361697};

// The two normals of the 64 bits `r` for the radius and the 64 bits `a` for the angle.
//
// The three polynomials take their steps side by side: one alone is a chain of twelve operations that wait for each
// other, longer than a processor looks ahead.
inline __attribute__((always_inline)) void normal_pair(std::uint64_t r, std::uint64_t a, double& first,
                                                       double& second) {
    constexpr std::uint64_t kSqrtHalfBits = 0x3FE6A09E667F3BCD;
    constexpr double kLn2High = 0.6931471803691238;
    constexpr double kLn2Low = 1.9082149292705877e-10;

    // The radius, √(−2 ln u) for u = (r + ½) / 2^64: u = 2^(−n) m with m in [√½, √2), and s = (m − 1) / (m + 1).
    const double d = unsigned_to_double(r) + 0.5;
    const std::uint64_t t = bits<std::uint64_t>(d) - kSqrtHalfBits + 64 * kExponentOne;
    const double m = bits<double>((t & kSignificand) + kSqrtHalfBits);
    const double f = m - 1.0;
    const double s = f / (2.0 + f);
    const double n = 128.0 - (bits<double>((t >> 52) | bits<std::uint64_t>(0x1p52)) - 0x1p52);

    // The angle, v π/2 for v in [−½, ½).
    const double v = bits<double>(((a >> 10) & kSignificand) | bits<std::uint64_t>(1.0)) - 1.5;
    const double square = v * v;

    const double z = s * s;
    double log = z * kLog[0], sine = square * kSin[0], arc = square * kCos[0];
    for (int i = 1; i < 6; ++i) {
        log = (log + kLog[i]) * z;
        sine = (sine + kSin[i]) * square;
        arc = (arc + kCos[i]) * square;
    }
    const double log_m = (s + s) + s * (z * (log + kLog[6]));
    const double e = n * kLn2High + (n * kLn2Low - log_m);
    const double radius = __builtin_sqrt(e + e);
    sine = v * (sine + kSin[6]);
    arc = 1.0 + square * (arc + kCos[6]);

    // One of four arcs: bit 62 asks for the other sign of the cosine, then bit 63 for an exchange. All ones where it
    // does; an arithmetic shift is what AVX2 lacks, a subtraction is not.
    const std::uint64_t cosine_bits = bits<std::uint64_t>(arc) ^ ((a & (std::uint64_t{1} << 62)) << 1);
    const std::uint64_t sine_bits = bits<std::uint64_t>(sine);
    const std::uint64_t exchange = std::uint64_t{0} - (a >> 63);
    const std::uint64_t difference = (cosine_bits ^ sine_bits) & exchange;
    first = radius * bits<double>(cosine_bits ^ difference);
    second = radius * bits<double>(sine_bits ^ difference);
}

// Calls sink(i, the normal at position i of the group) for all 128 of them, in an order that suits the vectoriser: what
// the sink writes must not depend on it. They are used where they are made, without a trip through memory.
template <class Sink>
inline __attribute__((always_inline)) void normal_group(const Stream& stream, std::uint64_t group, Sink sink) {
    ChaChaPairs words;
    chacha20(stream, static_cast<std::uint32_t>(group * kLanes), words);
    for (int p = 0; p < 4; ++p) {
#pragma GCC ivdep
        for (int b = 0; b < kLanes; ++b) {
            double first, second;
            normal_pair(words.pair[2 * p][b], words.pair[2 * p + 1][b], first, second);
            sink(32 * p + b, first);
            sink(32 * p + kLanes + b, second);
        }
    }
}
