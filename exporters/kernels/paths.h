// What a processor does fast, chosen when the program runs.
#pragma once

#include <cstdint>
#include <vector>

namespace qn {

constexpr int64_t kChunkColumns = 256;  // lookups that 16 bits can add up: 256 * 255 < 2^16
constexpr int64_t kLutBytes = 32;       // of a column: sixteen low bytes, then sixteen high bytes

constexpr int64_t kDepth = 512;  // weights of a row that are decoded at a time
constexpr int64_t kDepthStep = 64;
constexpr int64_t kDecodeRows = 128;  // rows of activations that meet decoded weights
constexpr int64_t kManyRows = 8;
constexpr int64_t kScratch = (kDecodeRows + 64) * kDepth + 16;

// A LUT entry is sum_j x[j] * centroid[k][j] + 2^15, 16 bits without sign. Group by group: 8 * 16 bytes,
//   low bytes of columns 0, 2, 1, 3, then their high bytes,
// so that the tables of columns 0 and 2, and 1 and 3, lie next to each other.
constexpr int64_t kGroupLutBytes = 4 * kLutBytes;

struct Path {
  const char* name;
  bool (*supported)();

  // The most activation rows for which lookups beat decoding, where a lookup stands for 1, for 2 or 3, and for 4 weights or more.
  int64_t lookup_rows[3];

  // sums[64] += the LUT entries of 64 rows. codes: [groups][64][2] bytes; lut: for part p of group g at lut + (g * parts + p) *
  // kGroupLutBytes. The 2^15 of each entry is included. groups * parts * 4 <= kChunkColumns.
  void (*look_up)(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums);

  // LUTs of `groups` groups: for column c of d weights, planes[c] points to int16 [d][16], x to the activations int8 [columns][d].
  void (*build)(const int8_t* x, const int16_t* const* planes, int64_t columns, int64_t d, int64_t parts, uint8_t* lut);

  // sums[r][o] += sum over k < depth of x[r][k] * w[o][k]. depth <= kDepth is a multiple of kDepthStep: past the end x holds zeros.
  // scratch: kScratch elements if there are kManyRows rows or more.
  void (*multiply)(const int8_t* x, int64_t rows, int64_t x_stride, const int8_t* w, int64_t outs, int64_t w_stride, int64_t depth,
                   int32_t* sums, int64_t sums_stride, int16_t* scratch);

  // The same for the 64 outputs of a tile of nibbles, which it decodes on the way; null where decoding first is as fast. x_stride is
  // kDepth; planes as for `build`, of `groups` whole groups; groups * 4 * d <= kDepth, as far as which x holds zeros; scratch: kScratch
  // elements.
  void (*multiply_tile)(const int8_t* x, int64_t rows, const uint8_t* codes, const int16_t* const* planes, int64_t groups, int64_t d,
                        int32_t* sums, int64_t sums_stride, int16_t* scratch);
  int64_t tile_step;  // of the d that it takes
};

// The paths that this processor supports, the fastest first; the last one is portable.
const std::vector<const Path*>& paths();

extern const Path kPortable;
#if defined(__x86_64__) || defined(QN_SIMDE)
extern const Path kAvx2, kAvx512, kAvx512Vbmi;
void multiply_tile_avx2(const int8_t* x, int64_t rows, const uint8_t* codes, const int16_t* const* planes, int64_t groups, int64_t d,
                        int32_t* sums, int64_t sums_stride, int16_t* scratch);
#endif
#if defined(__aarch64__)
extern const Path kNeon, kNeonDot, kNeonI8mm;
#endif

}  // namespace qn
