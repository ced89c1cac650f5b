// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011), and the standard normals made from it. Stateless: a number depends
// on the seed and on what it is for, never on who draws it or in which order.
#pragma once

#include <cstring>

#include "index.h"

namespace tcwarp {

struct Words4 {
  uint32_t word[4];
};

TCWARP_HOST_DEVICE Words4 philox4x32(Words4 counter, uint32_t key0,
                                     uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter.word[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter.word[2];
    counter = {{static_cast<uint32_t>(product1 >> 32) ^ counter.word[1] ^ key0,
                static_cast<uint32_t>(product1),
                static_cast<uint32_t>(product0 >> 32) ^ counter.word[3] ^ key1,
                static_cast<uint32_t>(product0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

// In the open interval (0, 1): its logarithm is finite.
TCWARP_HOST_DEVICE double uniform(uint32_t word) {
  return (word + 0.5) * (1.0 / 4294967296.0);
}

template <typename To, typename From>
TCWARP_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// The two functions of Box and Muller take whole words and have no branches, so
// that a compiler takes several side by side. Polynomials of least error (of a
// fit in the nodes of Chebyshev: below 1e-17 relative); results are right to
// 3e-16.

// sqrt(-2 log(uniform(word))).
TCWARP_HOST_DEVICE double normal_radius(uint32_t word) {
  // 2^32 times the uniform: m * 2^exponent with m in [sqrt(1/2), sqrt(2)).
  const double value =
      static_cast<int32_t>(word ^ 0x80000000) + (2147483648.0 + 0.5);
  constexpr uint64_t root = 0x3FE6A09E667F3BCD;  // sqrt(1/2)
  constexpr uint64_t one = uint64_t{1} << 52;    // of the exponent
  const uint64_t bits = bits_as<uint64_t>(value);
  const uint64_t above = (bits - root + one) >> 52;  // 1 + exponent, unsigned
  const double m = bits_as<double>(bits + one - (above << 52));
  // As the digits of 2^52 + above: vectors of AVX2 convert no 64-bit integers.
  const double exponent =
      bits_as<double>(above | 0x4330000000000000) - (4503599627370496.0 + 33);
  const double s = (m - 1) / (m + 1), z = s * s;  // log(m) = 2 artanh(s)
  double p = 0.1461644968504340586;
  p = p * z + 0.15331721600556041269;
  p = p * z + 0.1818288912526172208;
  p = p * z + 0.22222211134795079855;
  p = p * z + 0.28571428625975484921;
  p = p * z + 0.3999999999989950449;
  p = p * z + 0.66666666666666696862;
  const double log = exponent * 0.69314718055994530942 + (2 * s + s * z * p);
  return std::sqrt(-2 * log);
}

// sin(2 pi uniform(word)); the cosine is the sine a quarter of 2^32 on.
TCWARP_HOST_DEVICE double sine_of_turn(uint32_t word) {
  // Mirrored into the half turn around 0, then counted in quarters.
  const uint32_t beyond = (word ^ (word << 1)) >> 31;
  const uint32_t mirrored = word ^ ((0 - beyond) & 0x7FFFFFFF);
  const double y =
      (static_cast<int32_t>(mirrored) + 0.5) * (1.0 / 1073741824.0);
  const double z = y * y;
  double p = 5.8729757447999501384e-12;
  p = p * z - 6.684416831856084348e-10;
  p = p * z + 5.6921364280986252458e-8;
  p = p * z - 3.5988430204672575218e-6;
  p = p * z + 1.6044118471309159184e-4;
  p = p * z - 0.0046817541353042553228;
  p = p * z + 0.079692626246165639827;
  p = p * z - 0.64596409750624620097;
  p = p * z + 1.5707963267948966189;
  return y * p;
}

constexpr uint32_t kQuarterTurn = 1 << 30;

// Normal number `which` (0, 1 or 2) of one draw, by Box and Muller.
TCWARP_HOST_DEVICE double normal(const Words4& words, int which) {
  return normal_radius(words.word[which < 2 ? 0 : 2]) *
         sine_of_turn(words.word[which < 2 ? 1 : 3] +
                      (which == 1 ? 0 : kQuarterTurn));
}

// Of a mode (kz, ky, kx) of one sample; its normals are those of the
// components.
TCWARP_HOST_DEVICE Words4 mode_words(int64_t seed, uint32_t sample, uint32_t kz,
                                     uint32_t ky, uint32_t kx) {
  return philox4x32({{kx, ky, kz, sample}}, static_cast<uint32_t>(seed),
                    static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
}

// Whether sample `sample` of a batch is drawn as the identity. Its words are
// those of no mode: none has index 2^32 - 1.
TCWARP_HOST_DEVICE bool draws_identity(int64_t seed, uint32_t sample,
                                       double probability) {
  constexpr uint32_t last = 0xFFFFFFFF;
  return uniform(mode_words(seed, sample, last, last, last).word[0]) <
         probability;
}

}  // namespace tcwarp
