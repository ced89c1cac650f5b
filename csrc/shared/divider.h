// Division by a number that stays the same: once in advance on the host, then
// a multiplication and a shift instead of some twenty instructions.
#pragma once

#include "index.h"

namespace tcwarp {

// Quotients of numbers that are not negative. I is their type: int32_t or
// int64_t, which takes the division as it is.
template <typename I>
struct Divider {
  I divisor = 1;
  uint32_t multiplier = 1;
  int32_t shift = 0;

  Divider() = default;

  // Granlund and Montgomery, "Division by invariant integers using
  // multiplication", 1994: exact below 2^31.
  explicit Divider(I divisor_) : divisor(divisor_) {
    while ((int64_t{1} << shift) < divisor) ++shift;
    const uint64_t power = uint64_t{1} << shift;
    const uint64_t by = static_cast<uint64_t>(divisor);
    multiplier =
        static_cast<uint32_t>((uint64_t{1} << 32) * (power - by) / by + 1);
  }

  TCWARP_HOST_DEVICE I quotient(I value) const {
    if constexpr (sizeof(I) == 4) {
      const auto n = static_cast<uint32_t>(value);
      const auto high =
          static_cast<uint32_t>((static_cast<uint64_t>(n) * multiplier) >> 32);
      return static_cast<I>((high + n) >> shift);
    } else {
      return value / divisor;
    }
  }

  TCWARP_HOST_DEVICE I divide(I value, I& rest) const {
    const I whole = quotient(value);
    rest = value - whole * divisor;
    return whole;
  }
};

}  // namespace tcwarp
