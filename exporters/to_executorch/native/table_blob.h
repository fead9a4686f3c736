// Table blob, version 1: one constant as codes into tables of int8 centroids. ../README.md specifies it byte by byte.
//
// Plain C++17 without ExecuTorch, so that any reader can take this file and bytes.h as they are. The input is never trusted: parse() accepts a blob
// only if every later access stays inside it and inside dense_bytes() of output.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "bytes.h"

namespace qn {

class TableBlob {
 public:
  // True if the data claims to be a blob; a dense constant does so by chance once in 2^128.
  static bool has_magic(const uint8_t* data, size_t size) {
    static constexpr uint8_t kMagic[16] = {0x89, 'Q',  'N',  'T',  'A',  'B',  'L',  'E',
                                           0x85, 0xf3, 0xed, 0x1b, 0x71, 0x4d, 0x7a, 0x2f};
    return starts_with(data, size, kMagic);
  }

  // A view of a blob that breaks no rule of the format, or nothing. `data` has to outlive the view.
  static std::optional<TableBlob> parse(const uint8_t* data, size_t size) {
    if (!has_magic(data, size) || size < kHeaderBytes) return std::nullopt;
    const bool known = data[16] == 1 && data[17] == 0 && (data[18] == kInt8 || data[18] == kFloat32) && data[19] <= kSIO &&
                       data[20] == 8 && data[21] == 0 && data[22] == 0 && data[23] == 0;
    if (!known) return std::nullopt;

    TableBlob blob;
    blob.dtype_ = data[18];
    blob.layout_ = data[19];
    blob.rows_ = read_u32(data + 24);
    blob.inner_ = read_u32(data + 28);
    blob.spatial_ = read_u32(data + 32);
    blob.block_ = read_u32(data + 36);
    blob.books_ = read_u32(data + 40);
    blob.size_ = read_u32(data + 44);
    return blob.lay_out(data + kHeaderBytes, size - kHeaderBytes) && blob.contents_valid() ? std::optional(blob) : std::nullopt;
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
  enum DType : uint8_t { kInt8 = 1, kFloat32 = 2 };
  enum Layout : uint8_t { kOIS = 0, kOSI = 1, kSIO = 2 };
  static constexpr size_t kHeaderBytes = 48;

  float scale(uint64_t row) const {
    const uint32_t bits = read_u32(scales_ + 4 * row);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  // Checks the header's numbers against each other and the length, and finds the three arrays.
  bool lay_out(const uint8_t* body, uint64_t left) {
    if (rows_ == 0 || inner_ == 0 || spatial_ == 0 || block_ == 0 || books_ == 0 || size_ == 0 || size_ > 256) return false;
    const uint64_t row = inner_ * spatial_;  // cannot overflow: both came from 32 bits
    if (row > UINT32_MAX || row % block_ != 0) return false;
    columns_ = row / block_;
    if (books_ > columns_) return false;

    uint64_t dense_bytes;  // a row and a number of rows fit 32 bits each, so only the last factor can overflow
    if (__builtin_mul_overflow(rows_ * row, dtype_ == kFloat32 ? 4 : 1, &dense_bytes) || dense_bytes > PTRDIFF_MAX) return false;
    dense_bytes_ = static_cast<size_t>(dense_bytes);

    const uint64_t scale_bytes = dtype_ == kFloat32 ? 4 * rows_ : 0;
    const uint64_t centroid_bytes = books_ * block_ * size_;  // <= row * 256
    const uint64_t code_bytes = rows_ * columns_;
    if (scale_bytes > left || centroid_bytes > left - scale_bytes || code_bytes != left - scale_bytes - centroid_bytes) return false;
    scales_ = body;
    centroids_ = reinterpret_cast<const int8_t*>(body + scale_bytes);
    codes_ = body + scale_bytes + centroid_bytes;
    return true;
  }

  bool contents_valid() const {
    for (uint64_t row = 0; dtype_ == kFloat32 && row < rows_; ++row) {
      if (!(scale(row) > 0 && std::isfinite(scale(row)))) return false;
    }
    int8_t least = 0;
    for (const int8_t* c = centroids_; c != reinterpret_cast<const int8_t*>(codes_); ++c) least = std::min(least, *c);
    uint8_t largest = 0;
    for (uint64_t i = 0; i < rows_ * columns_; ++i) largest = std::max(largest, codes_[i]);
    return least >= -127 && largest < size_;
  }

  // Calls visit(row, index of the block's first weight in its row, centroid) for all blocks in order.
  template <class Visit>
  void for_each_block(Visit visit) const {
    const uint8_t* code = codes_;
    for (uint64_t row = 0; row < rows_; ++row) {
      for (uint64_t book = 0, column = 0; book < books_; ++book) {
        const int8_t* table = centroids_ + book * size_ * block_;
        const uint64_t end = ((book + 1) * columns_ + books_ - 1) / books_;  // the first column of the next codebook
        for (; column < end; ++column) visit(row, column * block_, table + *code++ * block_);
      }
    }
  }

  template <class T, class Value>
  void expand_as(T* out, Value value) const {
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
    for_each_block([&](uint64_t row, uint64_t, const int8_t* centroid) {
      for (size_t t = 0; t < block; ++t) out[t] = value(centroid[t], row);
      out += block;
    });
  }

  template <class T, class Value>
  void strided(T* out, Value value) const {
    const uint64_t row_step = layout_ == kSIO ? 1 : inner_ * spatial_;
    const uint64_t inner_step = layout_ == kSIO ? rows_ : layout_ == kOSI ? 1 : spatial_;
    const uint64_t spatial_step = layout_ == kSIO ? inner_ * rows_ : layout_ == kOSI ? inner_ : 1;
    for_each_block([&](uint64_t row, uint64_t first, const int8_t* centroid) {
      uint64_t i = first / spatial_, p = first % spatial_;
      for (uint64_t t = 0; t < block_; ++t) {
        out[row * row_step + i * inner_step + p * spatial_step] = value(centroid[t], row);
        if (++p == spatial_) p = 0, ++i;
      }
    });
  }

  uint8_t dtype_ = 0, layout_ = 0;
  uint64_t rows_ = 0, inner_ = 0, spatial_ = 0, block_ = 0, books_ = 0, size_ = 0, columns_ = 0;
  size_t dense_bytes_ = 0;
  const uint8_t* scales_ = nullptr;
  const int8_t* centroids_ = nullptr;
  const uint8_t* codes_ = nullptr;
};

}  // namespace qn
