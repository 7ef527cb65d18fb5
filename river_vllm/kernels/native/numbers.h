// Conversions of bfloat16, for loops that the compiler vectorises by itself.
//
// Everything in this folder's headers is in an unnamed namespace: each back end compiles its own
// copy for its own instruction set, and the linker must not merge the copies.
#pragma once

#include <cstdint>
#include <cstring>

namespace river {
namespace {

inline float widened(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

// The nearest bfloat16, ties to even; NaN stays NaN.
inline uint16_t rounded(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  const uint32_t nearest = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value == value ? nearest : 0x7fc0);
}

}  // namespace
}  // namespace river
