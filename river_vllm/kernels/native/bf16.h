// 4-bit weights times bf16 activations by AVX-512's bf16 instructions, which accumulate in float32.
//
// A code minus 8 is a small integer and exact in bf16, so no product is rounded; scale and zero
// point are applied once for each group.
//
// Shifting a line right by 0, 4, 8 and 12 bits brings the codes of input features (0, 2), (4, 6),
// (1, 3) and (5, 7) into the low bits of each half of a 32-bit lane, where one table look-up turns
// them into the pairs of bf16 that the instructions multiply. The activations are put into the same
// order beforehand.
#pragma once

#include "avx512.h"

namespace river {
namespace {

constexpr int kPairs = 4;  // of a line

// Activations, each line in the order of the pairs.
struct Ordered {
  uint16_t* values;  // bf16 [m, K]
  float* sums;       // [m, K / group]
};

inline Ordered order_activations(const Weight& weight, const uint16_t* x, int64_t m, int threads) {
  const int64_t groups = m * (weight.k / weight.group), group = weight.group;
  float* const sums = static_cast<float*>(scratch(groups * 4 + m * weight.k * 2 + 64));
  const Ordered to{reinterpret_cast<uint16_t*>(sums + groups), sums};
#pragma omp parallel for num_threads(threads) schedule(static) if (groups * group >= 16384)
  for (int64_t i = 0; i < groups; ++i) {
    const uint16_t* from = x + i * group;
    for (int64_t line = 0; line < group; line += kLine)
      for (int at = 0; at < kLine; ++at) {
        constexpr int kOrder[kLine] = {0, 2, 4, 6, 1, 3, 5, 7};
        to.values[i * group + line + at] = from[line + kOrder[at]];
      }
    sums[i] = sum_of(group, [&](int64_t at) { return widened(from[at]); });
  }
  return to;
}

// bf16 of -8..7, twice: the look-up takes five bits, of which the highest belongs to the next code.
alignas(64) constexpr uint16_t kTable[32] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

template <int kPair>
__m512i pair_of(__m512i line, __m512i table) {
  return _mm512_permutexvar_epi16(_mm512_srli_epi32(line, 4 * kPair), table);
}

struct Bf16 {
  using V = Avx512;
  struct Dot {
    __m512 first, second;
  };
  Ordered x;

  static Dot none() { return {_mm512_setzero_ps(), _mm512_setzero_ps()}; }

  template <int kRows, int kAtOnce>
  static inline __attribute__((always_inline)) void line(Dot (&dots)[kRows][kAtOnce][V::kRegs],
                                                         const uint8_t* codes,
                                                         const uint16_t* values, int64_t stride) {
    const __m512i table = _mm512_load_si512(kTable);
    __m512i line[kAtOnce];
    each<kAtOnce>([&](auto b) { line[b] = V::bytes(codes + b * 64); });
    each<kPairs>([&](auto pair) {
      __m512bh code[kAtOnce];
      each<kAtOnce>([&](auto b) { code[b] = __m512bh(pair_of<pair>(line[b], table)); });
      each<kRows>([&](auto r) {
        const __m512bh of_row = __m512bh(V::broadcast(values + r * stride + pair * 2));
        each<kAtOnce>([&](auto b) {
          auto& sum = pair % 2 ? dots[r][b][0].second : dots[r][b][0].first;
          sum = _mm512_dpbf16_ps(sum, code[b], of_row);
        });
      });
    });
  }

  static __m512 dot(const Dot& sums) { return _mm512_add_ps(sums.first, sums.second); }
  // Minus 8, as the codes.
  static __m512 zero(const uint16_t* p) {
    return _mm512_sub_ps(V::load_bf16(p), _mm512_set1_ps(8.0f));
  }
  static __m512 scale(__m512 of_weight, int64_t) { return of_weight; }
};

inline void bf16_product(const Weight* weight, const uint16_t* x, const uint16_t* bias, uint16_t* y,
                         int64_t m, int threads) {
  by_parts(*weight, x, y, m, [&](const uint16_t* from, uint16_t* to, int64_t rows) {
    const Bf16 kind{order_activations(*weight, from, rows, threads)};
    product<4>(kind, *weight, bias, to, rows, threads);  // two accumulators each: four rows fit
  });
}

}  // namespace
}  // namespace river
