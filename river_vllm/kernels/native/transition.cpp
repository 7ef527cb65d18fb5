// The residual stream between two layers and its cosine with the one before, in one pass.
//
// A decision is a few thousand numbers; as tensor operators it is ten calls of a microsecond each.

#include <cmath>

#include "bfloat.h"

// hidden, residual: bf16 [rows, width], residual may be null; before: float32 or null.
// after: float32 [rows, width]; similarity: float32 [rows], not written without `before`.
extern "C" void river_transition(const float* before, const uint16_t* hidden,
                                 const uint16_t* residual, float* after, float* similarity,
                                 int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (rows >= 64)
  for (int64_t row = 0; row < rows; ++row) {
    const uint16_t* h = hidden + row * width;
    float* now = after + row * width;
    if (residual == nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) now[i] = river::widened(h[i]);
    } else {
      const uint16_t* r = residual + row * width;
#pragma omp simd
      for (int64_t i = 0; i < width; ++i) {
        // Rounded as the model rounds it.
        now[i] = river::widened(river::rounded(river::widened(h[i]) + river::widened(r[i])));
      }
    }
    if (before == nullptr) continue;
    const float* old = before + row * width;
    float dot = 0.0f, olds = 0.0f, nows = 0.0f;
#pragma omp simd reduction(+ : dot, olds, nows)
    for (int64_t i = 0; i < width; ++i) {
      dot += old[i] * now[i];
      olds += old[i] * old[i];
      nows += now[i] * now[i];
    }
    const float cosine = dot / std::sqrt(olds * nows);
    // Rounding must not let a token pass a threshold of 1; not a number stays so.
    similarity[row] = cosine > 1.0f ? 1.0f : cosine;
  }
}
