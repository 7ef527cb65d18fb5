// Vectors of sixteen lanes: AVX-512 (F, BW, DQ, VL), and VNNI's dot products of bytes if compiled
// for them.
#pragma once

#include <immintrin.h>

#include "dense.h"
#include "sums.h"

namespace river {
namespace {

struct Avx512 {
  static constexpr int kLanes = 16, kRegs = 1, kSums = 16, kRowsAtOnce = 8;
  using F = __m512;
  // With __m512i the compiler copies an accumulator twice for each product.
  using I = int32_t __attribute__((vector_size(64)));
  using B = __m512i;

  static F zero() { return _mm512_setzero_ps(); }
  static F set(float value) { return _mm512_set1_ps(value); }
  static F load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
  // Rounds to nearest, ties to even; NaN stays NaN.
  static void store_bf16(uint16_t* p, F value) {
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i nearest = _mm512_srli_epi32(
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    const __mmask16 none = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i found = _mm512_mask_set1_epi32(nearest, none, 0x7fc0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(found));
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F less(F a, F b, F c) { return _mm512_fnmadd_ps(b, c, a); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }

  static I none() { return I{}; }
  static F to_float(I value) { return _mm512_cvtepi32_ps(__m512i(value)); }
  static B bytes(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static B broadcast(const void* p) {
    int32_t value;
    std::memcpy(&value, p, sizeof value);
    return _mm512_set1_epi32(value);
  }
  static B low(B line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
  static B high(B line) { return low(_mm512_srli_epi16(line, 4)); }
  static I dot(I sum, B low, B high, B x0, B x1) {
#ifdef __AVX512VNNI__
    return I(_mm512_dpbusd_epi32(_mm512_dpbusd_epi32(__m512i(sum), low, x0), high, x1));
#else
    // Four products of at most 15 * 127 fit into 16 bits.
    const B pairs = _mm512_add_epi16(_mm512_maddubs_epi16(low, x0), _mm512_maddubs_epi16(high, x1));
    return sum + I(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
  }
  template <int kFeature>
  static F code(B line) {
    constexpr int kShift = kFeature % 4 * 8 + kFeature / 4 * 4;
    return _mm512_cvtepi32_ps(
        _mm512_and_si512(_mm512_srli_epi32(line, kShift), _mm512_set1_epi32(15)));
  }
};

}  // namespace
}  // namespace river
