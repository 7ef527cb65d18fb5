// 4-bit products, written once for vectors of any width.
//
// A back end's class `V` has its registers and their operations:
//   kLanes              float32 or int32 lanes of a register; kRegs = 16 / kLanes hold a block
//   kSums               registers to keep accumulators in
//   kRowsAtOnce         rows that are multiplied by a weight each time that it is loaded
//   F, I, B             registers of float32, int32, and bytes
//   zero, set, load_bf16, store_bf16, add, mul   of F
//   fma, less           of F: a b + c, a - b c
//   none                a zero of I
//   to_float            I as F
//   bytes               B from memory
//   broadcast           B with the same four bytes from memory in each lane
//   low, high           the nibbles of B, each as a byte
//   dot(I, low, high, x0, x1)   I + in each lane, low's four bytes times x0's and high's times x1's
//   code<i>(B)          the codes of input feature i of a line, as F
//
// A lane is an output feature and sees the same operations in the same order on every back end, so
// the int8 product gives the same bits everywhere: integer sums in a group are exact
// (127 * 15 * 128 < 2^31), and the float sums over the groups are taken in one order.
#pragma once

#include "library.h"
#include "numbers.h"

namespace river {
namespace {

constexpr int kBlock = 16;    // output features of a block
constexpr int kLine = 8;      // input features of a line
constexpr int kAhead = 4096;  // bytes from what is read to what is prefetched

template <int kValue>
struct Constant {
  constexpr operator int() const { return kValue; }
};

// Calls what(0), what(1), … with compile-time constants. The compiler unrolls a loop too late to
// keep an array that it indexes in registers.
template <int kAt, int kCount, typename Do>
inline __attribute__((always_inline)) void each_from(const Do& what) {
  if constexpr (kAt < kCount) {
    what(Constant<kAt>{});
    each_from<kAt + 1, kCount>(what);
  }
}
template <int kCount, typename Do>
inline __attribute__((always_inline)) void each(const Do& what) {
  each_from<0, kCount>(what);
}

// Where things are in a pair of interleaved blocks (kWidth 2), or in a last block without a partner
// (kWidth 1).
template <int kWidth>
struct Blocks {
  const Weight& weight;
  int64_t first;

  const uint8_t* line(int64_t feature, int block = 0) const {
    const int64_t lines = weight.k / kLine;
    return weight.codes + (first * lines + feature / kLine * kWidth + block) * 64;
  }
  int64_t of_group(int64_t g, int block) const {
    return (first * (weight.k / weight.group) + g * kWidth + block) * kBlock;
  }
};

// Calls what(count, row) until all rows are done: kMost rows at a time, then the remainder.
template <int kMost, typename Do>
void rows_from(int64_t row, int64_t rows, const Do& what) {
  for (; row + kMost <= rows; row += kMost) what(Constant<kMost>{}, row);
  if constexpr (kMost > 1) rows_from<kMost - 1>(row, rows, what);
}

// A last block without a partner takes one row at a time: it is not worth more code.
template <int kMost, int kWidth, typename Do>
void by_rows(const Blocks<kWidth>&, int64_t rows, const Do& what) {
  rows_from<kWidth == 2 ? kMost : 1>(0, rows, what);
}

// Calls what(Blocks) for each pair of blocks, on all threads: together they have all outputs.
template <typename Do>
void by_blocks(const Weight& weight, int threads, const Do& what) {
  const int64_t blocks = weight.n / kBlock;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t pair = 0; pair < (blocks + 1) / 2; ++pair) {
    if (pair * 2 + 1 < blocks)
      what(Blocks<2>{weight, pair * 2});
    else
      what(Blocks<1>{weight, pair * 2});
  }
}

// ---- activations --------------------------------------------------------------------------------

// Activations quantised to 8 bits: symmetric, rounded to nearest, ties to even.
struct Rounded {
  int8_t* values;  // [m, K]
  float* scales;   // [m, K / group]
  float* sums;     // [m, K / group], of the values
};

inline void round_group(const uint16_t* __restrict x, int64_t size, int8_t* __restrict out,
                        float* scale, float* sum) {
  uint16_t most = 0;  // the largest magnitude, as bits: they are in the order of the numbers
  for (int64_t i = 0; i < size; ++i) {
    const uint16_t magnitude = x[i] & 0x7fff;
    most = magnitude > most ? magnitude : most;
  }
  const float largest = widened(most);
  const float inverse = largest > 0 ? 127.0f / largest : 0.0f;
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  constexpr uint32_t kMagicBits = 0x4b400000;
  uint32_t totals[kBlock] = {};  // unsigned: it overflows where an input is NaN
  for (int64_t i = 0; i < size; i += kBlock) {
    uint32_t values[kBlock];
    for (int lane = 0; lane < kBlock; ++lane) {
      const float moved = widened(x[i + lane]) * inverse + kMagic;
      std::memcpy(values + lane, &moved, sizeof moved);
      values[lane] -= kMagicBits;
    }
    for (int lane = 0; lane < kBlock; ++lane) totals[lane] += values[lane];
    for (int lane = 0; lane < kBlock; ++lane) out[i + lane] = static_cast<int8_t>(values[lane]);
  }
  uint32_t total = 0;
  for (int lane = 0; lane < kBlock; ++lane) total += totals[lane];
  *scale = largest / 127.0f;
  *sum = static_cast<float>(static_cast<int32_t>(total));
}

inline Rounded round_activations(const Weight& weight, const uint16_t* x, int64_t m, int threads) {
  const int64_t groups = m * (weight.k / weight.group), group = weight.group;
  float* const scales = static_cast<float*>(scratch(groups * 8 + m * weight.k));
  const Rounded to{reinterpret_cast<int8_t*>(scales + 2 * groups), scales, scales + groups};
#pragma omp parallel for num_threads(threads) schedule(static) if (groups * group >= 16384)
  for (int64_t i = 0; i < groups; ++i)
    round_group(x + i * group, group, to.values + i * group, to.scales + i, to.sums + i);
  return to;
}

// The sum of a group: sixteen partial sums, whose halves are then added until one is left.
template <typename Read>
float sum_of(int64_t size, const Read& read) {
  float lanes[kBlock] = {};
  for (int64_t i = 0; i < size; i += kBlock)
    for (int lane = 0; lane < kBlock; ++lane) lanes[lane] += read(i + lane);
  for (int half = kBlock / 2; half > 0; half /= 2)
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// Activations of 16 bits, widened to float32.
struct Widened {
  float* values;  // [m, K]
  float* sums;    // [m, K / group]
};

inline Widened widen_activations(const Weight& weight, const uint16_t* x, int64_t m, int threads) {
  const int64_t groups = m * (weight.k / weight.group), group = weight.group;
  float* const values = static_cast<float*>(scratch((m * weight.k + groups) * sizeof(float)));
  const Widened to{values, values + m * weight.k};
#pragma omp parallel for num_threads(threads) schedule(static) if (groups * group >= 16384)
  for (int64_t i = 0; i < groups; ++i) {
    float* const of_group = values + i * group;
    for (int64_t at = 0; at < group; ++at) of_group[at] = widened(x[i * group + at]);
    to.sums[i] = sum_of(group, [&](int64_t at) { return of_group[at]; });
  }
  return to;
}

// ---- products of a few rows ---------------------------------------------------------------------

// sum + scale (dot - zero sum_of_x)
template <class V>
inline typename V::F added(typename V::F sum, typename V::F dot, typename V::F scale,
                           typename V::F zero, float sum_of_x) {
  return V::fma(V::less(dot, zero, V::set(sum_of_x)), scale, sum);
}

// Blocks of a pair whose accumulators fit into the registers together.
template <class V, int kRows, int kWidth>
constexpr int at_once() {
  return kRows * kWidth * V::kRegs <= V::kSums ? kWidth : 1;
}

// kRows rows from `row` on, times the blocks. A `Kind` of product has
//   V, x                 its vectors, and its activations
//   Dot, none, line      the accumulator of a group, a zero of it, and what adds a line to it
//   dot, zero, scale     as F: an accumulator, zero points, and the scales for a row
template <int kRows, class Kind, int kWidth>
void few_rows(const Kind& kind, const Blocks<kWidth>& blocks, const uint16_t* bias, uint16_t* y,
              int64_t row) {
  using V = typename Kind::V;
  constexpr int kAtOnce = at_once<V, kRows, kWidth>();
  const Weight& w = blocks.weight;
  const int64_t groups = w.k / w.group;
  typename V::F sums[kRows][kWidth][V::kRegs] = {};
  for (int64_t g = 0; g < groups; ++g)
    each<kWidth / kAtOnce>([&](auto part) {
      constexpr int kFirst = part * kAtOnce;
      typename Kind::Dot dots[kRows][kAtOnce][V::kRegs];
      each<kRows>([&](auto r) {
        each<kAtOnce>([&](auto b) {
          each<V::kRegs>([&](auto reg) { dots[r][b][reg] = Kind::none(); });
        });
      });
      const uint8_t* codes = blocks.line(g * w.group, kFirst);
      const auto* values = kind.x.values + row * w.k + g * w.group;
      for (int64_t i = 0; i < w.group; i += kLine, codes += kWidth * 64, values += kLine) {
        each<kAtOnce>([&](auto b) { __builtin_prefetch(codes + b * 64 + kAhead); });
        Kind::line(dots, codes, values, w.k);
      }
      each<kAtOnce>([&](auto b) {
        const int64_t at = blocks.of_group(g, kFirst + b);
        each<V::kRegs>([&](auto reg) {
          const auto scale = V::load_bf16(w.scales + at + reg * V::kLanes);
          const auto zero = Kind::zero(w.zeros + at + reg * V::kLanes);
          each<kRows>([&](auto r) {
            const int64_t of_row = (row + r) * groups + g;
            auto& sum = sums[r][kFirst + b][reg];
            sum = added<V>(sum, Kind::dot(dots[r][b][reg]), kind.scale(scale, of_row), zero,
                           kind.x.sums[of_row]);
          });
        });
      });
    });
  each<kWidth>([&](auto b) {
    each<V::kRegs>([&](auto reg) {
      const int64_t n = (blocks.first + b) * kBlock + reg * V::kLanes;
      const auto shift = bias ? V::load_bf16(bias + n) : V::zero();
      each<kRows>([&](auto r) {
        V::store_bf16(y + (row + r) * w.n + n, V::add(sums[r][b][reg], shift));
      });
    });
  });
}

template <class Vector>
struct Int8 {
  using V = Vector;
  using Dot = typename V::I;
  Rounded x;

  static Dot none() { return V::none(); }

  template <int kRows, int kAtOnce>
  static inline __attribute__((always_inline)) void line(Dot (&dots)[kRows][kAtOnce][V::kRegs],
                                                         const uint8_t* codes, const int8_t* values,
                                                         int64_t stride) {
    typename V::B low[kAtOnce][V::kRegs], high[kAtOnce][V::kRegs];
    each<kAtOnce>([&](auto b) {
      each<V::kRegs>([&](auto reg) {
        const auto line = V::bytes(codes + b * 64 + reg * V::kLanes * 4);
        low[b][reg] = V::low(line);
        high[b][reg] = V::high(line);
      });
    });
    each<kRows>([&](auto r) {
      const auto x0 = V::broadcast(values + r * stride);
      const auto x1 = V::broadcast(values + r * stride + 4);
      each<kAtOnce>([&](auto b) {
        each<V::kRegs>([&](auto reg) {
          dots[r][b][reg] = V::dot(dots[r][b][reg], low[b][reg], high[b][reg], x0, x1);
        });
      });
    });
  }

  static typename V::F dot(Dot sum) { return V::to_float(sum); }
  static typename V::F zero(const uint16_t* p) { return V::load_bf16(p); }
  typename V::F scale(typename V::F of_weight, int64_t of_row) const {
    return V::mul(of_weight, V::set(x.scales[of_row]));
  }
};

template <class Vector>
struct Float {
  using V = Vector;
  using Dot = typename V::F;
  Widened x;

  static Dot none() { return V::zero(); }

  template <int kRows, int kAtOnce>
  static inline __attribute__((always_inline)) void line(Dot (&dots)[kRows][kAtOnce][V::kRegs],
                                                         const uint8_t* codes, const float* values,
                                                         int64_t stride) {
    typename V::B line[kAtOnce][V::kRegs];
    each<kAtOnce>([&](auto b) {
      each<V::kRegs>([&](auto reg) {
        line[b][reg] = V::bytes(codes + b * 64 + reg * V::kLanes * 4);
      });
    });
    each<kLine>([&](auto feature) {
      typename V::F code[kAtOnce][V::kRegs];
      each<kAtOnce>([&](auto b) {
        each<V::kRegs>([&](auto reg) {
          code[b][reg] = V::template code<feature>(line[b][reg]);
        });
      });
      each<kRows>([&](auto r) {
        const auto of_row = V::set(values[r * stride + feature]);
        each<kAtOnce>([&](auto b) {
          each<V::kRegs>([&](auto reg) {
            dots[r][b][reg] = V::fma(code[b][reg], of_row, dots[r][b][reg]);
          });
        });
      });
    });
  }

  static typename V::F dot(Dot sum) { return sum; }
  static typename V::F zero(const uint16_t* p) { return V::load_bf16(p); }
  static typename V::F scale(typename V::F of_weight, int64_t) { return of_weight; }
};

// ---- whole products -----------------------------------------------------------------------------

// Many rows are multiplied in parts of this many: no row depends on another, and the buffer for
// their activations in a product's form stays small.
constexpr int64_t kPart = 256;

template <typename Do>
void by_parts(const Weight& weight, const uint16_t* x, uint16_t* y, int64_t m, const Do& what) {
  for (int64_t row = 0; row < m; row += kPart)
    what(x + row * weight.k, y + row * weight.n, m - row < kPart ? m - row : kPart);
}

template <int kRowsAtOnce, class Kind>
void product(const Kind& kind, const Weight& weight, const uint16_t* bias, uint16_t* y, int64_t m,
             int threads) {
  by_blocks(weight, threads, [&](const auto& blocks) {
    by_rows<kRowsAtOnce>(blocks, m, [&](auto count, int64_t row) {
      few_rows<count>(kind, blocks, bias, y, row);
    });
  });
}

template <class V>
void int8_product(const Weight* weight, const uint16_t* x, const uint16_t* bias, uint16_t* y,
                  int64_t m, int threads) {
  by_parts(*weight, x, y, m, [&](const uint16_t* from, uint16_t* to, int64_t rows) {
    const Int8<V> kind{round_activations(*weight, from, rows, threads)};
    product<V::kRowsAtOnce>(kind, *weight, bias, to, rows, threads);
  });
}

template <class V>
void float_product(const Weight* weight, const uint16_t* x, const uint16_t* bias, uint16_t* y,
                   int64_t m, int threads) {
  by_parts(*weight, x, y, m, [&](const uint16_t* from, uint16_t* to, int64_t rows) {
    const Float<V> kind{widen_activations(*weight, from, rows, threads)};
    product<V::kRowsAtOnce>(kind, *weight, bias, to, rows, threads);
  });
}

}  // namespace
}  // namespace river
