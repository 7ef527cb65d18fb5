// AVX-512 as in vnni_bf16.cpp, with -mamx-tile -mamx-int8 -mamx-bf16.
//
// The bf16 product uses the tiles for any number of rows, so that a row's result does not depend on
// the others. The int8 product, whose integer sums are the same either way, uses them from five
// rows on: up to four, VNNI multiplies as fast as the weights come from memory.
#include <cpuid.h>

#include "bf16.h"
#include "tiles.h"

namespace river {

extern const Backend vnni_bf16;

namespace {

constexpr int kFewRows = 4;
constexpr int kMostGroup = 128;

// The tiles of results, activations and codes, in this order: the intrinsics take literals only.
#define RIVER_TILE_PRODUCTS(instruction)                      \
  static void multiply(Constant<0>) { instruction(0, 4, 6); } \
  static void multiply(Constant<1>) { instruction(1, 5, 6); } \
  static void multiply(Constant<2>) { instruction(2, 4, 7); } \
  static void multiply(Constant<3>) { instruction(3, 5, 7); }

// What the two products differ in: how codes become tiles, and how tiles are multiplied.
struct Int8Tiles : Int8<Avx512> {
  using Activation = int8_t;
  using Code = uint8_t;
  using Sum = int32_t;
  static constexpr int kStep = 64;  // input features of a tile

  static void unpack(const uint8_t* line, Code* to) {
    const __m512i codes = Avx512::bytes(line);
    _mm512_store_si512(to, Avx512::low(codes));
    _mm512_store_si512(to + kTileBytes, Avx512::high(codes));
  }
  RIVER_TILE_PRODUCTS(_tile_dpbsud)
  static __m512 dot(const Sum* p) { return _mm512_cvtepi32_ps(_mm512_load_si512(p)); }
};

struct Bf16Tiles : Bf16 {
  using Activation = uint16_t;
  using Code = uint16_t;
  using Sum = float;
  static constexpr int kStep = 32;

  static void unpack(const uint8_t* line, Code* to) {
    const __m512i table = _mm512_load_si512(kTable), codes = Avx512::bytes(line);
    each<kPairs>([&](auto pair) {
      _mm512_store_si512(to + pair * 2 * kBlock, pair_of<pair>(codes, table));
    });
  }
  RIVER_TILE_PRODUCTS(_tile_dpbf16ps)
  static __m512 dot(const Sum* p) { return _mm512_load_ps(p); }
};

template <class Tiles, bool kTwo, int kWidth>
void tile_rows(const Blocks<kWidth>& blocks, const Tiles& tiles, const uint16_t* bias, uint16_t* y,
               int64_t row, int m) {
  using Code = typename Tiles::Code;
  const Weight& w = blocks.weight;
  const int64_t groups = w.k / w.group, stride = w.k * sizeof(typename Tiles::Activation);
  const int64_t step = w.group < Tiles::kStep ? w.group : Tiles::kStep;
  const auto* x = tiles.x.values + row * w.k;
  alignas(64) Code codes[2][kWidth][kMostGroup * kBlock];
  alignas(64) typename Tiles::Sum dots[kWidth][kMostRows][kBlock];
  alignas(64) float sums[kWidth][kMostRows][kBlock] = {};
  const auto unpack = [&](int64_t g) {
    for (int b = 0; b < kWidth; ++b)
      for (int64_t i = 0; i < w.group; i += kLine) {
        const uint8_t* line = blocks.line(g * w.group + i, b);
        __builtin_prefetch(line + kAhead);
        Tiles::unpack(line, codes[g & 1][b] + i * kBlock);
      }
    settle(codes[g & 1]);
  };
  unpack(0);
  for (int64_t g = 0; g < groups; ++g) {
    const auto& unpacked = codes[g & 1];
    zero_results<kTwo, kWidth>();
    for (int64_t i = 0; i < w.group; i += step) {
      const auto* at = x + g * w.group + i;
      _tile_loadd(4, at, stride);
      _tile_loadd(6, unpacked[0] + i * kBlock, kTileBytes);
      Tiles::multiply(Constant<0>{});
      if constexpr (kTwo) {
        _tile_loadd(5, at + kTileRows * w.k, stride);
        Tiles::multiply(Constant<1>{});
      }
      if constexpr (kWidth > 1) {
        _tile_loadd(7, unpacked[1] + i * kBlock, kTileBytes);
        Tiles::multiply(Constant<2>{});
        if constexpr (kTwo) Tiles::multiply(Constant<3>{});
      }
    }
    if (g + 1 < groups) unpack(g + 1);  // while the tiles multiply
    store_results<kTwo, kWidth>(dots);
    for (int b = 0; b < kWidth; ++b) {
      const int64_t at = blocks.of_group(g, b);
      const __m512 scale = Avx512::load_bf16(w.scales + at), zero = Tiles::zero(w.zeros + at);
      for (int r = 0; r < m; ++r) {
        const int64_t of_row = (row + r) * groups + g;
        float* sum = sums[b][r];
        _mm512_store_ps(sum,
                        added<Avx512>(_mm512_load_ps(sum), Tiles::dot(dots[b][r]),
                                      tiles.scale(scale, of_row), zero, tiles.x.sums[of_row]));
      }
    }
  }
  for (int b = 0; b < kWidth; ++b) {
    const int64_t n = (blocks.first + b) * kBlock;
    const __m512 shift = bias ? Avx512::load_bf16(bias + n) : Avx512::zero();
    for (int r = 0; r < m; ++r)
      Avx512::store_bf16(y + (row + r) * w.n + n,
                         _mm512_add_ps(_mm512_load_ps(sums[b][r]), shift));
  }
}

template <class Tiles>
void tile_product(const Weight& weight, const Tiles& tiles, const uint16_t* bias, uint16_t* y,
                  int64_t rows, int threads) {
  const int64_t step = weight.group < Tiles::kStep ? weight.group : Tiles::kStep;
  const int depth = int(step * sizeof(typename Tiles::Code) / 4);
  by_blocks(weight, threads, [&](const auto& blocks) {
    for (int64_t row = 0; row < rows; row += kMostRows) {
      const int m = int(rows - row < kMostRows ? rows - row : kMostRows);
      configure(m, depth);
      if (m > kTileRows)
        tile_rows<Tiles, true>(blocks, tiles, bias, y, row, m);
      else
        tile_rows<Tiles, false>(blocks, tiles, bias, y, row, m);
    }
    _tile_release();
  });
}

void int8(const Weight* weight, const uint16_t* x, const uint16_t* bias, uint16_t* y, int64_t m,
          int threads) {
  if (m <= kFewRows) return int8_product<Avx512>(weight, x, bias, y, m, threads);
  by_parts(*weight, x, y, m, [&](const uint16_t* from, uint16_t* to, int64_t rows) {
    const Int8Tiles tiles{{round_activations(*weight, from, rows, threads)}};
    tile_product(*weight, tiles, bias, to, rows, threads);
  });
}

void bf16(const Weight* weight, const uint16_t* x, const uint16_t* bias, uint16_t* y, int64_t m,
          int threads) {
  by_parts(*weight, x, y, m, [&](const uint16_t* from, uint16_t* to, int64_t rows) {
    const Bf16Tiles tiles{{order_activations(*weight, from, rows, threads)}};
    tile_product(*weight, tiles, bias, to, rows, threads);
  });
}

bool runs() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kAll = kBf16 | kTile | kInt8;
  unsigned a = 0, b = 0, c = 0, d = 0;
  return vnni_bf16.runs() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & kAll) == kAll &&
         tiles_allowed();
}

}  // namespace

extern const Backend amx{"amx", runs, int8, bf16, transition, candidates, dense_product<Avx512>};

}  // namespace river
