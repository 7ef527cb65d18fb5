// 4-bit weights times bf16 activations by AVX-512's bf16 instructions, summed in float32.
//
// A code less 8 is a small whole number and exact in bf16, so nothing is rounded before the sum;
// scale and zero point come in once for each group.
//
// Shifting a line right by 0, 4, 8 and 12 bits brings the codes of input features (0, 2), (4, 6),
// (1, 3) and (5, 7) into the low bits of each half of a 32-bit lane, where one table look-up turns
// them into the pairs of bf16 that the instructions multiply. The activations are brought into the
// same order once.
#pragma once

#include "avx512.h"

namespace river {
namespace {

constexpr int kPairs = 4;  // of a line

// Activations in the order of the pairs.
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

// bf16 of -8..7, twice: the look-up takes five bits, of which the highest belongs to a neighbour.
alignas(64) constexpr uint16_t kTable[32] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

template <int kPair>
__m512i pair_of(__m512i line, __m512i table) {
  return _mm512_permutexvar_epi16(_mm512_srli_epi32(line, 4 * kPair), table);
}

// Of a group's codes less 8.
inline __m512 shifted_zero(const uint16_t* zero) {
  return _mm512_sub_ps(Avx512::load_bf16(zero), _mm512_set1_ps(8.0f));
}

template <int kRows, int kWidth>
void bf16_rows(const Blocks<kWidth>& blocks, const Ordered& x, const uint16_t* bias, uint16_t* y,
               int64_t row) {
  const Weight& w = blocks.weight;
  const int64_t groups = w.k / w.group;
  const __m512i table = _mm512_load_si512(kTable);
  const uint8_t* codes = blocks.line(0);
  const uint16_t* values = x.values + row * w.k;
  Sums<Avx512, kRows, kWidth> sums;
  for (int64_t g = 0; g < groups; ++g) {
    __m512 first[kRows][kWidth] = {}, second[kRows][kWidth] = {};
    for (int64_t i = 0; i < w.group; i += kLine, codes += kWidth * 64, values += kLine) {
      __m512i line[kWidth];
      each<kWidth>([&](auto b) {
        __builtin_prefetch(codes + b * 64 + kAhead);
        line[b] = Avx512::bytes(codes + b * 64);
      });
      each<kPairs>([&](auto pair) {
        __m512bh code[kWidth];
        each<kWidth>([&](auto b) { code[b] = __m512bh(pair_of<pair>(line[b], table)); });
        each<kRows>([&](auto r) {
          const __m512bh of_row = __m512bh(Avx512::broadcast(values + r * w.k + pair * 2));
          auto& to = pair % 2 ? second : first;
          each<kWidth>([&](auto b) { to[r][b] = _mm512_dpbf16_ps(to[r][b], code[b], of_row); });
        });
      });
    }
    each<kWidth>([&](auto b) {
      const int64_t at = blocks.of_group(g, b);
      const __m512 scale = Avx512::load_bf16(w.scales + at), zero = shifted_zero(w.zeros + at);
      each<kRows>([&](auto r) {
        auto& sum = sums.of[r][b][0];
        sum = added<Avx512>(sum, _mm512_add_ps(first[r][b], second[r][b]), scale, zero,
                            x.sums[(row + r) * groups + g]);
      });
    });
  }
  sums.store(blocks, bias, y + row * w.n);
}

inline void bf16_product(const Weight* weight, const uint16_t* x, const uint16_t* bias, uint16_t* y,
                         int64_t m, int threads) {
  constexpr int kRowsAtOnce = 4;  // twice as many sums as registers for eight
  const Ordered ordered = order_activations(*weight, x, m, threads);
  by_blocks(*weight, threads, [&](const auto& blocks) {
    by_rows<kRowsAtOnce>(blocks, m, [&](auto count, int64_t row) {
      bf16_rows<count>(blocks, ordered, bias, y, row);
    });
  });
}

}  // namespace
}  // namespace river
