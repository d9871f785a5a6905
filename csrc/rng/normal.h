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

// c0 + z (c1 + z (c2 + … + z c6)), from the inside.
inline __attribute__((always_inline)) double horner(double z, double c0, double c1, double c2, double c3, double c4,
                                                    double c5, double c6) {
    return (((((z * c6 + c5) * z + c4) * z + c3) * z + c2) * z + c1) * z + c0;
}

// √(−2 ln u) for u = (r + ½) / 2^64.
inline __attribute__((always_inline)) double radius(std::uint64_t r) {
    constexpr std::uint64_t kSqrtHalfBits = 0x3FE6A09E667F3BCD;
    constexpr double kLn2High = 0.6931471803691238;
    constexpr double kLn2Low = 1.9082149292705877e-10;
    const double d = unsigned_to_double(r) + 0.5;
    const std::uint64_t t = bits<std::uint64_t>(d) - kSqrtHalfBits + 64 * kExponentOne;
    const double n = 128.0 - (bits<double>((t >> 52) | bits<std::uint64_t>(0x1p52)) - 0x1p52);
    const double m = bits<double>((t & kSignificand) + kSqrtHalfBits);
    const double f = m - 1.0;
    const double s = f / (2.0 + f);
    const double z = s * s;
    const double p = z * horner(z, 0.6666666666666734, 0.39999999999414676, 0.2857142874238801, 0.22222198573157687,
                                0.18183564327008403, 0.1531405053943999, 0.14795949746796902);
    const double log_m = (s + s) + s * p;
    const double e = n * kLn2High + (n * kLn2Low - log_m);
    return __builtin_sqrt(e + e);
}

// A uniform point of the unit circle.
inline __attribute__((always_inline)) void unit_vector(std::uint64_t a, double& x, double& y) {
    const double t = bits<double>(((a >> 10) & kSignificand) | bits<std::uint64_t>(1.0)) - 1.5;
    const double z = t * t;
    const double sine = t * horner(z, 1.5707963267948966, -0.6459640975062443, 0.07969262624603957,
                                   -0.004681754132282415, 0.00016044115029163048, -3.5986417543868745e-06,
                                   5.633721005314096e-08);
    const double arc = 1.0 + z * horner(z, -1.2337005501361697, 0.2536695079010468, -0.02086348076331257,
                                        0.0009192602741910677, -2.5202036788294498e-05, 4.7106096695321593e-07,
                                        -6.32120209209315e-09);
    const std::uint64_t sign = (a & (std::uint64_t{1} << 62)) << 1;
    const std::uint64_t cosine_bits = bits<std::uint64_t>(arc) ^ sign;
    const std::uint64_t sine_bits = bits<std::uint64_t>(sine);
    // All ones where bit 63 asks for the exchange; an arithmetic shift is what AVX2 lacks, a subtraction is not.
    const std::uint64_t exchange = std::uint64_t{0} - (a >> 63);
    const std::uint64_t difference = (cosine_bits ^ sine_bits) & exchange;
    x = bits<double>(cosine_bits ^ difference);
    y = bits<double>(sine_bits ^ difference);
}

// The normals of one group, out[0 … 127].
inline void normal_group(const Stream& stream, std::uint64_t group, double* __restrict out) {
    ChaChaWords w;
    chacha20(stream, static_cast<std::uint32_t>(group * kLanes), w);
    for (int p = 0; p < 4; ++p) {
        const std::uint32_t* __restrict w0 = w.word[4 * p];
        const std::uint32_t* __restrict w1 = w.word[4 * p + 1];
        const std::uint32_t* __restrict w2 = w.word[4 * p + 2];
        const std::uint32_t* __restrict w3 = w.word[4 * p + 3];
        double* __restrict xs = out + 32 * p;
        double* __restrict ys = out + 32 * p + kLanes;
        for (int b = 0; b < kLanes; ++b) {
            const double r = radius(w0[b] | static_cast<std::uint64_t>(w1[b]) << 32);
            double x, y;
            unit_vector(w2[b] | static_cast<std::uint64_t>(w3[b]) << 32, x, y);
            xs[b] = r * x;
            ys[b] = r * y;
        }
    }
}
