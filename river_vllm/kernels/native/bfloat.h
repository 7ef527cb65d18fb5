// bfloat16 as bits, for loops that the compiler turns into vectors by itself.
#pragma once

#include <cstdint>
#include <cstring>

namespace river {

inline float widened(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

// The bits of the nearest bfloat16, ties to even, in the upper half; not a number stays one.
inline uint32_t rounded_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
  return value == value ? nearest : 0x7fc00000;
}

}  // namespace river
