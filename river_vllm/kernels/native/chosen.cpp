// Some outputs of a bf16 product, another choice for each row: the exact logits of an LM head's
// candidates. Each is one row of the weight, read where it lies, times one row of activations.

#include "bfloat.h"

// x: bf16 [rows, width]; weight: bf16, rows `stride` apart; chosen: [rows, count], rows of the
// weight; y: bf16 [rows, count].
extern "C" void river_chosen(const uint16_t* x, const uint16_t* weight, const int64_t* chosen,
                             uint16_t* y, int64_t rows, int64_t count, int64_t width,
                             int64_t stride, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t place = 0; place < rows * count; ++place) {
    const uint16_t* a = x + place / count * width;
    const uint16_t* b = weight + chosen[place] * stride;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < width; ++i) sum += river::widened(a[i]) * river::widened(b[i]);
    y[place] = river::rounded(sum);
  }
}
