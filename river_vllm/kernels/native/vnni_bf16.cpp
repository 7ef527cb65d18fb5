// AVX-512 as in vnni.cpp, with -mavx512bf16.
#include "bf16.h"

namespace river {

extern const Backend vnni;

namespace {

bool runs() { return vnni.runs() && __builtin_cpu_supports("avx512bf16"); }

}  // namespace

extern const Backend vnni_bf16{"vnni", runs, int8_product<Avx512>, bf16_product, transition,
                               candidates, dense_product<Avx512>};

}  // namespace river
