// A packed 4-bit weight, and what both kernels do with it.
//
//   y[m, n] = sum_g s[n, g] (sum_k q[n, k] x[m, k] - z[n, g] sum_k x[m, k])
//
// q: codes 0..15; s, z: scale and zero of a group of input features.
//
// For 16 output features (a block) and 8 input features the codes are one 64-byte line. Byte 4 c + i
// holds input feature i of output feature c in its low nibble and input feature 4 + i in its high
// one. A product works on two blocks at a time, so their lines, and their groups' scales and zeros,
// lie by turns: it reads one stream, which the prefetchers follow (docs/experiments.md). A last odd
// block lies by itself.

#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

namespace river {

constexpr int kLanes = 16;  // output features of a block, float32 lanes of a register
constexpr int kLine = 8;    // input features of a line
constexpr int kAhead = 4096;  // bytes that the prefetch runs ahead

// Filled in by Python (kernels/native/kernel.py), in this order.
struct Weight {
  const uint8_t* codes;    // [N / 32, K / 8, 2, 64]
  const uint16_t* scales;  // bf16 [N / 32, K / group, 2, 16]
  const uint16_t* zeros;   // bf16 [N / 32, K / group, 2, 16]
  int64_t n, k, group;

  const uint8_t* line(int64_t block, int64_t feature) const {
    return codes + place(block, k / kLine, feature / kLine) * 64;
  }
  int64_t of_group(int64_t block, int64_t g) const { return place(block, k / group, g) * kLanes; }

 private:
  // Of a block's item `i` of `count`, among all blocks' items.
  int64_t place(int64_t block, int64_t count, int64_t i) const {
    const int64_t second = block & 1, first = block - second;
    const int64_t width = first + 1 < n / kLanes ? 2 : 1;
    return first * count + i * width + second;
  }
};

// what(0), what(1), … with constants: a loop that is unrolled later leaves arrays of registers in
// memory.
template <typename Do, int... kAt>
inline __attribute__((always_inline)) void each(const Do& what,
                                                std::integer_sequence<int, kAt...>) {
  (what(std::integral_constant<int, kAt>{}), ...);
}
template <int kCount, typename Do>
inline __attribute__((always_inline)) void each(const Do& what) {
  each(what, std::make_integer_sequence<int, kCount>{});
}

// what(count, row) until all rows are done: kMost at a time, then fewer and fewer.
template <int kMost, typename Do>
void by_rows(int64_t row, int64_t rows, const Do& what) {
  for (; row + kMost <= rows; row += kMost) what(std::integral_constant<int, kMost>{}, row);
  if constexpr (kMost > 1) by_rows<kMost - 1>(row, rows, what);
}

inline __m512 load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// To nearest, ties to even.
inline void store_bf16(uint16_t* p, __m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

inline __m512 bias_of(const uint16_t* bias, int64_t block) {
  return bias ? load_bf16(bias + block * kLanes) : _mm512_setzero_ps();
}

// Four bytes of activations, for all lanes.
inline __m512i broadcast(const void* p) {
  int32_t value;
  std::memcpy(&value, p, sizeof value);
  return _mm512_set1_epi32(value);
}

inline __m512i load_line(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p) + kAhead, _MM_HINT_T0);
  return _mm512_loadu_si512(p);
}

}  // namespace river
