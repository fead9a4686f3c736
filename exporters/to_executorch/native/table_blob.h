// Table blob, versions 2 and 3: one constant as codes into tables of int8 centroids. ../README.md specifies it byte by byte.
//
// Plain C++17 and zlib without ExecuTorch, so that any reader can take this file, bytes.h and inflate.h as they are. The input is never
// trusted: parse() accepts a blob only if every later access stays inside it and inside dense_bytes() of output.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <optional>

#include "bytes.h"
#include "inflate.h"

namespace qn {

class TableBlob {
 public:
  // True if the data claims to be a blob; a dense constant does so by chance once in 2^128.
  static bool has_magic(const uint8_t* data, size_t size) {
    static constexpr uint8_t kMagic[16] = {0x89, 'Q', 'N', 'T', 'A', 'B', 'L', 'E', 0x85, 0xf3, 0xed, 0x1b, 0x71, 0x4d, 0x7a, 0x2f};
    return starts_with(data, size, kMagic);
  }

  // A view of a blob that breaks no rule of the format, or nothing. `data` has to outlive the view, which owns the arrays of a coded blob.
  static std::optional<TableBlob> parse(const uint8_t* data, size_t size) {
    if (!has_magic(data, size) || size < kHeaderBytes) return std::nullopt;
    const bool known = (data[16] == kPlain || data[16] == kCoded) && data[17] == 0 && (data[18] == kInt8 || data[18] == kFloat32) &&
                       data[19] <= kISO && (data[20] == 1 || data[20] == 2);
    if (!known) return std::nullopt;

    TableBlob blob;
    blob.dtype_ = data[18];
    blob.layout_ = data[19];
    blob.has_residual_ = data[20] == 2;
    blob.groups_ = 1 + (uint64_t{data[21]} | uint64_t{data[22]} << 8 | uint64_t{data[23]} << 16);
    blob.rows_ = read_u32(data + 24);
    blob.inner_ = read_u32(data + 28);
    blob.spatial_ = read_u32(data + 32);
    blob.block_ = read_u32(data + 36);
    const uint8_t* body = data + kHeaderBytes;
    uint64_t left = size - kHeaderBytes;
    if (data[16] == kCoded && !blob.inflate(body, left)) return std::nullopt;
    if (!blob.lay_out(body, left) || !blob.contents_valid()) return std::nullopt;
    return blob;
  }

  // Bytes of the constant that the blob stands for.
  size_t dense_bytes() const { return dense_bytes_; }

  // Writes the dense constant to `out`, which has dense_bytes() bytes and is aligned for a float.
  void expand(void* out) const {
    if (dtype_ == kInt8) {
      expand_as(static_cast<int8_t*>(out), [](int8_t centroid, uint64_t) { return centroid; });
    } else {
      expand_as(static_cast<float*>(out), [this](int8_t centroid, uint64_t row) { return scale(row) * static_cast<float>(centroid); });
    }
  }

 private:
  enum Version : uint8_t { kPlain = 2, kCoded = 3 };
  enum DType : uint8_t { kInt8 = 1, kFloat32 = 2 };
  enum Layout : uint8_t { kOIS = 0, kOSI = 1, kSIO = 2, kISO = 3 };
  static constexpr size_t kHeaderBytes = 40;

  struct Table {
    uint64_t books = 0, size = 0;  // codebooks, centroids in each
    uint64_t step = 2, high = 1;   // where the low byte of a 16-bit code stands, for each code, and its high byte after it
    const int8_t* centroids = nullptr;
    const uint8_t* codes = nullptr;

    int bits() const { return size <= 16 ? 4 : size <= 256 ? 8 : 16; }

    uint64_t code(uint64_t block) const {
      switch (bits()) {
        case 4: return codes[block / 2] >> (block % 2 * 4) & 15;
        case 8: return codes[block];
        default: return codes[step * block] | codes[step * block + high] << 8;
      }
    }
  };

  // Gives the centroids of a table's blocks in order, row by row.
  class Cursor {
   public:
    Cursor(const Table& table, uint64_t columns, uint64_t block)
        : table_(table), columns_(columns), book_values_(table.size * block), block_(block) {}

    const int8_t* next() {
      if (column_ == columns_) column_ = 0, share_ = 0, book_ = table_.centroids;
      const int8_t* centroid = book_ + table_.code(index_++) * block_;
      ++column_;
      if ((share_ += table_.books) >= columns_) share_ -= columns_, book_ += book_values_;  // column * books / columns, without a division
      return centroid;
    }

   private:
    const Table table_;
    const uint64_t columns_, book_values_, block_;
    uint64_t index_ = 0, column_ = 0, share_ = 0;
    const int8_t* book_ = table_.centroids;
  };

  float scale(uint64_t row) const {
    const uint32_t bits = read_u32(scales_ + 4 * row);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  // Puts the arrays that a stream stands for in its place.
  bool inflate(const uint8_t*& body, uint64_t& left) {
    if (left < 4) return false;
    const uint32_t bytes = read_u32(body);
    if (!can_inflate_to(left - 4, bytes)) return false;
    arrays_.reset(new (std::nothrow) uint8_t[bytes]);
    if (arrays_ == nullptr || !qn::inflate(body + 4, left - 4, arrays_.get(), bytes)) return false;
    body = arrays_.get(), left = bytes;
    return true;
  }

  // Checks the sizes against each other and the length, and finds the arrays.
  bool lay_out(const uint8_t* body, uint64_t left) {
    if (rows_ == 0 || inner_ == 0 || spatial_ == 0 || block_ == 0 || rows_ % groups_ != 0) return false;
    const uint64_t row = inner_ * spatial_;  // cannot overflow: both came from 32 bits
    if (row > UINT32_MAX || row % block_ != 0) return false;
    columns_ = row / block_;

    uint64_t dense_bytes;  // a row and a number of rows fit 32 bits each, so only the last factor can overflow
    if (__builtin_mul_overflow(rows_ * row, dtype_ == kFloat32 ? 4 : 1, &dense_bytes) || dense_bytes > PTRDIFF_MAX) return false;
    dense_bytes_ = static_cast<size_t>(dense_bytes);

    scales_ = take(body, left, dtype_ == kFloat32 ? 4 * rows_ : 0);
    if (scales_ == nullptr || !find_table(first_, body, left)) return false;
    return (!has_residual_ || find_table(residual_, body, left)) && left == 0;
  }

  bool find_table(Table& table, const uint8_t*& body, uint64_t& left) const {
    const uint8_t* sizes = take(body, left, 8);
    if (sizes == nullptr) return false;
    table.books = read_u32(sizes);
    table.size = read_u32(sizes + 4);
    if (table.books == 0 || table.books > columns_ || table.size == 0 || table.size > 65536) return false;
    // <= row * 65536
    table.centroids = reinterpret_cast<const int8_t*>(take(body, left, table.books * block_ * table.size));
    if (table.centroids == nullptr) return false;
    const uint64_t blocks = rows_ * columns_;  // <= dense_bytes_
    const uint64_t code_bytes = table.bits() == 4 ? blocks / 2 + blocks % 2 : table.bits() == 8 ? blocks : 2 * blocks;
    table.codes = take(body, left, code_bytes);
    if (arrays_ != nullptr) table.step = 1, table.high = blocks;  // all low bytes come first
    return table.codes != nullptr;
  }

  static const uint8_t* take(const uint8_t*& body, uint64_t& left, uint64_t size) {
    if (size > left) return nullptr;
    const uint8_t* taken = body;
    body += size;
    left -= size;
    return taken;
  }

  bool contents_valid() const {
    for (uint64_t row = 0; dtype_ == kFloat32 && row < rows_; ++row) {
      if (!(scale(row) > 0 && std::isfinite(scale(row)))) return false;
    }
    return contents_valid(first_) && (!has_residual_ || contents_valid(residual_));
  }

  bool contents_valid(const Table& table) const {
    const uint64_t values = table.books * block_ * table.size, blocks = rows_ * columns_;
    if (*std::min_element(table.centroids, table.centroids + values) < -127) return false;
    if (table.bits() == 4 && blocks % 2 == 1 && table.codes[blocks / 2] >> 4 != 0) return false;
    if (table.size == uint64_t{1} << table.bits()) return true;  // no code can be too large
    uint64_t largest = 0;
    for (uint64_t i = 0; i < blocks; ++i) largest = std::max(largest, table.code(i));
    return largest < table.size;
  }

  // One block of int8 values: a centroid, or the sum of two, which saturates.
  struct Block {
    const int8_t *first, *residual;

    int8_t operator[](uint64_t t) const {
      return residual == nullptr ? first[t] : static_cast<int8_t>(std::clamp(first[t] + residual[t], -127, 127));
    }
  };

  // Calls visit(row, index of the block's first weight in its row, block) for all blocks in order.
  template <class Visit>
  void for_each_block(Visit visit) const {
    Cursor first(first_, columns_, block_), residual(residual_, columns_, block_);
    for (uint64_t row = 0; row < rows_; ++row) {
      for (uint64_t column = 0; column < columns_; ++column) {
        const int8_t* centroid = first.next();
        visit(row, column * block_, Block{centroid, has_residual_ ? residual.next() : nullptr});
      }
    }
  }

  template <class T, class Value>
  void expand_as(T* out, Value value) const {
    if (layout_ == kOSI && block_ == 9 && spatial_ == 9) return whole_kernels<9>(out, value);
    if (layout_ != kOIS) return strided(out, value);
    switch (block_) {  // a constant block size lets the compiler turn the copy into one or two moves
      case 2: return contiguous<2>(out, value);
      case 4: return contiguous<4>(out, value);
      case 8: return contiguous<8>(out, value);
      case 9: return contiguous<9>(out, value);
      case 16: return contiguous<16>(out, value);
      default: return contiguous<0>(out, value);
    }
  }

  template <size_t kBlock, class T, class Value>
  void contiguous(T* out, Value value) const {
    const size_t block = kBlock ? kBlock : block_;
    for_each_block([&](uint64_t row, uint64_t, Block values) {
      for (size_t t = 0; t < block; ++t) out[t] = value(values[t], row);
      out += block;
    });
  }

  // Layout OSI where a block is the kernel of one input channel: in half the time of strided().
  template <size_t kSpatial, class T, class Value>
  void whole_kernels(T* out, Value value) const {
    const size_t inner = inner_, row_values = inner * kSpatial;
    for_each_block([&](uint64_t row, uint64_t first, Block values) {
      T* channel = out + row * row_values + first / kSpatial;
      for (size_t p = 0; p < kSpatial; ++p) channel[p * inner] = value(values[p], row);
    });
  }

  template <class T, class Value>
  void strided(T* out, Value value) const {
    const uint64_t rows = rows_ / groups_;  // of a group
    const uint64_t row_step = layout_ == kSIO || layout_ == kISO ? 1 : inner_ * spatial_;
    const uint64_t inner_step = layout_ == kSIO ? rows : layout_ == kISO ? spatial_ * rows : layout_ == kOSI ? 1 : spatial_;
    const uint64_t spatial_step = layout_ == kSIO ? inner_ * rows : layout_ == kISO ? rows : layout_ == kOSI ? inner_ : 1;
    const uint64_t next_channel = inner_step - spatial_ * spatial_step;  // wraps around where it is negative, and `at` with it
    uint64_t at = 0, p = 0;
    for_each_block([&](uint64_t row, uint64_t first, Block values) {
      if (first == 0) at = row / rows * rows * inner_ * spatial_ + row % rows * row_step, p = 0;
      for (uint64_t t = 0; t < block_; ++t) {
        out[at] = value(values[t], row);
        at += spatial_step;
        if (++p == spatial_) p = 0, at += next_channel;
      }
    });
  }

  uint8_t dtype_ = 0, layout_ = 0;
  bool has_residual_ = false;
  uint64_t groups_ = 0, rows_ = 0, inner_ = 0, spatial_ = 0, block_ = 0, columns_ = 0;
  size_t dense_bytes_ = 0;
  const uint8_t* scales_ = nullptr;
  std::unique_ptr<uint8_t[]> arrays_;  // of a coded blob
  Table first_, residual_;
};

}  // namespace qn
