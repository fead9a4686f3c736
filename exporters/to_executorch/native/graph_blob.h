// Graph blob, version 1: a delegate's graph as a zlib stream. ../README.md specifies it byte by byte.
//
// Plain C++17 and zlib, without ExecuTorch. The input is never trusted: inflate() writes graph_bytes() bytes at most.
#pragma once

#include <optional>

#include "bytes.h"
#include "inflate.h"

namespace qn {

class GraphBlob {
 public:
  // True if the payload claims to be a blob; a plain graph starts with XNNPACK's own header and never does.
  static bool has_magic(const uint8_t* data, size_t size) {
    static constexpr uint8_t kMagic[16] = {0x89, 'Q', 'N', 'G', 'R', 'A', 'P', 'H', 0xd3, 0x67, 0x6b, 0xbc, 0x7d, 0x73, 0xae, 0x94};
    return starts_with(data, size, kMagic);
  }

  // A view of a blob whose header breaks no rule of the format, or nothing. `data` has to outlive the view.
  static std::optional<GraphBlob> parse(const uint8_t* data, size_t size) {
    if (!has_magic(data, size) || size < kHeaderBytes || read_u32(data + 16) != 1) return std::nullopt;
    const uint32_t graph_bytes = read_u32(data + 20);
    if (graph_bytes > kLimit || !can_inflate_to(size - kHeaderBytes, graph_bytes)) return std::nullopt;
    return GraphBlob(data + kHeaderBytes, size - kHeaderBytes, graph_bytes);
  }

  // Bytes of the graph that the blob stands for.
  size_t graph_bytes() const { return graph_bytes_; }

  // Writes the graph to `out`, which has graph_bytes() bytes; false if the stream is damaged or holds another number of bytes.
  bool inflate(void* out) const { return qn::inflate(stream_, size_, static_cast<uint8_t*>(out), graph_bytes_); }

 private:
  static constexpr size_t kHeaderBytes = 24;
  static constexpr uint32_t kLimit = uint32_t{1} << 30;

  GraphBlob(const uint8_t* stream, size_t size, uint32_t graph_bytes) : stream_(stream), size_(size), graph_bytes_(graph_bytes) {}

  const uint8_t* stream_;
  size_t size_;
  uint32_t graph_bytes_;
};

}  // namespace qn
