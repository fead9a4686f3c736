#include "table_linear.h"

#include <algorithm>
#include <cstring>

#include "paths.h"

namespace qn {
namespace {

// Lookups: rows of activations and tiles of the weight whose sums are kept at a time.
constexpr int64_t kLookupRows = 2;
constexpr int64_t kLookupTiles = 16;

// Decoding: the weights of a few rows at a time stay in the first-level cache and meet many rows of activations.
constexpr int64_t kDecodeTiles = 4;
constexpr int64_t kDecodedRows = 32;

int64_t padded(int64_t count, int64_t step) { return (count + step - 1) / step * step; }

// int8 [rows][kDepth] from part of an input, zeros past `count` up to `depth`.
void gather(const Input& x, int64_t row, int64_t rows, int64_t begin, int64_t count, int64_t depth, int8_t* to) {
  for (int64_t r = 0; r < rows; ++r) {
    const uint8_t* from = x.data + (row + r) * x.row + begin * x.column;
    int8_t* line = to + r * kDepth;
    std::fill(line + count, line + depth, int8_t{0});
    if (x.column == 1) {
      for (int64_t k = 0; k < count; ++k) line[k] = static_cast<int8_t>(from[k] ^ x.flip);
    } else {
      for (int64_t k = 0; k < count; ++k) line[k] = static_cast<int8_t>(from[k * x.column] ^ x.flip);
    }
  }
}

// The codes of a tile lie apart from those that were read before: no processor foresees that.
void prefetch(const uint8_t* data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(data + i);
}

// The parts into which blocks are cut so that |sum of a part| <= 128 * sum |c| stays below 2^15.
int64_t parts_of(const Table& table) {
  for (int64_t parts = 1; parts < table.d; ++parts) {
    int most = 0;
    for (int64_t entry = 0; entry < table.books * table.size; ++entry) {
      for (int64_t part = 0; part < parts; ++part) {
        int total = 0;
        for (int64_t j = part * table.d / parts; j < (part + 1) * table.d / parts; ++j)
          total += std::abs(table.centroids[entry * table.d + j]);
        most = std::max(most, total);
      }
    }
    if (most <= 255) return parts;
  }
  return table.d;
}

struct RowSums final : Sink {
  int32_t* to;
  explicit RowSums(int32_t* to) : to(to) {}
  void take(int64_t, int64_t, int64_t o0, int64_t outs, const int32_t* sums, int64_t) const override {
    std::copy(sums, sums + outs, to + o0);
  }
};

}  // namespace

TableLinear::TableLinear(const Table& table, const Path* path) : table_(table), path_(path ? *path : *paths().front()) {
  const int64_t books = table.books, size = table.size, d = table.d;
  if (size <= kSmall) {
    parts_ = parts_of(table);
    planes_.resize(static_cast<size_t>(books * d * 16));
    for (int64_t book = 0; book < books; ++book) {
      for (int64_t k = 0; k < size; ++k) {
        for (int64_t j = 0; j < d; ++j) planes_[static_cast<size_t>((book * d + j) * 16 + k)] = table.centroids[(book * size + k) * d + j];
      }
    }
  } else {
    entries_.resize(static_cast<size_t>(books * 256 * d));
    for (int64_t book = 0; book < books; ++book) {
      std::copy_n(table.centroids + book * size * d, size * d, entries_.begin() + book * 256 * d);
    }
  }
  row_sums_.resize(static_cast<size_t>(table.out));
  const uint8_t one = 1;
  run({&one, 1, 0, 0, 0}, RowSums(row_sums_.data()));
}

void TableLinear::run(const Input& x, int64_t first, int64_t last, const Sink& sink) const {
  const int64_t weights = table_.d / parts_;  // that a lookup stands for
  if (table_.size <= kSmall && x.rows <= path_.lookup_rows[weights >= 4 ? 2 : weights >= 2 ? 1 : 0]) {
    look_up(x, first, last, sink);
  } else {
    decode(x, first, last, sink);
  }
}

void TableLinear::look_up(const Input& x, int64_t first, int64_t last, const Sink& sink) const {
  const int64_t d = table_.d, groups = padded(table_.columns, kGroupColumns) / kGroupColumns;
  const int64_t chunk = std::max<int64_t>(kChunkColumns / (kGroupColumns * parts_), 1);  // groups
  const int64_t lut_bytes = chunk * parts_ * kGroupLutBytes, depth = chunk * kGroupColumns * d;
  constexpr int64_t kStride = kLookupTiles * kTileRows;
  alignas(64) int32_t sums[kLookupRows * kStride];
  std::vector<uint8_t> space(static_cast<size_t>(kLookupRows * lut_bytes + depth + 64));
  uint8_t* lut = space.data() + (64 - reinterpret_cast<uintptr_t>(space.data()) % 64);
  int8_t* values = reinterpret_cast<int8_t*>(lut + kLookupRows * lut_bytes);
  std::vector<const int16_t*> planes(static_cast<size_t>(chunk * kGroupColumns));
  for (int64_t tile0 = first; tile0 < last; tile0 += kLookupTiles) {
    const int64_t tiles = std::min(kLookupTiles, last - tile0);
    for (int64_t r0 = 0; r0 < x.rows; r0 += kLookupRows) {
      const int64_t rows = std::min(kLookupRows, x.rows - r0);
      // Every entry has 2^15 too many: for the columns past the end, too, the sums wrap around and come out right.
      const auto bias = static_cast<uint32_t>(groups * kGroupColumns * parts_) << 15;
      std::fill_n(sums, rows * kStride, static_cast<int32_t>(-bias));
      for (int64_t group0 = 0; group0 < groups; group0 += chunk) {
        const int64_t count = std::min(chunk, groups - group0), column0 = group0 * kGroupColumns;
        const int64_t columns = std::min(count * kGroupColumns, table_.columns - column0);
        for (int64_t c = 0; c < columns; ++c) planes[static_cast<size_t>(c)] = planes_.data() + book(column0 + c) * d * 16;
        for (int64_t r = 0; r < rows; ++r) {
          gather(x, r0 + r, 1, column0 * d, columns * d, columns * d, values);
          path_.build(values, planes.data(), columns, d, parts_, lut + r * lut_bytes);
        }
        for (int64_t t = 0; t < tiles; ++t) {
          const uint8_t* codes = table_.codes + ((tile0 + t) * groups + group0) * (2 * kTileRows);
          if (t + 1 < tiles) prefetch(codes + groups * (2 * kTileRows), count * (2 * kTileRows));
          for (int64_t r = 0; r < rows; ++r) path_.look_up(codes, lut + r * lut_bytes, count, parts_, sums + r * kStride + t * kTileRows);
        }
      }
      const int64_t o0 = tile0 * kTileRows;
      sink.take(r0, rows, o0, std::min(tiles * kTileRows, table_.out - o0), sums, kStride);
    }
  }
}

void TableLinear::decode(const Input& x, int64_t first, int64_t last, const Sink& sink) const {
  const int64_t d = table_.d, groups = padded(table_.columns, kGroupColumns) / kGroupColumns;
  const int64_t step = kDepth / d / kGroupColumns * kGroupColumns;  // columns, whole groups
  constexpr int64_t kStride = kDecodeTiles * kTileRows;
  const bool by_tile = table_.size <= kSmall && path_.multiply_tile != nullptr && d % path_.tile_step == 0;
  const int64_t block = std::min(kDecodeRows, x.rows);
  std::vector<int32_t> sums(static_cast<size_t>(block * kStride));
  std::vector<int8_t> values(static_cast<size_t>(block * kDepth));
  std::vector<int8_t> weights(static_cast<size_t>(by_tile ? 0 : kDecodedRows * kDepth));
  const std::unique_ptr<int16_t[]> scratch(by_tile || x.rows >= kManyRows ? new int16_t[kScratch] : nullptr);
  const int16_t* planes[kDepth];
  const int64_t end = std::min(last * kTileRows, table_.out);
  for (int64_t o0 = first * kTileRows; o0 < end; o0 += kStride) {
    const int64_t outs = std::min(kStride, end - o0);
    for (int64_t r0 = 0; r0 < x.rows; r0 += block) {
      const int64_t rows = std::min(block, x.rows - r0);
      std::fill(sums.begin(), sums.end(), 0);
      for (int64_t column = 0; column < table_.columns; column += step) {
        const int64_t columns = std::min(step, table_.columns - column);
        const int64_t depth =
            padded((by_tile ? padded(columns, kGroupColumns) : columns) * d, kDepthStep);  // a tile's codes end with a group
        gather(x, r0, rows, column * d, columns * d, depth, values.data());
        if (by_tile) {
          const int64_t some = padded(columns, kGroupColumns) / kGroupColumns;
          for (int64_t c = 0; c < some * kGroupColumns; ++c) {
            planes[c] = planes_.data() + book(std::min(column + c, table_.columns - 1)) * d * 16;  // past the end meets zeros
          }
          for (int64_t o = 0; o < outs; o += kTileRows) {
            const uint8_t* codes = table_.codes + ((o0 + o) / kTileRows * groups + column / kGroupColumns) * (2 * kTileRows);
            path_.multiply_tile(values.data(), rows, codes, planes, some, d, sums.data() + o, kStride, scratch.get());
          }
        } else {
          for (int64_t o = 0; o < outs; o += kDecodedRows) {
            const int64_t some = std::min(kDecodedRows, outs - o);
            decode_rows(o0 + o, some, column, columns, weights.data(), kDepth);
            path_.multiply(values.data(), rows, kDepth, weights.data(), some, kDepth, depth, sums.data() + o, kStride, scratch.get());
          }
        }
      }
      sink.take(r0, rows, o0, outs, sums.data(), kStride);
    }
  }
}

namespace {

// int8 [count * d] from codes into entries of one codebook.
template <int64_t D>
void copy_blocks(const uint8_t* codes, const int8_t* entries, int64_t count, int64_t d, int8_t* to) {
  const int64_t size = D ? D : d;
  for (int64_t i = 0; i < count; ++i, to += size) std::memcpy(to, entries + codes[i] * size, static_cast<size_t>(size));
}

}  // namespace

void TableLinear::decode_rows(int64_t row, int64_t rows, int64_t column, int64_t columns, int8_t* weights, int64_t stride) const {
  const int64_t d = table_.d, groups = padded(table_.columns, kGroupColumns) / kGroupColumns;
  for (int64_t begin = column; begin < column + columns;) {  // a codebook at a time
    const int64_t which = book(begin);
    const int64_t last = ((which + 1) * table_.columns + table_.books - 1) / table_.books, end = std::min(last, column + columns);
    if (table_.size <= kSmall) {
      const int16_t* planes = planes_.data() + which * d * 16;
      for (int64_t o = 0; o < rows; ++o) {
        const int64_t tile = (row + o) / kTileRows, line = (row + o) % kTileRows;
        int8_t* to = weights + o * stride + (begin - column) * d;
        for (int64_t i = begin; i < end; ++i, to += d) {
          const uint8_t pair = table_.codes[((tile * groups + i / 4) * kTileRows + line) * 2 + i % 4 / 2];
          for (int64_t j = 0; j < d; ++j) to[j] = static_cast<int8_t>(planes[j * 16 + (pair >> (i % 2 * 4) & 15)]);
        }
      }
    } else {
      const int8_t* entries = entries_.data() + which * 256 * d;
      for (int64_t o = 0; o < rows; ++o) {
        const uint8_t* codes = table_.codes + (row + o) * table_.columns + begin;
        int8_t* to = weights + o * stride + (begin - column) * d;
        switch (d) {
          case 2: copy_blocks<2>(codes, entries, end - begin, d, to); break;
          case 4: copy_blocks<4>(codes, entries, end - begin, d, to); break;
          case 8: copy_blocks<8>(codes, entries, end - begin, d, to); break;
          case 16: copy_blocks<16>(codes, entries, end - begin, d, to); break;
          default: copy_blocks<0>(codes, entries, end - begin, d, to);
        }
      }
    }
    begin = end;
  }
}

}  // namespace qn
