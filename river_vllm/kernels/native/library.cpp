// The back ends that were compiled in, best first, and what they share. Compiled for any CPU.
//
// Each back end is one object file for one instruction set (build.py); `RIVER_BACKENDS` names those
// that this compiler could make.

#include "library.h"

#include <vector>

namespace river {

#define RIVER_DECLARE(name) extern const Backend name;
RIVER_BACKENDS(RIVER_DECLARE)

namespace {

#define RIVER_ADDRESS(name) &name,
const Backend* const kBackends[] = {RIVER_BACKENDS(RIVER_ADDRESS) nullptr};

}  // namespace

void* scratch(size_t bytes) {
  static thread_local std::vector<char> memory;
  constexpr size_t kCacheLine = 64;
  if (memory.size() < bytes + kCacheLine) {
    memory = {};  // nothing of it is kept: let go before there is more
    memory.resize(bytes + kCacheLine);
  }
  const size_t address = reinterpret_cast<size_t>(memory.data());
  return memory.data() + (kCacheLine - address % kCacheLine) % kCacheLine;
}

}  // namespace river

#define RIVER_EXPORT extern "C" __attribute__((visibility("default")))

// Best first; null at the end.
RIVER_EXPORT const river::Backend* const* river_backends() { return river::kBackends; }

// Of the sources and the compiler's flags: whether a library is that of the Python code beside it.
RIVER_EXPORT const char* river_fingerprint() { return RIVER_FINGERPRINT; }
