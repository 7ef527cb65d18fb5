// -mavx2 -mfma
#include "avx2.h"

namespace river {
namespace {

bool runs() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

}  // namespace

extern const Backend avx2{"avx2", runs, int8_product<Avx2>, float_product<Avx2>, transition,
                          candidates, dense_product<Avx2>};

}  // namespace river
