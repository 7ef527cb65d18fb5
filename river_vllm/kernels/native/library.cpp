// The back ends in this library, and what they share. Compiled for the oldest CPU.
//
// Each back end is one object file for one instruction set (build.py); `RIVER_BACKENDS` lists those
// that this compiler could make, best first.

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
    memory = std::vector<char>();  // freed first: its contents need not be copied
    memory.resize(bytes + kCacheLine);
  }
  const size_t address = reinterpret_cast<size_t>(memory.data());
  return memory.data() + (kCacheLine - address % kCacheLine) % kCacheLine;
}

}  // namespace river

#define RIVER_EXPORT extern "C" __attribute__((visibility("default")))

// Best first, with a null pointer at the end.
RIVER_EXPORT const river::Backend* const* river_backends() { return river::kBackends; }

// Of the sources and the compiler flags: Python checks that the library was built from those beside
// it (build.py, is_current).
RIVER_EXPORT const char* river_fingerprint() { return RIVER_FINGERPRINT; }
