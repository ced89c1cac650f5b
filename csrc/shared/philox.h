// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011), and the standard normals made from it. Stateless: a number depends
// on the seed and on what it is for, never on who draws it or in which order.
#pragma once

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

// In the open interval (0, 1): the logarithm below never sees 0.
TCWARP_HOST_DEVICE double uniform(uint32_t word) {
  return (word + 0.5) * (1.0 / 4294967296.0);
}

// Normal number `which` (0, 1 or 2) of one draw, by Box and Muller.
TCWARP_HOST_DEVICE double normal(const Words4& words, int which) {
  const double radius =
      std::sqrt(-2.0 * std::log(uniform(words.word[which < 2 ? 0 : 2])));
  const double angle =
      6.283185307179586 * uniform(words.word[which < 2 ? 1 : 3]);
  return radius * (which == 1 ? std::sin(angle) : std::cos(angle));
}

// Whether sample `sample` of a batch is drawn as the identity. Its counter lies
// outside those of the modes, none of which has index 2^32 - 1.
TCWARP_HOST_DEVICE bool draws_identity(int64_t seed, uint32_t sample,
                                       double probability) {
  constexpr uint32_t last = 0xFFFFFFFF;
  const Words4 words =
      philox4x32({{last, last, last, sample}}, static_cast<uint32_t>(seed),
                 static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
  return uniform(words.word[0]) < probability;
}

// The standard normal of mode (kz, ky, kx) of one component of one sample.
TCWARP_HOST_DEVICE double field_normal(int64_t seed, uint32_t sample,
                                       uint32_t kz, uint32_t ky, uint32_t kx,
                                       int component) {
  const Words4 words =
      philox4x32({{kx, ky, kz, sample}}, static_cast<uint32_t>(seed),
                 static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32));
  return normal(words, component);
}

}  // namespace tcwarp
