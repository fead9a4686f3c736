// AVX-512 by SIMDe, in plain C++, with what its release of Debian 12 lacks.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>

#include <cstring>

#ifndef _mm512_cvtepu16_epi32
inline __m512i _mm512_cvtepu16_epi32(__m256i a) {
  uint16_t from[16];
  uint32_t to[16];
  std::memcpy(from, &a, sizeof from);
  for (int i = 0; i < 16; ++i) to[i] = from[i];
  __m512i result;
  std::memcpy(&result, to, sizeof to);
  return result;
}
#endif
#ifndef _mm512_reduce_add_epi32
inline int32_t _mm512_reduce_add_epi32(__m512i a) {
  int32_t from[16], total = 0;
  std::memcpy(from, &a, sizeof from);
  for (const int32_t each : from) total += each;
  return total;
}
#endif
