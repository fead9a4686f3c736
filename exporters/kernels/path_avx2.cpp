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

QN_AVX2 inline __m256i table(const uint8_t* at) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
}

// Half a tile, 32 rows: sums of 64 rows would not fit the registers.
//
// Four codes of a row lie in 16 bits. A code is moved to the low byte, whose lookup gives a byte, zero-extended but for the high byte: that
// looks up entry 0, which adds up to a number known beforehand, modulo 2^16.
QN_AVX2 void look_up_half(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  const __m256i code = _mm256_set1_epi16(15);
  __m256i low[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()}, high[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  uint32_t low_extra = 0, high_extra = 0;  // of the high bytes: entry 0 of each table
  for (int64_t group = 0; group < groups; ++group, codes += 2 * 64) {
    const __m256i q[2] = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes)),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32))};
    for (int64_t part = 0; part < parts; ++part, lut += kGroupLutBytes) {
#pragma GCC unroll 4
      for (int n = 0; n < 4; ++n) {
        const uint8_t* at = lut + 16 * kPlaceOfColumn[n];
        const __m256i low_table = table(at), high_table = table(at + 64);
        low_extra += at[0], high_extra += at[64];
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          __m256i i = q[v];
          if (n > 0) i = _mm256_srli_epi16(i, 4 * n);
          if (n < 3) i = _mm256_and_si256(i, code);
          low[v] = _mm256_add_epi16(low[v], _mm256_shuffle_epi8(low_table, i));
          high[v] = _mm256_add_epi16(high[v], _mm256_shuffle_epi8(high_table, i));
        }
      }
    }
  }
  const __m256i low_less = _mm256_set1_epi16(static_cast<int16_t>(low_extra << 8)),
                high_less = _mm256_set1_epi16(static_cast<int16_t>(high_extra << 8));
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
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

QN_AVX2 void look_up(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  look_up_half(codes, lut, groups, parts, sums);
  look_up_half(codes + 64, lut, groups, parts, sums + 32);
}

QN_AVX2 inline __m256i widened(const int8_t* at) { return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))); }

QN_AVX2 inline int32_t total(__m256i sums) {
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

// One row of x by OUTS rows of w. Products of 16 bits: those of bytes (pmaddubsw) would saturate.
template <int OUTS>
QN_AVX2 void row(const int8_t* x, const int8_t* w, int64_t w_stride, int64_t depth, int32_t* sums) {
  __m256i sum[OUTS];
  for (int o = 0; o < OUTS; ++o) sum[o] = _mm256_setzero_si256();
  for (int64_t k = 0; k < depth; k += 16) {
    const __m256i values = widened(x + k);
    for (int o = 0; o < OUTS; ++o) sum[o] = _mm256_add_epi32(sum[o], _mm256_madd_epi16(values, widened(w + o * w_stride + k)));
  }
  for (int o = 0; o < OUTS; ++o) sums[o] += total(sum[o]);
}

// A panel is int16 [depth / 2][16][2]: pairs of weights of sixteen rows, these in the order 0-3, 8-11, 4-7, 12-15.
constexpr int64_t kPanelRows = 16;

// ROWS rows of x, int16 [.][kDepth], by a panel.
template <int ROWS>
QN_AVX2 void panel_rows(const int16_t* x, const int16_t* panel, int64_t depth, int32_t* sums, int64_t sums_stride) {
  __m256i sum[ROWS][2];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
  for (int64_t k = 0; k < depth; k += 2, panel += 2 * kPanelRows) {
    const __m256i first = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel));
    const __m256i second = _mm256_load_si256(reinterpret_cast<const __m256i*>(panel + kPanelRows));
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      int32_t pair;
      __builtin_memcpy(&pair, x + r * kDepth + k, sizeof pair);
      const __m256i values = _mm256_set1_epi32(pair);
      sum[r][0] = _mm256_add_epi32(sum[r][0], _mm256_madd_epi16(values, first));
      sum[r][1] = _mm256_add_epi32(sum[r][1], _mm256_madd_epi16(values, second));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r) {
    __m256i* to = reinterpret_cast<__m256i*>(sums + r * sums_stride);
    _mm256_storeu_si256(to, _mm256_add_epi32(_mm256_loadu_si256(to), _mm256_permute2x128_si256(sum[r][0], sum[r][1], 0x20)));
    _mm256_storeu_si256(to + 1, _mm256_add_epi32(_mm256_loadu_si256(to + 1), _mm256_permute2x128_si256(sum[r][0], sum[r][1], 0x31)));
  }
}

QN_AVX2 void multiply_panel(const int16_t* x, int64_t rows, const int16_t* panel, int64_t depth, int32_t* sums, int64_t sums_stride) {
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6) panel_rows<6>(x + r * kDepth, panel, depth, sums + r * sums_stride, sums_stride);
  for (; r + 2 <= rows; r += 2) panel_rows<2>(x + r * kDepth, panel, depth, sums + r * sums_stride, sums_stride);
  if (r < rows) panel_rows<1>(x + r * kDepth, panel, depth, sums + r * sums_stride, sums_stride);
}

// int16 [rows][kDepth] from int8.
QN_AVX2 void widen(const int8_t* x, int64_t rows, int64_t depth, int16_t* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < depth; k += 16)
      _mm256_store_si256(reinterpret_cast<__m256i*>(to + r * kDepth + k), widened(x + r * kDepth + k));
  }
}

// A panel from sixteen rows of int8: eight rows by eight pairs are transposed at a time.
QN_AVX2 void pack(const int8_t* w, int64_t w_stride, int64_t depth, int16_t* panel) {
  constexpr int kOrder[2][8] = {{0, 1, 2, 3, 8, 9, 10, 11}, {4, 5, 6, 7, 12, 13, 14, 15}};
  for (int64_t k = 0; k < depth; k += 16) {
    for (int half = 0; half < 2; ++half) {
      __m256i a[8], b[8];
      for (int i = 0; i < 8; ++i) a[i] = widened(w + kOrder[half][i] * w_stride + k);
      for (int i = 0; i < 8; i += 2) b[i] = _mm256_unpacklo_epi32(a[i], a[i + 1]), b[i + 1] = _mm256_unpackhi_epi32(a[i], a[i + 1]);
      for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_unpacklo_epi64(b[i], b[i + 2]), a[i + 1] = _mm256_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm256_unpacklo_epi64(b[i + 1], b[i + 3]), a[i + 3] = _mm256_unpackhi_epi64(b[i + 1], b[i + 3]);
      }
      for (int i = 0; i < 4; ++i) {
        __m256i* to = reinterpret_cast<__m256i*>(panel + ((k / 2 + i) * 2 + half) * kPanelRows);
        _mm256_store_si256(to, _mm256_permute2x128_si256(a[i], a[i + 4], 0x20));
        _mm256_store_si256(to + 8, _mm256_permute2x128_si256(a[i], a[i + 4], 0x31));
      }
    }
  }
}

int16_t* aligned(int16_t* scratch) { return scratch + (32 - reinterpret_cast<uintptr_t>(scratch) % 32) / 2 % 16; }

QN_AVX2 void multiply(const int8_t* x, int64_t rows, int64_t x_stride, const int8_t* w, int64_t outs, int64_t w_stride, int64_t depth,
                      int32_t* sums, int64_t sums_stride, int16_t* scratch) {
  int64_t o = 0;
  if (rows >= kManyRows && outs >= kPanelRows) {
    int16_t *values = aligned(scratch), *panel = values + kDecodeRows * kDepth;
    widen(x, rows, depth, values);
    for (; o + kPanelRows <= outs; o += kPanelRows) {
      pack(w + o * w_stride, w_stride, depth, panel);
      multiply_panel(values, rows, panel, depth, sums + o, sums_stride);
    }
  }
  for (; o < outs;) {
    const bool four = o + 4 <= outs;
    for (int64_t r = 0; r < rows; ++r) {
      (four ? row<4> : row<1>)(x + r * x_stride, w + o * w_stride, w_stride, depth, sums + r * sums_stride + o);
    }
    o += four ? 4 : 1;
  }
}

QN_AVX2 inline __m256i sign_extended(__m256i low_bytes) { return _mm256_srai_epi16(_mm256_slli_epi16(low_bytes, 8), 8); }

}  // namespace

// The panels of the four times sixteen rows of a tile, straight from the codes.
QN_AVX2 void multiply_tile_avx2(const int8_t* x, int64_t rows, const uint8_t* codes, const int16_t* const* planes, int64_t groups,
                                int64_t d, int32_t* sums, int64_t sums_stride, int16_t* scratch) {
  const __m256i code = _mm256_set1_epi16(15);
  int16_t *values = aligned(scratch), *panels = values + kDecodeRows * kDepth;
  const int64_t depth = groups * 4 * d, panel_size = depth * kPanelRows;
  widen(x, rows, (depth + 15) / 16 * 16, values);
  for (int64_t group = 0; group < groups; ++group) {
    for (int n = 0; n < 4; ++n) {
      const int16_t* plane = planes[4 * group + n];
      for (int64_t j = 0; j < d; j += 2) {
        const __m256i lines[2] = {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(plane + j * 16)),
                                  _mm256_loadu_si256(reinterpret_cast<const __m256i*>(plane + (j + 1) * 16))};
        // The entries as bytes, sixteen in each half of the register.
        const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(lines[0], lines[1]), 0xd8);
        const __m256i even = _mm256_permute2x128_si256(bytes, bytes, 0x00), odd = _mm256_permute2x128_si256(bytes, bytes, 0x11);
        int16_t* to = panels + ((4 * group + n) * d + j) * kPanelRows;
        for (int v = 0; v < 4; ++v, to += panel_size) {
          const __m256i q = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * v));
          const __m256i i = _mm256_and_si256(_mm256_srl_epi16(q, _mm_cvtsi32_si128(4 * n)), code);
          const __m256i first = sign_extended(_mm256_shuffle_epi8(even, i)), second = sign_extended(_mm256_shuffle_epi8(odd, i));
          _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_unpacklo_epi16(first, second));
          _mm256_store_si256(reinterpret_cast<__m256i*>(to + kPanelRows), _mm256_unpackhi_epi16(first, second));
        }
      }
    }
    codes += 2 * 64;
  }
  for (int v = 0; v < 4; ++v) multiply_panel(values, rows, panels + v * panel_size, depth, sums + v * kPanelRows, sums_stride);
}

const Path kAvx2 = {"avx2", supported, {6, 16, 32}, look_up, build, multiply, multiply_tile_avx2, 2};

}  // namespace qn
#endif
