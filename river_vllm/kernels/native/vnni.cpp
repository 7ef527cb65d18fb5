// AVX-512 as in avx512.cpp, with -mavx512vnni.
#include "avx512.h"

namespace river {

extern const Backend avx512;

namespace {

bool runs() { return avx512.runs() && __builtin_cpu_supports("avx512vnni"); }

}  // namespace

extern const Backend vnni{"vnni", runs, int8_product<Avx512>, float_product<Avx512>, transition,
                          candidates, dense_product<Avx512>};

}  // namespace river
