// -mavx2 -mfma -mavxvnni: CPUs with VNNI and without AVX-512.
#include <cpuid.h>

#include "avx2.h"

namespace river {
namespace {

bool runs() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

}  // namespace

extern const Backend avxvnni{"avxvnni", runs, int8_product<Avx2>, float_product<Avx2>, transition,
                             candidates, dense_product<Avx2>};

}  // namespace river
