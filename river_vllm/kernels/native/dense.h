// A bf16 product of weights as they were loaded, each read once for several rows. Accumulates in
// float32.
//
// On a CPU without bf16 instructions torch's product takes five times as long for five rows as for
// one; this one takes little longer, since reading the weights is most of its work.
#pragma once

#include "products.h"

namespace river {
namespace {

constexpr int kOutputsAtOnce = 2;

template <class V>
inline typename V::F floats(const float* p) {
  typename V::F found;
  std::memcpy(&found, p, sizeof found);
  return found;
}

template <class V>
inline float total(typename V::F sums) {
  float lanes[V::kLanes];
  std::memcpy(lanes, &sums, sizeof lanes);
  float found = 0.0f;
  for (const float lane : lanes) found += lane;
  return found;
}

// kOutputs outputs from `n` on, of kRows rows of x. A row of the weight has `k` elements.
template <class V, int kRows, int kOutputs>
void dense_outputs(const float* x, const uint16_t* weight, const uint16_t* bias, uint16_t* y,
                   int64_t n, int64_t outputs, int64_t k) {
  typename V::F sums[kOutputs][kRows] = {};
  float found[kOutputs][kRows] = {};
  int64_t i = 0;
  for (; i + V::kLanes <= k; i += V::kLanes) {
    typename V::F values[kOutputs];
    each<kOutputs>([&](auto o) { values[o] = V::load_bf16(weight + (n + o) * k + i); });
    each<kRows>([&](auto r) {
      const auto of_row = floats<V>(x + r * k + i);
      each<kOutputs>([&](auto o) { sums[o][r] = V::fma(values[o], of_row, sums[o][r]); });
    });
  }
  for (; i < k; ++i)
    for (int o = 0; o < kOutputs; ++o)
      for (int r = 0; r < kRows; ++r)
        found[o][r] += widened(weight[(n + o) * k + i]) * x[r * k + i];
  for (int o = 0; o < kOutputs; ++o)
    for (int r = 0; r < kRows; ++r) {
      const float sum = found[o][r] + total<V>(sums[o][r]);
      y[r * outputs + n + o] = rounded(bias ? sum + widened(bias[n + o]) : sum);
    }
}

template <class V>
void dense_product(const uint16_t* x, const uint16_t* weight, const uint16_t* bias, uint16_t* y,
                   int64_t m, int64_t n, int64_t k, int threads) {
  constexpr int kMost = V::kSums / kOutputsAtOnce < 8 ? V::kSums / kOutputsAtOnce : 8;
  for (int64_t first = 0; first < m; first += kPart) {
    const int64_t rows = m - first < kPart ? m - first : kPart;
    float* const values = static_cast<float*>(scratch(rows * k * sizeof(float)));
#pragma omp parallel for num_threads(threads) schedule(static) if (rows * k >= 16384)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t i = 0; i < k; ++i) values[row * k + i] = widened(x[(first + row) * k + i]);
    uint16_t* const out = y + first * n;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t pair = 0; pair < (n + 1) / kOutputsAtOnce; ++pair)
      rows_from<kMost>(0, rows, [&](auto count, int64_t row) {
        const int64_t at = pair * kOutputsAtOnce;
        if (at + kOutputsAtOnce <= n)
          dense_outputs<V, count, kOutputsAtOnce>(values + row * k, weight, bias, out + row * n, at,
                                                  n, k);
        else
          dense_outputs<V, count, 1>(values + row * k, weight, bias, out + row * n, at, n, k);
      });
  }
}

}  // namespace
}  // namespace river
