// -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
#include "avx512.h"

namespace river {
namespace {

bool runs() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

}  // namespace

extern const Backend avx512{"avx512", runs, int8_product<Avx512>, float_product<Avx512>, transition,
                            candidates, dense_product<Avx512>};

}  // namespace river
