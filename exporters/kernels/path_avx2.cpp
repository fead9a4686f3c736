// x86 with AVX2: lookups by pshufb.
#if defined(__x86_64__)
#include <immintrin.h>

#include "lut.h"

#define QN_AVX2 __attribute__((target("avx2")))

namespace qn {
namespace {

bool supported() { return __builtin_cpu_supports("avx2"); }

// As build_luts, a column of sixteen entries being one register.
QN_AVX2 void build(const int8_t* x, const int16_t* const* planes, int64_t columns, int64_t d, int64_t parts, uint8_t* lut) {
  const __m256i low_bytes = _mm256_set1_epi16(0xff);
  for (int64_t column = 0; column < (columns + 3) / 4 * 4; ++column) {
    for (int64_t part = 0; part < parts; ++part) {
      __m256i entries = _mm256_set1_epi16(INT16_MIN);
      if (column < columns) {
        const int64_t begin = part * d / parts, end = (part + 1) * d / parts;
        for (int64_t j = begin; j < end; ++j) {
          const __m256i plane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes[column] + j * 16));
          entries = _mm256_add_epi16(entries, _mm256_mullo_epi16(plane, _mm256_set1_epi16(x[column * d + j])));
        }
      }
      uint8_t* low = lut + (column / 4 * parts + part) * kGroupLutBytes + 16 * kPlaceOfColumn[column % 4];
      // Sixteen low bytes, then sixteen high bytes.
      const __m256i both = _mm256_packus_epi16(_mm256_and_si256(entries, low_bytes), _mm256_srli_epi16(entries, 8));
      const __m256i sorted = _mm256_permute4x64_epi64(both, 0xd8);
      _mm_store_si128(reinterpret_cast<__m128i*>(low), _mm256_castsi256_si128(sorted));
      _mm_store_si128(reinterpret_cast<__m128i*>(low + 64), _mm256_extracti128_si256(sorted, 1));
    }
  }
}

QN_AVX2 inline __m256i table(const uint8_t* at) { return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(at))); }

// Four codes of a row lie in 16 bits. A code is moved to the low byte, whose lookup gives a byte, zero-extended but for the high byte: that
// looks up entry 0, which adds up to a number known beforehand, modulo 2^16.
QN_AVX2 void look_up(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  const __m256i code = _mm256_set1_epi16(15);
  __m256i low[4], high[4];
  for (int v = 0; v < 4; ++v) low[v] = high[v] = _mm256_setzero_si256();
  uint32_t low_extra = 0, high_extra = 0;  // of the high bytes: entry 0 of each table
  for (int64_t group = 0; group < groups; ++group, codes += 2 * 64) {
    const __m256i q[4] = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32)),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 64)),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 96))};
    for (int64_t part = 0; part < parts; ++part, lut += kGroupLutBytes) {
#define QN_COLUMN(place, index)                                                    \
  {                                                                                \
    const __m256i low_table = table(lut + 16 * place), high_table = table(lut + 64 + 16 * place); \
    low_extra += lut[16 * place], high_extra += lut[64 + 16 * place];              \
    for (int v = 0; v < 4; ++v) {                                                  \
      const __m256i i = index;                                                     \
      low[v] = _mm256_add_epi16(low[v], _mm256_shuffle_epi8(low_table, i));        \
      high[v] = _mm256_add_epi16(high[v], _mm256_shuffle_epi8(high_table, i));     \
    }                                                                              \
  }
      QN_COLUMN(0, _mm256_and_si256(q[v], code))
      QN_COLUMN(2, _mm256_and_si256(_mm256_srli_epi16(q[v], 4), code))
      QN_COLUMN(1, _mm256_and_si256(_mm256_srli_epi16(q[v], 8), code))
      QN_COLUMN(3, _mm256_srli_epi16(q[v], 12))
#undef QN_COLUMN
    }
  }
  const __m256i low_less = _mm256_set1_epi16(static_cast<int16_t>(low_extra << 8)), high_less = _mm256_set1_epi16(static_cast<int16_t>(high_extra << 8));
  for (int v = 0; v < 4; ++v) {
    const __m256i lows = _mm256_sub_epi16(low[v], low_less), highs = _mm256_sub_epi16(high[v], high_less);
    for (int half = 0; half < 2; ++half) {
      const __m128i l = half ? _mm256_extracti128_si256(lows, 1) : _mm256_castsi256_si128(lows);
      const __m128i h = half ? _mm256_extracti128_si256(highs, 1) : _mm256_castsi256_si128(highs);
      __m256i* to = reinterpret_cast<__m256i*>(sums + 16 * v + 8 * half);
      const __m256i total = _mm256_add_epi32(_mm256_cvtepu16_epi32(l), _mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 8));
      _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), total));
    }
  }
}

QN_AVX2 inline __m256i widened(const int8_t* at) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))); }

QN_AVX2 inline int32_t total(__m256i sums) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

// ROWS rows of x by OUTS rows of w. Products of 16 bits: those of bytes (pmaddubsw) would saturate.
template <int ROWS, int OUTS>
QN_AVX2 void block(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t w_stride, int64_t depth, int32_t* sums, int64_t sums_stride) {
  __m256i sum[ROWS][OUTS];
  for (int r = 0; r < ROWS; ++r) {
    for (int o = 0; o < OUTS; ++o) sum[r][o] = _mm256_setzero_si256();
  }
  int64_t k = 0;
  for (; k + 16 <= depth; k += 16) {
    __m256i values[ROWS];
    for (int r = 0; r < ROWS; ++r) values[r] = widened(x + r * x_stride + k);
    for (int o = 0; o < OUTS; ++o) {
      const __m256i weights = widened(w + o * w_stride + k);
      for (int r = 0; r < ROWS; ++r) sum[r][o] = _mm256_add_epi32(sum[r][o], _mm256_madd_epi16(values[r], weights));
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int o = 0; o < OUTS; ++o) {
      int32_t rest = total(sum[r][o]);
      for (int64_t i = k; i < depth; ++i) rest += x[r * x_stride + i] * w[o * w_stride + i];
      sums[r * sums_stride + o] += rest;
    }
  }
}

QN_AVX2 void multiply(const int8_t* x, int64_t rows, int64_t x_stride, const int8_t* w, int64_t outs, int64_t w_stride, int64_t depth, int32_t* sums,
                      int64_t sums_stride) {
  for (int64_t o = 0; o < outs;) {
    const bool four = o + 4 <= outs;
    const int8_t* weights = w + o * w_stride;
    for (int64_t r = 0; r < rows;) {
      const bool two = r + 2 <= rows;
      int32_t* to = sums + r * sums_stride + o;
      const auto run = four ? two ? block<2, 4> : block<1, 4> : two ? block<2, 1> : block<1, 1>;
      run(x + r * x_stride, x_stride, weights, w_stride, depth, to, sums_stride);
      r += two ? 2 : 1;
    }
    o += four ? 4 : 1;
  }
}

}  // namespace

const Path kAvx2 = {"avx2", supported, INT64_MAX, look_up, build, multiply};

}  // namespace qn
#endif
