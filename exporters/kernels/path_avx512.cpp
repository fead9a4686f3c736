// x86 with AVX-512: lookups by vpshufb, or by vpermb (VBMI), dot products by VNNI.
#if defined(__x86_64__) || defined(QN_SIMDE)
#ifdef QN_SIMDE  // the same instructions, emulated: for tests on other processors
#include "emulated_avx512.h"
#define QN_AVX512
#define QN_VBMI
#else
#if !defined(__clang__)  // of the header itself, in GCC 12
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#define QN_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))
#define QN_VBMI __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")))
#endif

#include "lut.h"

namespace qn {
namespace {

#ifdef QN_SIMDE
bool supported() { return true; }
bool supports_vbmi() { return true; }
#else
bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
bool supports_vbmi() { return supported() && __builtin_cpu_supports("avx512vbmi"); }
#endif

QN_AVX512 void build(const int8_t* x, const int16_t* const* planes, int64_t columns, int64_t d, int64_t parts, uint8_t* lut) {
  build_luts(x, planes, columns, d, parts, lut);
}

QN_AVX512 inline __m512i load(const uint8_t* at) { return _mm512_loadu_si512(reinterpret_cast<const void*>(at)); }

// sums[64] += low + 256 * high, of 16 bits without sign.
QN_AVX512 inline void flush(const __m512i* low, const __m512i* high, int32_t* sums) {
  for (int v = 0; v < 2; ++v) {
    const __m512i lows[2] = {_mm512_cvtepu16_epi32(_mm512_castsi512_si256(low[v])),
                             _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(low[v], 1))};
    const __m512i highs[2] = {_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high[v])),
                              _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high[v], 1))};
    for (int half = 0; half < 2; ++half) {
      int32_t* to = sums + 32 * v + 16 * half;
      const __m512i sum = _mm512_add_epi32(lows[half], _mm512_slli_epi32(highs[half], 8));
      _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), sum));
    }
  }
}

// As the lookups of AVX2, see there.
QN_AVX512 void look_up(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  const __m512i code = _mm512_set1_epi16(15);
  __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  uint32_t low_extra = 0, high_extra = 0;
  for (int64_t group = 0; group < groups; ++group, codes += 2 * 64) {
    const __m512i q[2] = {load(codes), load(codes + 64)};
    const __m512i index[2][4] = {{_mm512_and_si512(q[0], code), _mm512_and_si512(_mm512_srli_epi16(q[0], 8), code),
                                  _mm512_and_si512(_mm512_srli_epi16(q[0], 4), code), _mm512_srli_epi16(q[0], 12)},
                                 {_mm512_and_si512(q[1], code), _mm512_and_si512(_mm512_srli_epi16(q[1], 8), code),
                                  _mm512_and_si512(_mm512_srli_epi16(q[1], 4), code), _mm512_srli_epi16(q[1], 12)}};
    for (int64_t part = 0; part < parts; ++part, lut += kGroupLutBytes) {
      for (int place = 0; place < 4; ++place) {
        const uint8_t* at = lut + 16 * place;
        const __m512i low_table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
        const __m512i high_table = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 64)));
        low_extra += at[0], high_extra += at[64];
        for (int v = 0; v < 2; ++v) {
          low[v] = _mm512_add_epi16(low[v], _mm512_shuffle_epi8(low_table, index[v][place]));
          high[v] = _mm512_add_epi16(high[v], _mm512_shuffle_epi8(high_table, index[v][place]));
        }
      }
    }
  }
  for (int v = 0; v < 2; ++v) {
    low[v] = _mm512_sub_epi16(low[v], _mm512_set1_epi16(static_cast<int16_t>(low_extra << 8)));
    high[v] = _mm512_sub_epi16(high[v], _mm512_set1_epi16(static_cast<int16_t>(high_extra << 8)));
  }
  flush(low, high, sums);
}

// The four tables of a group are one register: bits 4 and 5 of an index choose the table. Tables 0 and 1 are those of the low halves of the
// even and odd bytes, tables 2 and 3 of the high halves. Two columns of a row lie side by side, and their bytes are added pairwise.
QN_VBMI void permute(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  const __m512i code = _mm512_set1_epi8(15), ones = _mm512_set1_epi8(1);
  const __m512i first = _mm512_set1_epi16(0x1000), second = _mm512_set1_epi16(0x3020);
  __m512i low[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()}, high[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t group = 0; group < groups; ++group, codes += 2 * 64) {
    __m512i index[2][2];
    for (int v = 0; v < 2; ++v) {
      const __m512i q = load(codes + 64 * v);
      index[v][0] = _mm512_or_si512(_mm512_and_si512(q, code), first);
      index[v][1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(q, 4), code), second);
    }
    for (int64_t part = 0; part < parts; ++part, lut += kGroupLutBytes) {
      const __m512i low_tables = load(lut), high_tables = load(lut + 64);
      for (int v = 0; v < 2; ++v) {
        for (int half = 0; half < 2; ++half) {
          low[v] = _mm512_add_epi16(low[v], _mm512_maddubs_epi16(_mm512_permutexvar_epi8(index[v][half], low_tables), ones));
          high[v] = _mm512_add_epi16(high[v], _mm512_maddubs_epi16(_mm512_permutexvar_epi8(index[v][half], high_tables), ones));
        }
      }
    }
  }
  flush(low, high, sums);
}

// ROWS rows of x by OUTS rows of w. The instruction takes one operand without sign: x + 128, and 128 times the row of w is taken off.
template <int ROWS, int OUTS>
QN_AVX512 void block(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t w_stride, int64_t depth, int32_t* sums,
                     int64_t sums_stride) {
  const __m512i offset = _mm512_set1_epi8(-128);
  __m512i sum[ROWS][OUTS], extra[OUTS];
  for (int o = 0; o < OUTS; ++o) {
    extra[o] = _mm512_setzero_si512();
    for (int r = 0; r < ROWS; ++r) sum[r][o] = _mm512_setzero_si512();
  }
  for (int64_t k = 0; k < depth; k += 64) {
    __m512i values[ROWS];
    for (int r = 0; r < ROWS; ++r) values[r] = _mm512_xor_si512(_mm512_loadu_si512(x + r * x_stride + k), offset);
    for (int o = 0; o < OUTS; ++o) {
      const __m512i weights = _mm512_loadu_si512(w + o * w_stride + k);
      extra[o] = _mm512_dpbusd_epi32(extra[o], offset, weights);
      for (int r = 0; r < ROWS; ++r) sum[r][o] = _mm512_dpbusd_epi32(sum[r][o], values[r], weights);
    }
  }
  for (int r = 0; r < ROWS; ++r) {
    for (int o = 0; o < OUTS; ++o) sums[r * sums_stride + o] += _mm512_reduce_add_epi32(_mm512_sub_epi32(sum[r][o], extra[o]));
  }
}

QN_AVX512 void multiply(const int8_t* x, int64_t rows, int64_t x_stride, const int8_t* w, int64_t outs, int64_t w_stride, int64_t depth,
                        int32_t* sums, int64_t sums_stride, int16_t*) {
  for (int64_t o = 0; o < outs;) {
    const bool four = o + 4 <= outs;
    const int8_t* weights = w + o * w_stride;
    for (int64_t r = 0; r < rows;) {
      const bool many = r + 4 <= rows;
      int32_t* to = sums + r * sums_stride + o;
      const auto run = four ? many ? block<4, 4> : block<1, 4> : many ? block<4, 1> : block<1, 1>;
      run(x + r * x_stride, x_stride, weights, w_stride, depth, to, sums_stride);
      r += many ? 4 : 1;
    }
    o += four ? 4 : 1;
  }
}

uint8_t* aligned(int16_t* scratch) {
  auto* bytes = reinterpret_cast<uint8_t*>(scratch);
  return bytes + (64 - reinterpret_cast<uintptr_t>(bytes) % 64) % 64;
}

// Weights of a tile, four of each row side by side: [depth / 4][64][4]. A register holds those of sixteen rows, an entry of a table of 64
// bytes each: the four planes that they come from. Bits 4 and 5 of an index choose the plane, and one multishift takes the four codes out
// of a row's 16 bits.
QN_VBMI void decode_tile(const uint8_t* codes, const int16_t* const* planes, int64_t groups, int64_t d, int8_t* weights) {
  const __m512i code = _mm512_set1_epi8(15), places = _mm512_set1_epi32(0x30201000);
  for (int64_t group = 0; group < groups; ++group, codes += 2 * 64, planes += 4) {
    __m512i rows[4];
    for (int v = 0; v < 4; ++v) rows[v] = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32 * v)));
    for (int64_t four = 0; four < d; ++four) {
      alignas(64) int8_t entries[64];
      uint64_t shifts = 0;
      for (int64_t b = 0; b < 4; ++b) {
        const int64_t column = (4 * four + b) / d, j = (4 * four + b) % d;
        const __m256i plane = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(planes[column] + j * 16));
        _mm_store_si128(reinterpret_cast<__m128i*>(entries + 16 * b), _mm256_cvtsepi16_epi8(plane));
        shifts |= (static_cast<uint64_t>(4 * column) | static_cast<uint64_t>(4 * column + 32) << 32) << (8 * b);
      }
      const __m512i table = _mm512_load_si512(entries), shift = _mm512_set1_epi64(static_cast<int64_t>(shifts));
      for (int v = 0; v < 4; ++v, weights += 64) {
        const __m512i index =
            _mm512_ternarylogic_epi32(_mm512_multishift_epi64_epi8(shift, rows[v]), code, places, 0xea);  // shifted & code | places
        _mm512_store_si512(weights, _mm512_permutexvar_epi8(index, table));
      }
    }
  }
}

// sums[r][o] += sum of (x[r] + 128) * w less extra[o]: ROWS rows of x, 64 outputs.
template <int ROWS>
QN_AVX512 void tile_rows(const uint8_t* x, const int8_t* weights, int64_t fours, const __m512i* extra, int32_t* sums, int64_t sums_stride) {
  __m512i sum[4 * ROWS];  // of row i / 4, outputs 16 * (i % 4) and on; one loop over all, and no more than 16, so that GCC 12 keeps them in
                          // registers
#pragma GCC unroll 16
  for (int i = 0; i < 4 * ROWS; ++i) sum[i] = _mm512_setzero_si512();
  for (int64_t four = 0; four < fours; ++four, weights += 256) {
#pragma GCC unroll 16
    for (int i = 0; i < 4 * ROWS; ++i) {
      int32_t bytes;
      __builtin_memcpy(&bytes, x + i / 4 * kDepth + 4 * four, sizeof bytes);
      sum[i] = _mm512_dpbusd_epi32(sum[i], _mm512_set1_epi32(bytes), _mm512_load_si512(weights + 64 * (i % 4)));
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < 4 * ROWS; ++i) {
    int32_t* to = sums + i / 4 * sums_stride + 16 * (i % 4);
    _mm512_storeu_si512(to, _mm512_add_epi32(_mm512_loadu_si512(to), _mm512_sub_epi32(sum[i], extra[i % 4])));
  }
}

QN_AVX512 void multiply_decoded(const int8_t* x, int64_t rows, const int8_t* weights, int64_t fours, int32_t* sums, int64_t sums_stride,
                                uint8_t* values) {
  const __m512i offset = _mm512_set1_epi8(-128);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < 4 * fours; k += 64) {
      _mm512_store_si512(values + r * kDepth + k, _mm512_xor_si512(_mm512_loadu_si512(x + r * kDepth + k), offset));
    }
  }
  __m512i extra[4];
  for (int v = 0; v < 4; ++v) {
    extra[v] = _mm512_setzero_si512();
    for (int64_t four = 0; four < fours; ++four)
      extra[v] = _mm512_dpbusd_epi32(extra[v], offset, _mm512_load_si512(weights + 256 * four + 64 * v));
  }
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) tile_rows<4>(values + r * kDepth, weights, fours, extra, sums + r * sums_stride, sums_stride);
  for (; r + 2 <= rows; r += 2) tile_rows<2>(values + r * kDepth, weights, fours, extra, sums + r * sums_stride, sums_stride);
  if (r < rows) tile_rows<1>(values + r * kDepth, weights, fours, extra, sums + r * sums_stride, sums_stride);
}

QN_VBMI void multiply_tile(const int8_t* x, int64_t rows, const uint8_t* codes, const int16_t* const* planes, int64_t groups, int64_t d,
                           int32_t* sums, int64_t sums_stride, int16_t* scratch) {
  uint8_t* values = aligned(scratch);
  int8_t* weights = reinterpret_cast<int8_t*>(values + kDecodeRows * kDepth);
  decode_tile(codes, planes, groups, d, weights);
  multiply_decoded(x, rows, weights, groups * d, sums, sums_stride, values);
}

}  // namespace

// Without VBMI a tile is decoded and multiplied by AVX2, which beats decoding it for dot products.
const Path kAvx512 = {"avx512", supported, {2, 6, 16}, look_up, build, multiply, multiply_tile_avx2, 2};
const Path kAvx512Vbmi = {"avx512vbmi", supports_vbmi, {2, 6, 12}, permute, build, multiply, multiply_tile, 1};

}  // namespace qn
#endif
