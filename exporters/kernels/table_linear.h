// The product of int8 activations with a weight that stays a table: codes into int8 centroids.
//
//   weight[o][i*d + j] = centroids[i*books / columns][codes[o][i]][j]                 int8, i < columns, j < d, in = columns * d
//   sums[r][o] = sum over k of x[r][k] * weight[o][k]                                  int32, exact on every path
//
// Everything below speaks of these sums. What a runtime makes of them is in output.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace qn {

constexpr int64_t kTileRows = 64;     // rows of the weight whose codes lie together
constexpr int64_t kGroupColumns = 4;  // columns whose codes share two bytes
constexpr int64_t kSmall = 16;        // codebooks up to this size fill one vector register, and their codes take 4 bits

// A table as the file holds it; nothing is owned.
//
// Codes into at most 16 centroids: nibbles [tiles][groups][64][4], the first in the low half of its byte; tiles = ceil(out / 64),
// groups = ceil(columns / 4). Row 64*t + r, column 4*g + n is nibble [t][g][r][n]; rows and columns past the end are zeros.
// Codes into up to 256: bytes [out][columns].
struct Table {
  const uint8_t* codes;
  size_t code_bytes;
  const int8_t* centroids;  // [books][size][d]
  size_t centroid_bytes;
  int64_t out, columns, books, size, d;
};

// Bytes of the codes of such a table; the sizes must be in the ranges that `problem` asks for.
size_t packed_bytes(int64_t out, int64_t columns, int64_t size);

// Why this is no table, or null. Any code is safe to read: one that is past the last centroid stands for zeros.
const char* problem(const Table& table);

// int8 activations, element (r, k) at data[r * row + k * column] ^ flip: uint8 ones are read with a flip of 0x80, which takes 128 off.
struct Input {
  const uint8_t* data;
  int64_t rows, row, column;
  uint8_t flip;
};

// Takes the sums of some outputs: element (r, o) of rows r0 <= r < r0 + rows and outputs o0 <= o < o0 + outs is sums[(r - r0) * stride + o - o0].
struct Sink {
  virtual void take(int64_t r0, int64_t rows, int64_t o0, int64_t outs, const int32_t* sums, int64_t stride) const = 0;

 protected:
  ~Sink() = default;
};

struct Path;  // the instructions that the loops use, see paths.h

// A table made ready: what is kept beside the codes is a copy of the centroids, in the order of the lookups, and 4 bytes a row.
class TableLinear {
 public:
  // `table` has no problem, and its codes and centroids outlive this.
  explicit TableLinear(const Table& table, const Path* path = nullptr);

  const Table& table() const { return table_; }
  int64_t in() const { return table_.columns * table_.d; }
  int64_t tiles() const { return (table_.out + kTileRows - 1) / kTileRows; }
  const int32_t* row_sums() const { return row_sums_.data(); }  // [out]: of each weight row, for activations with a zero point

  // The sums of tiles first <= t < last; threads share the work by tiles.
  void run(const Input& x, int64_t first, int64_t last, const Sink& sink) const;
  void run(const Input& x, const Sink& sink) const { run(x, 0, tiles(), sink); }

 private:
  void look_up(const Input& x, int64_t first, int64_t last, const Sink& sink) const;
  void decode(const Input& x, int64_t first, int64_t last, const Sink& sink) const;
  void decode_rows(int64_t row, int64_t rows, int64_t column, int64_t columns, int8_t* weights, int64_t stride) const;
  int64_t book(int64_t column) const { return column * table_.books / table_.columns; }

  Table table_;
  const Path& path_;
  int64_t parts_ = 1;           // lookups for each code, so that the sum of a part fits 16 bits
  std::vector<int16_t> planes_;  // [books][d][16]: element j of each centroid, for lookups
  std::vector<int8_t> entries_;  // centroids that a code or a byte of codes stands for, see decode_rows
  std::vector<int32_t> row_sums_;
};

}  // namespace qn
