// Plain C++, for every CPU.

#include "dense.h"
#include "sums.h"

namespace river {
namespace {

struct Scalar {
  static constexpr int kLanes = 1, kRegs = kBlock, kSums = 2 * kBlock, kRowsAtOnce = 1;
  using F = float;
  using I = int32_t;
  using B = uint32_t;  // four bytes

  static F zero() { return 0.0f; }
  static F set(float value) { return value; }
  static F load_bf16(const uint16_t* p) { return widened(*p); }
  static void store_bf16(uint16_t* p, F value) { *p = rounded(value); }
  static F add(F a, F b) { return a + b; }
  static F mul(F a, F b) { return a * b; }
  static F less(F a, F b, F c) { return __builtin_fmaf(-b, c, a); }
  static F fma(F a, F b, F c) { return __builtin_fmaf(a, b, c); }

  static I none() { return 0; }
  static F to_float(I value) { return static_cast<float>(value); }
  static B bytes(const void* p) {
    B value;
    std::memcpy(&value, p, sizeof value);
    return value;
  }
  static B broadcast(const void* p) { return bytes(p); }
  static B low(B line) { return line & 0x0f0f0f0f; }
  static B high(B line) { return low(line >> 4); }
  static I dot(I sum, B low, B high, B x0, B x1) {
    for (int byte = 0; byte < 4; ++byte)
      sum += of(low, byte) * static_cast<int8_t>(of(x0, byte)) +
             of(high, byte) * static_cast<int8_t>(of(x1, byte));
    return sum;
  }
  template <int kFeature>
  static F code(B line) {
    return static_cast<float>(of(kFeature < 4 ? low(line) : high(line), kFeature % 4));
  }

 private:
  static int of(B four, int byte) { return four >> (8 * byte) & 255; }
};

bool runs() { return true; }

}  // namespace

extern const Backend scalar{"scalar", runs, int8_product<Scalar>, float_product<Scalar>, transition,
                            candidates, dense_product<Scalar>};

}  // namespace river
