// 4-bit weights times bf16 activations, summed in float32.
//
// A code less 8 is a small whole number and exact in bf16, so nothing is rounded before the sum;
// scale and zero come in once for each group. One path serves every number of rows of a CPU, AMX
// where there is one, so that a row's result does not depend on what is beside it.
//
// Shifting a line right by 0, 4, 8 and 12 bits brings the codes of input features (0, 2), (4, 6),
// (1, 3) and (5, 7) into the low bits of each half of a 32-bit lane, where one table look-up turns
// them into the pairs of bf16 that the instructions multiply. The activations are brought into the
// same order once.

#include <algorithm>
#include <vector>

#include "amx.h"
#include "weights.h"

#ifdef __AVX512BF16__

namespace river {
namespace {

constexpr int kPairs = 4;       // of a line
constexpr int kRowsAtOnce = 4;  // as many sums as there are registers for

struct Problem : Weight {
  const uint16_t* x;     // bf16 [M, K], reordered
  const float* x_sums;   // [M, K / group]
  const uint16_t* bias;  // bf16 [N] or null
  uint16_t* y;           // bf16 [M, N]

  // sum + s (dot - (z - 8) sum_k x)
  __m512 add(__m512 sum, __m512 dot, __m512 scale, __m512 zero, int64_t of_row) const {
    const __m512 shift = _mm512_mul_ps(zero, _mm512_set1_ps(x_sums[of_row]));
    return _mm512_fmadd_ps(_mm512_sub_ps(dot, shift), scale, sum);
  }
  __m512 zero(int64_t at) const {
    return _mm512_sub_ps(load_bf16(zeros + at), _mm512_set1_ps(8.0f));
  }
};

// bf16 of -8..7, twice: the look-up takes five bits, of which the highest belongs to a neighbour.
alignas(64) constexpr uint16_t kTable[32] = {
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,
    0xc100, 0xc0e0, 0xc0c0, 0xc0a0, 0xc080, 0xc040, 0xc000, 0xbf80,
    0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0};

template <int kPair>
__m512i pairs(__m512i line, __m512i table) {
  return _mm512_permutexvar_epi16(_mm512_srli_epi32(line, 4 * kPair), table);
}

#ifdef RIVER_AMX
constexpr int kStep = 32;  // input features of a tile

template <bool kTwo, int kBlocks>
void amx(const Problem& p, int64_t row, int m, int64_t block) {
  constexpr int kMost = 2 * kTileRows;
  const int64_t groups = p.k / p.group, stride = p.k * 2;
  const __m512i table = _mm512_load_si512(kTable);
  const uint16_t* x = p.x + row * p.k;
  alignas(64) uint16_t values[2][kBlocks][128 * kLanes];
  alignas(64) float dots[kBlocks][kMost][kLanes];
  alignas(64) float sums[kBlocks][kMost][kLanes] = {};
  for (int64_t g = 0; g < groups; ++g) {
    auto& unpacked = values[g & 1];  // the tiles may still be reading the other one
    for (int b = 0; b < kBlocks; ++b)
      for (int64_t i = 0; i < p.group; i += kLine) {
        const __m512i line = load_line(p.line(block + b, g * p.group + i));
        __m512i* to = reinterpret_cast<__m512i*>(unpacked[b] + i * kLanes);
        _mm512_store_si512(to, pairs<0>(line, table));
        _mm512_store_si512(to + 1, pairs<1>(line, table));
        _mm512_store_si512(to + 2, pairs<2>(line, table));
        _mm512_store_si512(to + 3, pairs<3>(line, table));
      }
    zero_results<kTwo, kBlocks>();
    for (int64_t i = 0; i < p.group; i += kStep) {
      const uint16_t* at = x + g * p.group + i;
      _tile_loadd(4, at, stride);
      _tile_loadd(6, unpacked[0] + i * kLanes, kTileBytes);
      _tile_dpbf16ps(0, 4, 6);
      if constexpr (kTwo) {
        _tile_loadd(5, at + kTileRows * p.k, stride);
        _tile_dpbf16ps(1, 5, 6);
      }
      if constexpr (kBlocks > 1) {
        _tile_loadd(7, unpacked[1] + i * kLanes, kTileBytes);
        _tile_dpbf16ps(2, 4, 7);
        if constexpr (kTwo) _tile_dpbf16ps(3, 5, 7);
      }
    }
    store_results<kTwo, kBlocks>(dots);
    for (int b = 0; b < kBlocks; ++b) {
      const int64_t at = p.of_group(block + b, g);
      const __m512 scale = load_bf16(p.scales + at), zero = p.zero(at);
      for (int r = 0; r < m; ++r) {
        float* sum = sums[b][r];
        const __m512 dot = _mm512_load_ps(dots[b][r]);
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
  for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
    const int m = int(std::min<int64_t>(rows - row, 2 * kTileRows));
    configure(m, kTileRows);
    if (m > kTileRows)
      amx<true, kBlocks>(p, row, m, block);
    else
      amx<false, kBlocks>(p, row, m, block);
  }
  _tile_release();
}
#endif

template <int kRows, int kBlocks>
void avx(const Problem& p, int64_t row, int64_t block) {
  const int64_t groups = p.k / p.group;
  const __m512i table = _mm512_load_si512(kTable);
  const uint8_t* codes = p.line(block, 0);
  const uint16_t* x = p.x + row * p.k;
  __m512 sum[kRows][kBlocks] = {};
  for (int64_t g = 0; g < groups; ++g) {
    __m512 first[kRows][kBlocks] = {}, second[kRows][kBlocks] = {};
    for (int64_t i = 0; i < p.group; i += kLine, codes += kBlocks * 64, x += kLine) {
      __m512i line[kBlocks];
      each<kBlocks>([&](auto b) { line[b] = load_line(codes + b * 64); });
      each<kPairs>([&](auto pair) {
        __m512bh w[kBlocks];
        each<kBlocks>([&](auto b) { w[b] = __m512bh(pairs<pair>(line[b], table)); });
        each<kRows>([&](auto r) {
          const __m512bh of_row = __m512bh(broadcast(x + r * p.k + pair * 2));
          auto& to = pair % 2 ? second : first;
          each<kBlocks>([&](auto b) { to[r][b] = _mm512_dpbf16_ps(to[r][b], w[b], of_row); });
        });
      });
    }
    each<kBlocks>([&](auto b) {
      const int64_t at = p.of_group(block + b, g);
      const __m512 scale = load_bf16(p.scales + at), zero = p.zero(at);
      each<kRows>([&](auto r) {
        const __m512 dot = _mm512_add_ps(first[r][b], second[r][b]);
        sum[r][b] = p.add(sum[r][b], dot, scale, zero, (row + r) * groups + g);
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

template <int kBlocks>
void product(const Problem& p, int64_t rows, int64_t block) {
#ifdef RIVER_AMX
  if (amx_allowed()) return amx_rows<kBlocks>(p, rows, block);
#endif
  by_rows<kRowsAtOnce>(0, rows, [&](auto count, int64_t row) {
    avx<count, kBlocks>(p, row, block);
  });
}

// Each line as 0, 2, 4, 6, 1, 3, 5, 7; two lines at a time.
void reorder(const uint16_t* x, int64_t size, uint16_t* out, float* sum) {
  const __m256i order =
      _mm256_setr_epi16(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  __m512 total = _mm512_setzero_ps();
  for (int64_t at = 0; at < size; at += kLanes) {
    const __m256i two = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + at));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + at),
                        _mm256_permutexvar_epi16(order, two));
    total = _mm512_add_ps(total, load_bf16(x + at));
  }
  *sum = _mm512_reduce_add_ps(total);
}

}  // namespace
}  // namespace river

// x: bf16 [m, K]; bias: bf16 [N] or null; y: bf16 [m, N].
extern "C" void river_bf16(const river::Weight* weight, const uint16_t* x, const uint16_t* bias,
                           uint16_t* y, int64_t m, int threads) {
  using namespace river;
  static thread_local std::vector<uint16_t> ordered;
  static thread_local std::vector<float> sums;
  const int64_t groups = weight->k / weight->group, blocks = weight->n / kLanes;
  ordered.resize(m * weight->k);
  sums.resize(m * groups);
  uint16_t* const to = ordered.data();
  float* const sum = sums.data();
  const Problem p{*weight, to, sum, bias, y};
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < m * groups; ++i)
      reorder(x + i * p.group, p.group, to + i * p.group, sum + i);
#pragma omp for schedule(static)
    for (int64_t pair = 0; pair < blocks / 2; ++pair) product<2>(p, m, pair * 2);
  }
  if (blocks % 2) product<1>(p, m, blocks - 1);
}

#endif
