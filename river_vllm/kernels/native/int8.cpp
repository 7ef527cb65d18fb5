// 4-bit weights times activations rounded to 8 bits, one scale a[m, g] for each group of a row.
//
// The integer sums of a group are exact (127 * 15 * 128 < 2^31), and both paths add the groups in
// the same order: a row's result is the same to the bit on either, whatever is beside it.

#include <algorithm>
#include <cmath>
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

inline __m512i even(__m512i line) { return _mm512_and_si512(line, _mm512_set1_epi8(15)); }
inline __m512i odd(__m512i line) { return even(_mm512_srli_epi16(line, 4)); }

// A few rows by AVX-512 VNNI; the weights are unpacked once for all of them.
template <int kRows, int kBlocks>
void vnni(const Problem& p, int64_t row, int64_t block) {
  const int64_t groups = p.k / p.group;
  __m512 sum[kRows][kBlocks];
  for (auto& of_row : sum)
    for (auto& value : of_row) value = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    __m512i first[kRows][kBlocks], second[kRows][kBlocks];
    for (int r = 0; r < kRows; ++r)
      for (int b = 0; b < kBlocks; ++b) first[r][b] = second[r][b] = _mm512_setzero_si512();
    for (int64_t at = g * p.group; at < (g + 1) * p.group; at += kLine) {
      __m512i lines[kBlocks];
      for (int b = 0; b < kBlocks; ++b) lines[b] = load_line(p.line(block + b, at));
      for (int r = 0; r < kRows; ++r) {
        int32_t pair[2];
        std::memcpy(pair, p.x + (row + r) * p.k + at, sizeof pair);
        const __m512i x0 = _mm512_set1_epi32(pair[0]), x1 = _mm512_set1_epi32(pair[1]);
        for (int b = 0; b < kBlocks; ++b) {
          first[r][b] = _mm512_dpbusd_epi32(first[r][b], even(lines[b]), x0);
          second[r][b] = _mm512_dpbusd_epi32(second[r][b], odd(lines[b]), x1);
        }
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t at = p.of_group(block + b, g);
      const __m512 scale = load_bf16(p.scales + at), zero = load_bf16(p.zeros + at);
      for (int r = 0; r < kRows; ++r) {
        const __m512i dot = _mm512_add_epi32(first[r][b], second[r][b]);
        sum[r][b] = p.add(sum[r][b], dot, scale, zero, (row + r) * groups + g);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b)
    for (int r = 0; r < kRows; ++r)
      store_bf16(p.y + (row + r) * p.n + (block + b) * kLanes,
                 _mm512_add_ps(sum[r][b], bias_of(p.bias, block + b)));
}

template <int kBlocks>
void vnni_rows(const Problem& p, int64_t m, int64_t block) {
  int64_t row = 0;
  for (; row + 4 <= m; row += 4) vnni<4, kBlocks>(p, row, block);
  switch (m - row) {
    case 3: vnni<3, kBlocks>(p, row, block); break;
    case 2: vnni<2, kBlocks>(p, row, block); break;
    case 1: vnni<1, kBlocks>(p, row, block); break;
    default: break;
  }
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
  vnni_rows<kBlocks>(p, rows, block);
}

// Symmetric int8 with one scale; nearest, ties to even.
void quantize(const uint16_t* x, int64_t size, int8_t* out, float* scale, float* sum) {
  float largest = 0;
  for (int64_t i = 0; i < size; ++i) largest = std::max(largest, std::fabs(to_float(x[i])));
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  int32_t total = 0;
  for (int64_t i = 0; i < size; ++i) {
    const int32_t value = int32_t(std::nearbyintf(to_float(x[i]) * inverse));
    out[i] = int8_t(value);
    total += value;
  }
  *scale = largest / 127.0f;
  *sum = float(total);
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
