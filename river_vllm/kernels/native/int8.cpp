// 4-bit weights times activations rounded to 8 bits, one scale a[m, g] for each group of a row.
//
// The integer sums of a group are exact (127 * 15 * 128 < 2^31), and both paths add the groups in
// the same order: a row's result is the same to the bit on either, whatever is beside it.

#include <algorithm>
#include <vector>

#include "amx.h"
#include "weights.h"

namespace river {
namespace {

struct Problem : Weight {
  const int8_t* x;        // [M, K]
  const float* x_scales;  // [M, K / group]
  const float* x_sums;    // [M, K / group], of the int8 values
  const uint16_t* bias;   // bf16 [N] or null
  uint16_t* y;            // bf16 [M, N]

  // sum + s a (dot - z sum_k x)
  __m512 add(__m512 sum, __m512i dot, __m512 scale, __m512 zero, int64_t of_row) const {
    const __m512 shift = _mm512_mul_ps(zero, _mm512_set1_ps(x_sums[of_row]));
    const __m512 weight = _mm512_mul_ps(scale, _mm512_set1_ps(x_scales[of_row]));
    return _mm512_fmadd_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(dot), shift), weight, sum);
  }
};

constexpr int kRowsAtOnce = 8;  // as many sums as there are registers for

// What the instruction adds up; as __m512i the compiler copies it twice for each of them.
using Dots = int32_t __attribute__((vector_size(64)));

inline void add_products(Dots& dots, __m512i codes, __m512i x) {
  dots = Dots(_mm512_dpbusd_epi32(__m512i(dots), codes, x));
}

inline __m512i even(__m512i line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
inline __m512i odd(__m512i line) { return even(_mm512_srli_epi16(line, 4)); }

// A few rows by AVX-512 VNNI; the weights are unpacked once for all of them.
template <int kRows, int kBlocks>
void vnni(const Problem& p, int64_t row, int64_t block) {
  const int64_t groups = p.k / p.group;
  const uint8_t* codes = p.line(block, 0);
  const int8_t* x = p.x + row * p.k;
  __m512 sum[kRows][kBlocks] = {};
  for (int64_t g = 0; g < groups; ++g) {
    Dots dots[kRows][kBlocks] = {};
    for (int64_t i = 0; i < p.group; i += kLine, codes += kBlocks * 64, x += kLine) {
      __m512i low[kBlocks], high[kBlocks];
      each<kBlocks>([&](auto b) {
        const __m512i line = load_line(codes + b * 64);
        low[b] = even(line);
        high[b] = odd(line);
      });
      each<kRows>([&](auto r) {
        const __m512i x0 = broadcast(x + r * p.k), x1 = broadcast(x + r * p.k + 4);
        each<kBlocks>([&](auto b) {
          add_products(dots[r][b], low[b], x0);
          add_products(dots[r][b], high[b], x1);
        });
      });
    }
    each<kBlocks>([&](auto b) {
      const int64_t at = p.of_group(block + b, g);
      const __m512 scale = load_bf16(p.scales + at), zero = load_bf16(p.zeros + at);
      each<kRows>([&](auto r) {
        sum[r][b] = p.add(sum[r][b], __m512i(dots[r][b]), scale, zero, (row + r) * groups + g);
      });
    });
  }
  each<kRows>([&](auto r) {
    each<kBlocks>([&](auto b) {
      store_bf16(p.y + (row + r) * p.n + (block + b) * kLanes,
                 _mm512_add_ps(sum[r][b], bias_of(p.bias, block + b)));
    });
  });
}

#ifdef RIVER_AMX
constexpr int kFewRows = 4;  // up to here VNNI keeps up with the memory

template <bool kTwo, int kBlocks>
void amx(const Problem& p, int64_t row, int m, int64_t block) {
  constexpr int kMost = 2 * kTileRows;
  const int64_t groups = p.k / p.group, step = std::min<int64_t>(p.group, 64);
  const int8_t* x = p.x + row * p.k;
  alignas(64) uint8_t codes[2][kBlocks][128 * kLanes];
  alignas(64) int32_t dots[kBlocks][kMost][kLanes];
  alignas(64) float sums[kBlocks][kMost][kLanes] = {};
  for (int64_t g = 0; g < groups; ++g) {
    auto& unpacked = codes[g & 1];  // the tiles may still be reading the other one
    for (int b = 0; b < kBlocks; ++b)
      for (int64_t i = 0; i < p.group; i += kLine) {
        const __m512i line = load_line(p.line(block + b, g * p.group + i));
        _mm512_store_si512(unpacked[b] + i * kLanes, even(line));
        _mm512_store_si512(unpacked[b] + i * kLanes + kTileBytes, odd(line));
      }
    zero_results<kTwo, kBlocks>();
    for (int64_t i = 0; i < p.group; i += step) {
      const int8_t* at = x + g * p.group + i;
      _tile_loadd(4, at, p.k);
      _tile_loadd(6, unpacked[0] + i * kLanes, kTileBytes);
      _tile_dpbsud(0, 4, 6);
      if constexpr (kTwo) {
        _tile_loadd(5, at + kTileRows * p.k, p.k);
        _tile_dpbsud(1, 5, 6);
      }
      if constexpr (kBlocks > 1) {
        _tile_loadd(7, unpacked[1] + i * kLanes, kTileBytes);
        _tile_dpbsud(2, 4, 7);
        if constexpr (kTwo) _tile_dpbsud(3, 5, 7);
      }
    }
    store_results<kTwo, kBlocks>(dots);
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t at = p.of_group(block + b, g);
      const __m512 scale = load_bf16(p.scales + at), zero = load_bf16(p.zeros + at);
      for (int r = 0; r < m; ++r) {
        float* sum = sums[b][r];
        const __m512i dot = _mm512_load_si512(dots[b][r]);
        _mm512_store_ps(
            sum, p.add(_mm512_load_ps(sum), dot, scale, zero, (row + r) * groups + g));
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b)
    for (int r = 0; r < m; ++r)
      store_bf16(p.y + (row + r) * p.n + (block + b) * kLanes,
                 _mm512_add_ps(_mm512_load_ps(sums[b][r]), bias_of(p.bias, block + b)));
}

template <int kBlocks>
void amx_rows(const Problem& p, int64_t rows, int64_t block) {
  const int depth = int(std::min<int64_t>(p.group, 64) / 4);
  for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
    const int m = int(std::min<int64_t>(rows - row, 2 * kTileRows));
    configure(m, depth);
    if (m > kTileRows)
      amx<true, kBlocks>(p, row, m, block);
    else
      amx<false, kBlocks>(p, row, m, block);
  }
  _tile_release();
}
#endif

template <int kBlocks>
void product(const Problem& p, int64_t rows, int64_t block) {
#ifdef RIVER_AMX
  if (rows > kFewRows && amx_allowed()) return amx_rows<kBlocks>(p, rows, block);
#endif
  by_rows<kRowsAtOnce>(0, rows, [&](auto count, int64_t row) {
    vnni<count, kBlocks>(p, row, block);
  });
}

// Symmetric int8 with one scale; nearest, ties to even.
void quantize(const uint16_t* x, int64_t size, int8_t* out, float* scale, float* sum) {
  __m512 magnitudes = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += kLanes)
    magnitudes = _mm512_max_ps(magnitudes, _mm512_abs_ps(load_bf16(x + i)));
  const float largest = _mm512_reduce_max_ps(magnitudes);
  const __m512 inverse = _mm512_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < size; i += kLanes) {
    const __m512i value = _mm512_cvtps_epi32(_mm512_mul_ps(load_bf16(x + i), inverse));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtepi32_epi8(value));
    total = _mm512_add_epi32(total, value);
  }
  *scale = largest / 127.0f;
  *sum = float(_mm512_reduce_add_epi32(total));
}

}  // namespace
}  // namespace river

// x: bf16 [m, K]; bias: bf16 [N] or null; y: bf16 [m, N].
extern "C" void river_int8(const river::Weight* weight, const uint16_t* x, const uint16_t* bias,
                           uint16_t* y, int64_t m, int threads) {
  using namespace river;
  static thread_local std::vector<int8_t> codes;
  static thread_local std::vector<float> scales, sums;
  const int64_t groups = weight->k / weight->group, blocks = weight->n / kLanes;
  codes.resize(m * weight->k);
  scales.resize(m * groups);
  sums.resize(m * groups);
  int8_t* const to = codes.data();
  float *const scale = scales.data(), *const sum = sums.data();
  const Problem p{*weight, to, scale, sum, bias, y};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < m * groups; ++i)
      quantize(x + i * p.group, p.group, to + i * p.group, scale + i, sum + i);
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < blocks / 2; ++pair) product<2>(p, m, pair * 2);
  }
  if (blocks % 2) product<1>(p, m, blocks - 1);
}
