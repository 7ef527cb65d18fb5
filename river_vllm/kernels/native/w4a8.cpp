// 4-bit weights times 8-bit activations with AVX-512 VNNI.
//
//   y[m, n] = sum_g s[n, g] a[m, g] (sum_k q[n, k] x[m, k] - z[n, g] sum_k x[m, k])
//
// q: codes 0..15; s, z: scale and zero of a weight group; x: int8 activations of a row with one
// scale a per group. The integer sums are exact (127 * 15 * 128 < 2^31).
//
// Packed codes: for 16 output features and 8 input features one 64-byte line. Byte 4 c + i holds
// input feature i of output feature c in its low nibble and input feature 4 + i in its high one.

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

constexpr int kLanes = 16;

inline float to_float(uint16_t value) {
  uint32_t bits = uint32_t(value) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

inline __m512 load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

inline __m256i round_bf16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

struct Problem {
  const uint8_t* codes;     // [N / 16, K / 8, 64]
  const uint16_t* scales;   // bf16 [N / 16, K / group, 16]
  const uint16_t* zeros;    // bf16 [N / 16, K / group, 16]
  const int8_t* x;          // [M, K]
  const float* x_scales;    // [M, K / group]
  const float* x_sums;      // [M, K / group], of the int8 values
  const uint16_t* bias;     // bf16 [N] or null
  uint16_t* y;              // bf16 [M, N]
  int64_t n, k, group;
};

// Rows and blocks of 16 output features at a time; the weights are unpacked once for all rows.
template <int kRows, int kBlocks>
void tile(const Problem& p, int64_t row, int64_t block) {
  const int64_t groups = p.k / p.group, lines = p.group / 8;
  const __m512i low = _mm512_set1_epi8(15);
  __m512 sum[kRows][kBlocks];
  for (auto& of_row : sum)
    for (auto& value : of_row) value = _mm512_setzero_ps();
  for (int64_t g = 0; g < groups; ++g) {
    __m512i first[kRows][kBlocks], second[kRows][kBlocks];
    for (int r = 0; r < kRows; ++r)
      for (int b = 0; b < kBlocks; ++b) first[r][b] = second[r][b] = _mm512_setzero_si512();
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t at = g * p.group + line * 8;
      __m512i even[kBlocks], odd[kBlocks];
      for (int b = 0; b < kBlocks; ++b) {
        const uint8_t* source = p.codes + (block + b) * p.k * 8 + at * 8;
        const __m512i packed = _mm512_loadu_si512(source);
        _mm_prefetch(reinterpret_cast<const char*>(source) + 1024, _MM_HINT_T0);
        even[b] = _mm512_and_si512(packed, low);
        odd[b] = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low);
      }
      for (int r = 0; r < kRows; ++r) {
        int32_t pair[2];
        std::memcpy(pair, p.x + (row + r) * p.k + at, sizeof pair);
        const __m512i x0 = _mm512_set1_epi32(pair[0]), x1 = _mm512_set1_epi32(pair[1]);
        for (int b = 0; b < kBlocks; ++b) {
          first[r][b] = _mm512_dpbusd_epi32(first[r][b], even[b], x0);
          second[r][b] = _mm512_dpbusd_epi32(second[r][b], odd[b], x1);
        }
      }
    }
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t at = ((block + b) * groups + g) * kLanes;
      const __m512 scale = load_bf16(p.scales + at), zero = load_bf16(p.zeros + at);
      for (int r = 0; r < kRows; ++r) {
        const int64_t of_row = (row + r) * groups + g;
        const __m512 dot =
            _mm512_cvtepi32_ps(_mm512_add_epi32(first[r][b], second[r][b]));
        const __m512 shift = _mm512_mul_ps(zero, _mm512_set1_ps(p.x_sums[of_row]));
        const __m512 weight = _mm512_mul_ps(scale, _mm512_set1_ps(p.x_scales[of_row]));
        sum[r][b] = _mm512_fmadd_ps(_mm512_sub_ps(dot, shift), weight, sum[r][b]);
      }
    }
  }
  for (int b = 0; b < kBlocks; ++b) {
    const int64_t at = (block + b) * kLanes;
    const __m512 bias = p.bias ? load_bf16(p.bias + at) : _mm512_setzero_ps();
    for (int r = 0; r < kRows; ++r)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p.y + (row + r) * p.n + at),
                          round_bf16(_mm512_add_ps(sum[r][b], bias)));
  }
}

template <int kBlocks>
void rows(const Problem& p, int64_t m, int64_t block) {
  int64_t row = 0;
  for (; row + 4 <= m; row += 4) tile<4, kBlocks>(p, row, block);
  switch (m - row) {
    case 3: tile<3, kBlocks>(p, row, block); break;
    case 2: tile<2, kBlocks>(p, row, block); break;
    case 1: tile<1, kBlocks>(p, row, block); break;
    default: break;
  }
}

// Symmetric int8 with one scale per group of a row; nearest, ties to even.
void quantize_group(const uint16_t* x, int64_t size, int8_t* out, float* scale, float* sum) {
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

extern "C" void river_w4a8(const uint8_t* codes, const uint16_t* scales, const uint16_t* zeros,
                           const uint16_t* x, const uint16_t* bias, uint16_t* y, int8_t* x_codes,
                           float* x_scales, float* x_sums, int64_t m, int64_t n, int64_t k,
                           int64_t group, int threads) {
  const int64_t groups = k / group, blocks = n / kLanes, pairs = blocks / 2;
  const Problem p{codes, scales, zeros, x_codes, x_scales, x_sums, bias, y, n, k, group};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < m * groups; ++i)
      quantize_group(x + i * group, group, x_codes + i * group, x_scales + i, x_sums + i);
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < pairs; ++pair) rows<2>(p, m, pair * 2);
  }
  if (blocks % 2) rows<1>(p, m, blocks - 1);
}
