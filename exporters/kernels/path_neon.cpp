// 64-bit ARM: lookups by tbl of two registers, products by smull, by sdot (dot product) or by smmla (i8mm).
#if defined(__aarch64__)
#if defined(__clang__) && __clang_major__ < 16  // its header goes by the flags of the file, not by the target of a function
#define __ARM_FEATURE_DOTPROD 1
#define __ARM_FEATURE_MATMUL_INT8 1
#endif
#include <arm_neon.h>
#include <sys/auxv.h>

#include "lut.h"

#ifdef __clang__
#define QN_DOT __attribute__((target("dotprod")))
#define QN_I8MM __attribute__((target("i8mm,dotprod")))
#else
#define QN_DOT __attribute__((target("arch=armv8.2-a+dotprod")))
#define QN_I8MM __attribute__((target("arch=armv8.2-a+dotprod+i8mm")))
#endif

namespace qn {
namespace {

// Linux's names for what the processor has (asm/hwcap.h).
constexpr unsigned long kHasDot = 1UL << 20, kHasI8mm = 1UL << 13;

bool supported() { return true; }
bool supports_dot() { return getauxval(AT_HWCAP) & kHasDot; }
bool supports_i8mm() { return supports_dot() && (getauxval(AT_HWCAP2) & kHasI8mm); }

void build(const int8_t* x, const int16_t* const* planes, int64_t columns, int64_t d, int64_t parts, uint8_t* lut) {
  for (int64_t column = 0; column < (columns + 3) / 4 * 4; ++column) {
    for (int64_t part = 0; part < parts; ++part) {
      int16x8_t entries[2] = {vdupq_n_s16(INT16_MIN), vdupq_n_s16(INT16_MIN)};
      if (column < columns) {
        for (int64_t j = part * d / parts; j < (part + 1) * d / parts; ++j) {
          for (int half = 0; half < 2; ++half) {
            entries[half] = vmlaq_n_s16(entries[half], vld1q_s16(planes[column] + j * 16 + 8 * half), x[column * d + j]);
          }
        }
      }
      uint8_t* low = lut + (column / 4 * parts + part) * kGroupLutBytes + 16 * kPlaceOfColumn[column % 4];
      const uint8x16_t first = vreinterpretq_u8_s16(entries[0]), second = vreinterpretq_u8_s16(entries[1]);
      vst1q_u8(low, vuzp1q_u8(first, second));
      vst1q_u8(low + 64, vuzp2q_u8(first, second));
    }
  }
}

// Two bytes of a row hold the codes of columns 0 and 1, and 2 and 3. Columns 0 and 2 are looked up together, in a table of two registers: bit 4
// of the index, set in odd bytes, chooses the register. It stays in the index registers while a new code is inserted below it.
// The bytes looked up are added pairwise to 16 bits.
// Half a tile, 32 rows: compilers find registers for no more.
void look_up_half(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  const uint8x16_t code = vdupq_n_u8(15), odd = vreinterpretq_u8_u16(vdupq_n_u16(0x1000));
  uint8x16_t even_index = odd, odd_index = odd;
  uint16x8_t low[4], high[4];
  for (int v = 0; v < 4; ++v) low[v] = high[v] = vdupq_n_u16(0);
  for (int64_t group = 0; group < groups; ++group, codes += 2 * 64) {
    for (int64_t part = 0; part < parts; ++part, lut += kGroupLutBytes) {
      const uint8x16x2_t even_low = vld1q_u8_x2(lut), odd_low = vld1q_u8_x2(lut + 32);
      const uint8x16x2_t even_high = vld1q_u8_x2(lut + 64), odd_high = vld1q_u8_x2(lut + 96);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) {
        const uint8x16_t q = vld1q_u8(codes + 16 * v);
        even_index = vbslq_u8(code, q, even_index);
        odd_index = vsriq_n_u8(odd_index, q, 4);
        low[v] = vpadalq_u8(low[v], vqtbl2q_u8(even_low, even_index));
        high[v] = vpadalq_u8(high[v], vqtbl2q_u8(even_high, even_index));
        low[v] = vpadalq_u8(low[v], vqtbl2q_u8(odd_low, odd_index));
        high[v] = vpadalq_u8(high[v], vqtbl2q_u8(odd_high, odd_index));
      }
    }
  }
  for (int v = 0; v < 4; ++v) {
    int32_t* to = sums + 8 * v;
    const uint32x4_t first = vaddw_u16(vshll_n_u16(vget_low_u16(high[v]), 8), vget_low_u16(low[v]));
    const uint32x4_t second = vaddw_high_u16(vshll_high_n_u16(high[v], 8), low[v]);
    vst1q_s32(to, vaddq_s32(vld1q_s32(to), vreinterpretq_s32_u32(first)));
    vst1q_s32(to + 4, vaddq_s32(vld1q_s32(to + 4), vreinterpretq_s32_u32(second)));
  }
}

void look_up(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  look_up_half(codes, lut, groups, parts, sums);
  look_up_half(codes + 64, lut, groups, parts, sums + 32);
}

// sum += products of sixteen pairs: two products of int8 fit 16 bits, as no weight is -128.
inline int32x4_t multiply_add(int32x4_t sum, int8x16_t x, int8x16_t w) {
  return vpadalq_s16(sum, vmlal_high_s8(vmull_s8(vget_low_s8(x), vget_low_s8(w)), x, w));
}

QN_DOT inline int32x4_t dot_add(int32x4_t sum, int8x16_t x, int8x16_t w) { return vdotq_s32(sum, x, w); }

// ROWS rows of x by OUTS rows of w; a macro, as a function for other instructions can't be a template's argument and stay inline.
#define QN_BLOCK(NAME, TARGET, ADD)                                                                                                         \
  template <int ROWS, int OUTS>                                                                                                             \
  TARGET void NAME##_block(const int8_t* x, int64_t x_stride, const int8_t* w, int64_t w_stride, int64_t depth, int32_t* sums,              \
                           int64_t sums_stride) {                                                                                           \
    int32x4_t sum[ROWS][OUTS];                                                                                                              \
    for (int r = 0; r < ROWS; ++r) {                                                                                                        \
      for (int o = 0; o < OUTS; ++o) sum[r][o] = vdupq_n_s32(0);                                                                            \
    }                                                                                                                                       \
    for (int64_t k = 0; k < depth; k += 16) {                                                                                                    \
      int8x16_t values[ROWS];                                                                                                               \
      for (int r = 0; r < ROWS; ++r) values[r] = vld1q_s8(x + r * x_stride + k);                                                            \
      for (int o = 0; o < OUTS; ++o) {                                                                                                      \
        const int8x16_t weights = vld1q_s8(w + o * w_stride + k);                                                                           \
        for (int r = 0; r < ROWS; ++r) sum[r][o] = ADD(sum[r][o], values[r], weights);                                                      \
      }                                                                                                                                     \
    }                                                                                                                                       \
    for (int r = 0; r < ROWS; ++r) {                                                                                                        \
      for (int o = 0; o < OUTS; ++o) sums[r * sums_stride + o] += vaddvq_s32(sum[r][o]);                                                    \
    }                                                                                                                                       \
  }                                                                                                                                         \
  TARGET void NAME(const int8_t* x, int64_t rows, int64_t x_stride, const int8_t* w, int64_t outs, int64_t w_stride, int64_t depth,         \
                   int32_t* sums, int64_t sums_stride, int16_t*) {                                                                              \
    for (int64_t o = 0; o < outs;) {                                                                                                        \
      const bool four = o + 4 <= outs;                                                                                                      \
      const int8_t* weights = w + o * w_stride;                                                                                             \
      for (int64_t r = 0; r < rows;) {                                                                                                      \
        const bool many = r + 4 <= rows;                                                                                                    \
        int32_t* to = sums + r * sums_stride + o;                                                                                           \
        const auto run = four   ? many ? NAME##_block<4, 4> : NAME##_block<1, 4>                                                            \
                         : many ? NAME##_block<4, 1>                                                                                        \
                                : NAME##_block<1, 1>;                                                                                       \
        run(x + r * x_stride, x_stride, weights, w_stride, depth, to, sums_stride);                                                         \
        r += many ? 4 : 1;                                                                                                                  \
      }                                                                                                                                     \
      o += four ? 4 : 1;                                                                                                                    \
    }                                                                                                                                       \
  }

QN_BLOCK(multiply, , multiply_add)
QN_BLOCK(multiply_dot, QN_DOT, dot_add)
#undef QN_BLOCK

// Two rows of x by two rows of w, eight products for each of the four sums at once.
QN_I8MM void multiply_i8mm(const int8_t* x, int64_t rows, int64_t x_stride, const int8_t* w, int64_t outs, int64_t w_stride, int64_t depth,
                           int32_t* sums, int64_t sums_stride, int16_t* scratch) {
  const int64_t even_rows = rows & ~int64_t{1}, even_outs = outs & ~int64_t{1};
  for (int64_t o = 0; o < even_outs; o += 2) {
    const int8_t *w0 = w + o * w_stride, *w1 = w0 + w_stride;
    for (int64_t r = 0; r < even_rows; r += 2) {
      const int8_t *x0 = x + r * x_stride, *x1 = x0 + x_stride;
      int32x4_t sum = vdupq_n_s32(0), more = vdupq_n_s32(0);
      for (int64_t k = 0; k < depth; k += 16) {
        const int8x16_t a0 = vld1q_s8(x0 + k), a1 = vld1q_s8(x1 + k), b0 = vld1q_s8(w0 + k), b1 = vld1q_s8(w1 + k);
        sum = vmmlaq_s32(sum, vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(a0), vreinterpretq_s64_s8(a1))),
                         vreinterpretq_s8_s64(vzip1q_s64(vreinterpretq_s64_s8(b0), vreinterpretq_s64_s8(b1))));
        more = vmmlaq_s32(more, vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(a0), vreinterpretq_s64_s8(a1))),
                          vreinterpretq_s8_s64(vzip2q_s64(vreinterpretq_s64_s8(b0), vreinterpretq_s64_s8(b1))));
      }
      sum = vaddq_s32(sum, more);
      int32_t* to = sums + r * sums_stride + o;
      to[0] += vgetq_lane_s32(sum, 0);
      to[1] += vgetq_lane_s32(sum, 1);
      to[sums_stride] += vgetq_lane_s32(sum, 2);
      to[sums_stride + 1] += vgetq_lane_s32(sum, 3);
    }
  }
  if (even_rows < rows) {
    multiply_dot(x + even_rows * x_stride, 1, x_stride, w, even_outs, w_stride, depth, sums + even_rows * sums_stride, sums_stride, scratch);
  }
  if (even_outs < outs) multiply_dot(x, rows, x_stride, w + even_outs * w_stride, 1, w_stride, depth, sums + even_outs, sums_stride, scratch);
}

}  // namespace

const Path kNeon = {"neon", supported, {INT64_MAX, INT64_MAX, INT64_MAX}, look_up, build, multiply, nullptr, 1};
const Path kNeonDot = {"neondot", supports_dot, {2, 4, 8}, look_up, build, multiply_dot, nullptr, 1};
const Path kNeonI8mm = {"neoni8mm", supports_i8mm, {2, 4, 8}, look_up, build, multiply_i8mm, nullptr, 1};

}  // namespace qn
#endif
