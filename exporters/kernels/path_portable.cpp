// Plain C++, for any processor.
#include "lut.h"

namespace qn {
namespace {

bool supported() { return true; }

void build(const int8_t* x, const int16_t* const* planes, int64_t columns, int64_t d, int64_t parts, uint8_t* lut) {
  build_luts(x, planes, columns, d, parts, lut);
}

void look_up(const uint8_t* codes, const uint8_t* lut, int64_t groups, int64_t parts, int32_t* sums) {
  for (int64_t group = 0; group < groups; ++group, codes += 2 * 64) {
    for (int64_t part = 0; part < parts; ++part, lut += kGroupLutBytes) {
      for (int row = 0; row < 64; ++row) {
        for (int column = 0; column < 4; ++column) {
          const int code = codes[2 * row + column / 2] >> (column % 2 * 4) & 15;
          const uint8_t* low = lut + 16 * kPlaceOfColumn[column] + code;
          sums[row] += low[0] + 256 * low[64];
        }
      }
    }
  }
}

void multiply(const int8_t* x, int64_t rows, int64_t x_stride, const int8_t* w, int64_t outs, int64_t w_stride, int64_t depth, int32_t* sums,
              int64_t sums_stride, int16_t*) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < outs; ++o) {
      int32_t sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += x[r * x_stride + k] * w[o * w_stride + k];
      sums[r * sums_stride + o] += sum;
    }
  }
}

}  // namespace

const Path kPortable = {"portable", supported, {0, 0, 0}, look_up, build, multiply, nullptr, 1};

}  // namespace qn
