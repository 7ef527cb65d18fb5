// Vectors of eight lanes: AVX2 and FMA, and VNNI's dot products of bytes if compiled for them.
#pragma once

#include <immintrin.h>

#include "dense.h"
#include "sums.h"

namespace river {
namespace {

struct Avx2 {
  static constexpr int kLanes = 8, kRegs = 2, kSums = 8, kRowsAtOnce = 4;
  using F = __m256;
  using I = __m256i;
  using B = __m256i;

  static F zero() { return _mm256_setzero_ps(); }
  static F set(float value) { return _mm256_set1_ps(value); }
  static F load_bf16(const uint16_t* p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
  // Rounds to nearest, ties to even; NaN stays NaN.
  static void store_bf16(uint16_t* p, F value) {
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i nearest = _mm256_srli_epi32(
        _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    const __m256i none = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i found = _mm256_blendv_epi8(nearest, _mm256_set1_epi32(0x7fc0), none);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(found, found), 0b1000);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F less(F a, F b, F c) { return _mm256_fnmadd_ps(b, c, a); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }

  static I none() { return _mm256_setzero_si256(); }
  static F to_float(I value) { return _mm256_cvtepi32_ps(value); }
  static B bytes(const uint8_t* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  }
  static B broadcast(const void* p) {
    int32_t value;
    std::memcpy(&value, p, sizeof value);
    return _mm256_set1_epi32(value);
  }
  static B low(B line) { return _mm256_and_si256(line, _mm256_set1_epi8(15)); }
  static B high(B line) { return low(_mm256_srli_epi16(line, 4)); }
  static I dot(I sum, B low, B high, B x0, B x1) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(_mm256_dpbusd_avx_epi32(sum, low, x0), high, x1);
#else
    // Four products of at most 15 * 127 fit into 16 bits.
    const I pairs = _mm256_add_epi16(_mm256_maddubs_epi16(low, x0), _mm256_maddubs_epi16(high, x1));
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
  }
  template <int kFeature>
  static F code(B line) {
    constexpr int kShift = kFeature % 4 * 8 + kFeature / 4 * 4;
    return _mm256_cvtepi32_ps(
        _mm256_and_si256(_mm256_srli_epi32(line, kShift), _mm256_set1_epi32(15)));
  }
};

}  // namespace
}  // namespace river
