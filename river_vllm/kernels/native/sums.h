// Dot products of bf16 vectors: the state transition similarity, and selected outputs of a product.
//
// Each is sixteen partial sums, whose halves are then added until one is left: the same bits on
// every back end, and a row's do not depend on the other rows.
#pragma once

#include "products.h"

namespace river {
namespace {

// kCount sums of `size` products each; `size` need not be a multiple of sixteen.
template <int kCount>
struct Dots {
  float of[kCount] = {};

  // product(which, i)
  template <typename Product>
  static Dots over(int64_t size, const Product& product) {
    Dots found;
    float lanes[kCount][kBlock] = {};
    int64_t i = 0;
    for (; i + kBlock <= size; i += kBlock)
      each<kCount>([&](auto which) {
        for (int lane = 0; lane < kBlock; ++lane) lanes[which][lane] += product(which, i + lane);
      });
    each<kCount>([&](auto which) {
      float* const sums = lanes[which];
      for (int64_t rest = i; rest < size; ++rest) sums[rest - i] += product(which, rest);
      for (int half = kBlock / 2; half > 0; half /= 2)
        for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
      found.of[which] = sums[0];
    });
    return found;
  }
};

inline void transition(const float* before, const uint16_t* hidden, const uint16_t* residual,
                       float* after, float* similarity, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows >= 64)
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* h = hidden + row * width;
    float* now = after + row * width;
    if (residual == nullptr) {
      for (int64_t i = 0; i < width; ++i) now[i] = widened(h[i]);
    } else {
      const uint16_t* r = residual + row * width;
      // Rounded to bf16, as the model rounds it.
      for (int64_t i = 0; i < width; ++i)
        now[i] = widened(rounded(widened(h[i]) + widened(r[i])));
    }
    if (before == nullptr) continue;
    const float* old = before + row * width;
    const auto sums = Dots<3>::over(width, [&](auto which, int64_t i) {
      return (which == 1 ? now : old)[i] * (which == 2 ? old : now)[i];
    });
    const float cosine = sums.of[0] / __builtin_sqrtf(sums.of[1] * sums.of[2]);
    // Rounding must not let a token pass a threshold of 1; NaN stays NaN.
    similarity[row] = cosine > 1.0f ? 1.0f : cosine;
  }
}

inline void candidates(const uint16_t* x, const uint16_t* weight, const int64_t* chosen,
                       uint16_t* y, int64_t rows, int64_t count, int64_t width, int64_t stride,
                       int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t place = 0; place < rows * count; ++place) {
    const uint16_t* a = x + place / count * width;
    const uint16_t* b = weight + chosen[place] * stride;
    const auto sums = Dots<1>::over(
        width, [&](auto, int64_t i) { return widened(a[i]) * widened(b[i]); });
    y[place] = rounded(sums.of[0]);
  }
}

}  // namespace
}  // namespace river
