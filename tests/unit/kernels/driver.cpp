// The kernel library without Python, for CPUs that only an emulator has (test_emulated.py).
//
//     driver                     names of the back ends that run, best first
//     driver NAME < CASES        the results of the first back end of that name, one after the other
//
// A case is a header and its operands, as they lie in memory; see `Case`.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "library.h"

extern "C" const river::Backend* const* river_backends();

namespace {

enum Operation : int64_t { kInt8, kBf16, kTransition, kCandidates, kDense };

struct Case {
  int64_t operation, m, k, n, group, threads, extra;  // extra: a bias, or a residual, comes along
};

void fail(const char* what) {
  std::fprintf(stderr, "driver: %s\n", what);
  std::exit(2);
}

template <typename T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(count + 1);  // + 1: an address even of nothing
  if (std::fread(values.data(), sizeof(T), count, stdin) != size_t(count)) fail("a case ends early");
  return values;
}

template <typename T>
void write(const std::vector<T>& values) {
  std::fwrite(values.data(), sizeof(T), values.size(), stdout);
}

// codes, scales, zeros, x, bias -> y
void product(const river::Backend& backend, const Case& c) {
  const auto codes = read<uint8_t>(c.n * c.k / 2);
  const auto scales = read<uint16_t>(c.n * c.k / c.group), zeros = read<uint16_t>(c.n * c.k / c.group);
  const auto x = read<uint16_t>(c.m * c.k), bias = read<uint16_t>(c.extra ? c.n : 0);
  std::vector<uint16_t> y(c.m * c.n);
  const river::Weight weight{codes.data(), scales.data(), zeros.data(), c.n, c.k, c.group};
  auto* const function = c.operation == kInt8 ? backend.int8 : backend.bf16;
  function(&weight, x.data(), c.extra ? bias.data() : nullptr, y.data(), c.m, int(c.threads));
  write(y);
}

// before, hidden, residual -> after, similarity
void transition(const river::Backend& backend, const Case& c) {
  const auto before = read<float>(c.m * c.k);
  const auto hidden = read<uint16_t>(c.m * c.k), residual = read<uint16_t>(c.extra ? c.m * c.k : 0);
  std::vector<float> after(c.m * c.k), similarity(c.m);
  backend.transition(before.data(), hidden.data(), c.extra ? residual.data() : nullptr, after.data(),
                     similarity.data(), c.m, c.k, int(c.threads));
  write(after);
  write(similarity);
}

// x, weight, chosen -> y; `group` choices for each row
void candidates(const river::Backend& backend, const Case& c) {
  const auto x = read<uint16_t>(c.m * c.k), weight = read<uint16_t>(c.n * c.k);
  const auto chosen = read<int64_t>(c.m * c.group);
  std::vector<uint16_t> y(c.m * c.group);
  backend.candidates(x.data(), weight.data(), chosen.data(), y.data(), c.m, c.group, c.k, c.k,
                     int(c.threads));
  write(y);
}

// x, weight, bias -> y
void dense(const river::Backend& backend, const Case& c) {
  const auto x = read<uint16_t>(c.m * c.k), weight = read<uint16_t>(c.n * c.k);
  const auto bias = read<uint16_t>(c.extra ? c.n : 0);
  std::vector<uint16_t> y(c.m * c.n);
  backend.dense(x.data(), weight.data(), c.extra ? bias.data() : nullptr, y.data(), c.m, c.n, c.k,
                int(c.threads));
  write(y);
}

}  // namespace

int main(int count, char** arguments) {
  const river::Backend* used = nullptr;
  for (auto* at = river_backends(); *at != nullptr; ++at) {
    if (!(*at)->runs()) continue;
    if (count < 2) std::puts((*at)->name);
    if (count > 1 && used == nullptr && std::strcmp((*at)->name, arguments[1]) == 0) used = *at;
  }
  if (count < 2) return 0;
  if (used == nullptr) fail("this CPU runs no back end of that name");
  Case c;
  while (std::fread(&c, sizeof c, 1, stdin) == 1) {
    if (c.operation == kTransition)
      transition(*used, c);
    else if (c.operation == kCandidates)
      candidates(*used, c);
    else if (c.operation == kDense)
      dense(*used, c);
    else
      product(*used, c);
  }
  return 0;
}
