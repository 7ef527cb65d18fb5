// -march=armv8.2-a+dotprod
#include <arm_neon.h>
#include <sys/auxv.h>

#include "dense.h"
#include "sums.h"

namespace river {
namespace {

struct Neon {
  static constexpr int kLanes = 4, kRegs = 4, kSums = 16, kRowsAtOnce = 4;
  using F = float32x4_t;
  using I = int32x4_t;
  using B = uint8x16_t;

  static F zero() { return vdupq_n_f32(0.0f); }
  static F set(float value) { return vdupq_n_f32(value); }
  static F load_bf16(const uint16_t* p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16));
  }
  // Rounds to nearest, ties to even; NaN stays NaN.
  static void store_bf16(uint16_t* p, F value) {
    const uint32x4_t bits = vreinterpretq_u32_f32(value);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t nearest = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t is_number = vceqq_f32(value, value);
    vst1_u16(p, vshrn_n_u32(vbslq_u32(is_number, nearest, vdupq_n_u32(0x7fc0u << 16)), 16));
  }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F less(F a, F b, F c) { return vfmsq_f32(a, b, c); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }

  static I none() { return vdupq_n_s32(0); }
  static F to_float(I value) { return vcvtq_f32_s32(value); }
  static B bytes(const uint8_t* p) { return vld1q_u8(p); }
  static B broadcast(const void* p) {
    uint32_t value;
    std::memcpy(&value, p, sizeof value);
    return vreinterpretq_u8_u32(vdupq_n_u32(value));
  }
  static B low(B line) { return vandq_u8(line, vdupq_n_u8(15)); }
  static B high(B line) { return vshrq_n_u8(line, 4); }
  static I dot(I sum, B low, B high, B x0, B x1) {
    // Codes are 0..15, so they are the same as signed bytes.
    sum = vdotq_s32(sum, vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(x0));
    return vdotq_s32(sum, vreinterpretq_s8_u8(high), vreinterpretq_s8_u8(x1));
  }
  template <int kFeature>
  static F code(B line) {
    constexpr int kShift = kFeature % 4 * 8 + kFeature / 4 * 4;
    uint32x4_t lanes = vreinterpretq_u32_u8(line);
    if constexpr (kShift > 0) lanes = vshrq_n_u32(lanes, kShift);
    return vcvtq_f32_u32(vandq_u32(lanes, vdupq_n_u32(15)));
  }
};

bool runs() { return getauxval(AT_HWCAP) & (1ul << 20); }  // HWCAP_ASIMDDP

}  // namespace

extern const Backend neon{"neon", runs, int8_product<Neon>, float_product<Neon>, transition,
                          candidates, dense_product<Neon>};

}  // namespace river
