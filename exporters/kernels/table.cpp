// What a table is, and its checks.
#include <algorithm>

#include "table_linear.h"

namespace qn {
namespace {

constexpr int64_t kLimit = int64_t{1} << 31;
constexpr int64_t kMostInputs = int64_t{1} << 16;  // 128 * 127 * 2^16 and 2^16 * 2^15 fit int32

int64_t padded(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

}  // namespace

size_t packed_bytes(int64_t out, int64_t columns, int64_t size) {
  const int64_t codes = size > kSmall ? out * columns : padded(out, kTileRows) * padded(columns, kGroupColumns) / 2;
  return static_cast<size_t>(codes);
}

const char* problem(const Table& table) {
  const auto within = [](int64_t value, int64_t most) { return value >= 1 && value <= most; };
  if (!within(table.size, 256)) return "a codebook must have 1 to 256 centroids";
  if (!within(table.d, 64)) return "a code must stand for 1 to 64 weights";
  if (!within(table.columns, kMostInputs) || table.columns * table.d > kMostInputs) return "a row must have 1 to 65536 weights";
  if (!within(table.out, kLimit) || table.out * table.columns * table.d > kLimit * 16) return "the weight is too large";
  if (!within(table.books, table.columns)) return "there must be 1 codebook to 1 for each column of codes";
  if (table.code_bytes != packed_bytes(table.out, table.columns, table.size)) return "the codes do not fill the weight";
  if (table.centroid_bytes != static_cast<size_t>(table.books * table.size * table.d)) return "the centroids do not fill the codebooks";
  if (std::find(table.centroids, table.centroids + table.centroid_bytes, -128) != table.centroids + table.centroid_bytes) {
    return "a centroid is -128; the range is -127 to 127";
  }
  return nullptr;
}

}  // namespace qn
