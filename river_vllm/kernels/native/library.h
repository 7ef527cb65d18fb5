// The library's interface, and what a back end has to implement.
#pragma once

#include <cstddef>
#include <cstdint>

namespace river {

// A packed 4-bit weight.
//
//   y[m, n] = sum_g s[n, g] (sum_k q[n, k] x[m, k] - z[n, g] sum_k x[m, k])
//
// q: codes 0..15; s, z: scale and zero point of a group of input features.
//
// The codes of 16 output features (a block) and 8 input features are one 64-byte line. Byte 4 c + i
// holds input feature i of output feature c in its low nibble, input feature 4 + i in its high one.
// A product works on two blocks at a time. Their lines, and their groups' scales and zero points,
// are interleaved, so that it reads one sequential stream, which the hardware prefetches. Where the
// number of blocks is odd, the last one is stored by itself.
//
// Python fills this in (kernels/native/kernel.py): keep the order.
struct Weight {
  const uint8_t* codes;    // [N / 32, K / 8, 2, 64]
  const uint16_t* scales;  // bf16 [N / 32, K / group, 2, 16]
  const uint16_t* zeros;   // bf16 [N / 32, K / group, 2, 16]
  int64_t n, k, group;
};

// x: bf16 [m, K]; bias: bf16 [N] or null; y: bf16 [m, N].
using Product = void(const Weight*, const uint16_t* x, const uint16_t* bias, uint16_t* y, int64_t m,
                     int threads);

// The residual stream after a layer, and its cosine with the one before that layer, in one pass.
// hidden, residual: bf16 [rows, width], residual may be null; before: float32 or null.
// after: float32 [rows, width]; similarity: float32 [rows], not written without `before`.
using Transition = void(const float* before, const uint16_t* hidden, const uint16_t* residual,
                        float* after, float* similarity, int64_t rows, int64_t width, int threads);

// Selected outputs of a bf16 product, others for each row: the exact logits of candidate tokens.
// x: bf16 [rows, width]; weight: bf16, rows `stride` apart; chosen: [rows, count], indices of rows
// of the weight; y: bf16 [rows, count].
using Candidates = void(const uint16_t* x, const uint16_t* weight, const int64_t* chosen,
                        uint16_t* y, int64_t rows, int64_t count, int64_t width, int64_t stride,
                        int threads);

// A bf16 product that accumulates in float32, for CPUs without bf16 instructions.
// x: bf16 [m, k]; weight: bf16 [n, k]; bias: bf16 [n] or null; y: bf16 [m, n].
using Dense = void(const uint16_t* x, const uint16_t* weight, const uint16_t* bias, uint16_t* y,
                   int64_t m, int64_t n, int64_t k, int threads);

// Python reads this (kernels/native/library.py): keep the order.
struct Backend {
  const char* name;
  bool (*runs)();  // on this CPU, under this operating system
  Product* int8;   // activations rounded to 8 bits, one scale for each group of a row
  Product* bf16;   // activations as they are
  Transition* transition;
  Candidates* candidates;
  Dense* dense;
};

// A buffer of the calling thread, aligned to a cache line; a later call may return the same one.
void* scratch(size_t bytes);

}  // namespace river
