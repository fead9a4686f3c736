// The LUTs of a group of columns, in plain C++ that compilers vectorise. Each path compiles it for its own instructions.
#pragma once

#include <cstdint>
#include <cstring>

#include "paths.h"

namespace qn {

// Where column n of a group lies among the four tables of a plane: 0, 2, 1, 3.
constexpr int kPlaceOfColumn[4] = {0, 2, 1, 3};

__attribute__((always_inline)) inline void build_luts(const int8_t* x, const int16_t* const* planes, int64_t columns, int64_t d, int64_t parts,
                                                      uint8_t* lut) {
  const int64_t groups = (columns + 3) / 4;
  for (int64_t column = 0; column < 4 * groups; ++column) {
    for (int64_t part = 0; part < parts; ++part) {
      uint16_t entries[16];
      for (int k = 0; k < 16; ++k) entries[k] = 1 << 15;
      if (column < columns) {
        const int64_t begin = part * d / parts, end = (part + 1) * d / parts;
        for (int64_t j = begin; j < end; ++j) {
          const int16_t* plane = planes[column] + j * 16;
          const int16_t value = x[column * d + j];
          for (int k = 0; k < 16; ++k) entries[k] = static_cast<uint16_t>(entries[k] + value * plane[k]);
        }
      }
      uint8_t* low = lut + (column / 4 * parts + part) * kGroupLutBytes + 16 * kPlaceOfColumn[column % 4];
      for (int k = 0; k < 16; ++k) low[k] = static_cast<uint8_t>(entries[k]);
      for (int k = 0; k < 16; ++k) low[64 + k] = static_cast<uint8_t>(entries[k] >> 8);
    }
  }
}

}  // namespace qn
