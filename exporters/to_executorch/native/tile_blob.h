// Tile blob, version 1: a weight as the kernels read it, codes in tiles. ../README.md specifies it byte by byte.
//
// Plain C++17 without ExecuTorch. The input is never trusted: a table that parse() gives is safe to multiply with.
#pragma once

#include <optional>

#include "../../kernels/table_linear.h"
#include "bytes.h"

namespace qn {

class TileBlob {
 public:
  // The table that a blob holds, or nothing where it breaks a rule of the format. It points into `data`.
  static std::optional<Table> parse(const uint8_t* data, size_t size) {
    static constexpr uint8_t kMagic[16] = {0x89, 'Q', 'N', 'T', 'I', 'L', 'E', 'S', 0xb4, 0xa1, 0x36, 0x7f, 0xef, 0x59, 0x43, 0x85};
    if (!starts_with(data, size, kMagic) || size < kHeaderBytes || read_u32(data + 16) != 1) return std::nullopt;
    Table table{};
    table.out = read_u32(data + 20);
    table.columns = read_u32(data + 24);
    table.books = read_u32(data + 28);
    table.size = read_u32(data + 32);
    table.d = read_u32(data + 36);
    // Each is below 2^16 in a table, so that no product overflows.
    if (table.books >> 17 || table.size >> 9 || table.d >> 7) return std::nullopt;
    table.centroid_bytes = static_cast<size_t>(table.books * table.size * table.d);
    if (table.centroid_bytes > size - kHeaderBytes) return std::nullopt;
    table.centroids = reinterpret_cast<const int8_t*>(data + kHeaderBytes);
    table.codes = data + kHeaderBytes + table.centroid_bytes;
    table.code_bytes = size - kHeaderBytes - table.centroid_bytes;
    return problem(table) ? std::nullopt : std::optional(table);
  }

 private:
  static constexpr size_t kHeaderBytes = 40;
};

}  // namespace qn
