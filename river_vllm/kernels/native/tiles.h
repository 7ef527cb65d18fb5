// Intel AMX: the operating system's permission, and the shapes of the tiles.
//
// Tiles 0-3 hold results: two blocks of 16 output features for up to two times 16 rows. Tiles 4
// and 5 hold the rows' activations, 6 and 7 the two blocks' weights. All are 64 bytes wide.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace river {
namespace {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;
constexpr int kMostRows = 2 * kTileRows;

// Linux lets a process use the tiles once it has asked (Documentation/arch/x86/xstate.rst).
inline bool tiles_allowed() {
  constexpr long kRequest = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return allowed;
}

// A barrier: has the compiler finish its writes to memory here, and read it again afterwards. It
// takes some tile instructions to access less memory than they do (GCC bug 114098), and would leave
// out or move the code around them.
inline void settle(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// For `m` <= 32 rows of activations and `depth` <= 16 tile rows of weights.
inline void configure(int m, int depth) {
  const int first = m < kTileRows ? m : kTileRows, second = m - first;
  TileConfig config;
  const int rows[8] = {first, second, first, second, first, second, depth, depth};
  for (int tile = 0; tile < 8; ++tile) {
    if (rows[tile] == 0) continue;
    config.rows[tile] = uint8_t(rows[tile]);
    config.bytes[tile] = uint16_t(tile == 4 || tile == 5 ? depth * 4 : kTileBytes);
  }
  settle(&config);
  _tile_loadconfig(&config);
}

template <bool kTwo, int kWidth>
void zero_results() {
  _tile_zero(0);
  if constexpr (kTwo) _tile_zero(1);
  if constexpr (kWidth > 1) _tile_zero(2);
  if constexpr (kWidth > 1 && kTwo) _tile_zero(3);
}

// Stores to [block][row][16], values of 4 bytes.
template <bool kTwo, int kWidth, typename T>
void store_results(T (&to)[kWidth][kMostRows][kTileRows]) {
  _tile_stored(0, to[0], kTileBytes);
  if constexpr (kTwo) _tile_stored(1, to[0][kTileRows], kTileBytes);
  if constexpr (kWidth > 1) _tile_stored(2, to[1], kTileBytes);
  if constexpr (kWidth > 1 && kTwo) _tile_stored(3, to[1][kTileRows], kTileBytes);
  settle(to);
}

}  // namespace
}  // namespace river
