// bf16 activations times a 12-bit weight (twelve_bit.py has the form), summed in float32.
//
// A look-up turns 4-bit codes into the high bytes of bf16, and interleaving them with the low bytes
// gives the weights. Compiled once with AVX2's flags and once with AVX-512's.
#ifdef __AVX512BW__
#include "avx512.h"
#else
#include "avx2.h"
#endif

namespace river {
namespace {

#ifdef __AVX512BW__
struct Isa : Avx512 {
  static constexpr int kSumRegisters = 20;
  static B lookup(B table, B at) { return _mm512_shuffle_epi8(table, at); }
  static B first_words(B low, B high) { return _mm512_unpacklo_epi8(low, high); }
  static B last_words(B low, B high) { return _mm512_unpackhi_epi8(low, high); }
  static F even(B words) { return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16)); }
  static F odd(B words) {
    return _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(~0xffff)));
  }
};
#else
struct Isa : Avx2 {
  static constexpr int kSumRegisters = 9;
  static B lookup(B table, B at) { return _mm256_shuffle_epi8(table, at); }
  static B first_words(B low, B high) { return _mm256_unpacklo_epi8(low, high); }
  static B last_words(B low, B high) { return _mm256_unpackhi_epi8(low, high); }
  static F even(B words) { return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16)); }
  static F odd(B words) {
    return _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(~0xffff)));
  }
};
#endif

constexpr int kTogether = 4;   // outputs whose blocks lie by turns
constexpr int kWeights = 128;  // of a block
constexpr int kBytes = 192;    // of a block: 128 low bytes, 64 of two codes each
constexpr int kMostRows = 9;
constexpr int kRegister = Isa::kLanes * 4;  // bytes
constexpr int kWords = kRegister / 2;       // bf16 of a register

struct TwelveBit {
  const uint8_t* blocks;    // [n / 4, k / 128, 4, 192]
  const uint8_t* table;     // [64]: the high bytes of codes 0 to 15, four times
  const int32_t* starts;    // [n + 1]: escapes of output i are those from starts[i] to starts[i + 1]
  const int32_t* columns;   // [escapes]
  const uint16_t* values;   // [escapes], bf16
  int64_t n, k;
};

// Each register of bf16 as two of float32, even words before odd ones: the order of the weights.
void widen(const uint16_t* x, float* to, int64_t size) {
  for (int64_t i = 0; i < size; i += kWords) {
    const auto words = Isa::bytes(reinterpret_cast<const uint8_t*>(x + i));
    const Isa::F halves[] = {Isa::even(words), Isa::odd(words)};
    std::memcpy(to + i, halves, sizeof halves);
  }
}

// Some outputs from n on, of all rows; x [kRows, k] is widened, `given` is not.
template <int kRows, int kOutputs>
void outputs(const TwelveBit& w, const uint16_t* given, const float* x, uint16_t* y, int64_t n) {
  const auto table = Isa::bytes(w.table);
  Isa::F sums[kOutputs][kRows];
  each<kOutputs>([&](auto o) { each<kRows>([&](auto r) { sums[o][r] = Isa::zero(); }); });
  const uint8_t* block = w.blocks + (n / kTogether * (w.k / kWeights) * kTogether + n % kTogether) *
                                        kBytes;
  for (int64_t i = 0; i < w.k; i += kWeights, block += kTogether * kBytes) {
    each<kOutputs * kBytes / 64>([&](auto line) { __builtin_prefetch(block + kAhead + line * 64); });
    each<64 / kRegister>([&](auto part) {
      Isa::B codes[kOutputs];
      each<kOutputs>([&](auto o) { codes[o] = Isa::bytes(block + o * kBytes + 128 + part * kRegister); });
      each<2>([&](auto plane) {
        Isa::B low[kOutputs], high[kOutputs];
        each<kOutputs>([&](auto o) {
          low[o] = Isa::bytes(block + o * kBytes + plane * 64 + part * kRegister);
          high[o] = Isa::lookup(table, plane ? Isa::high(codes[o]) : Isa::low(codes[o]));
        });
        each<2>([&](auto half) {
          Isa::F even[kOutputs], odd[kOutputs];
          each<kOutputs>([&](auto o) {
            const auto words = half ? Isa::last_words(low[o], high[o])
                                    : Isa::first_words(low[o], high[o]);
            even[o] = Isa::even(words);
            odd[o] = Isa::odd(words);
          });
          const float* const values = x + i + plane * 64 + half * 32 + part * kWords;
          each<kRows>([&](auto r) {
            const auto x_even = floats<Isa>(values + r * w.k);
            const auto x_odd = floats<Isa>(values + r * w.k + Isa::kLanes);
            each<kOutputs>([&](auto o) { sums[o][r] = Isa::fma(even[o], x_even, sums[o][r]); });
            each<kOutputs>([&](auto o) { sums[o][r] = Isa::fma(odd[o], x_odd, sums[o][r]); });
          });
        });
      });
    });
  }
  for (int o = 0; o < kOutputs; ++o)
    for (int r = 0; r < kRows; ++r) {
      float sum = total<Isa>(sums[o][r]);
      for (int32_t e = w.starts[n + o]; e < w.starts[n + o + 1]; ++e)
        sum += widened(w.values[e]) * widened(given[r * w.k + w.columns[e]]);
      y[r * w.n + n + o] = rounded(sum);
    }
}

template <int kRows>
void product(const TwelveBit& w, const uint16_t* x, float* values, uint16_t* y, int threads) {
  constexpr int kFit = Isa::kSumRegisters / kRows;
  constexpr int kOutputs = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
  widen(x, values, kRows * w.k);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t first = 0; first < w.n; first += kTogether)
    for (int64_t n = first; n < first + kTogether; n += kOutputs)
      outputs<kRows, kOutputs>(w, x, values, y, n);
}

}  // namespace
}  // namespace river

// y [rows, n] of x [rows, k], 1 to 9 rows; `widened` [rows, k] is room for x in float32.
extern "C" __attribute__((visibility("default"))) void twelve_bit(
    const uint8_t* blocks, const uint8_t* table, const int32_t* starts, const int32_t* columns,
    const uint16_t* values, const uint16_t* x, float* widened, uint16_t* y, int64_t rows, int64_t n,
    int64_t k, int threads) {
  const river::TwelveBit weight{blocks, table, starts, columns, values, n, k};
  river::each<river::kMostRows>([&](auto i) {
    if (rows == i + 1) river::product<i + 1>(weight, x, widened, y, threads);
  });
}
