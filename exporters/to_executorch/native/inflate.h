// Zlib streams (RFC 1950) of a known size. Plain C++17 and zlib; the input is never trusted.
#pragma once

#include <cstddef>
#include <cstdint>

// As zlib.h declares it. The library is on every system, its header is not, and this function has not changed in twenty years.
extern "C" int uncompress(unsigned char* out, unsigned long* out_size, const unsigned char* data, unsigned long size);

namespace qn {

// False if so many bytes of a zlib stream can't stand for `out_size` bytes: tells before memory is taken for them.
inline bool can_inflate_to(size_t size, uint64_t out_size) {
  constexpr uint64_t kMost = 1032;  // bytes that one byte of a zlib stream stands for
  return out_size != 0 && out_size / kMost <= size;
}

// Writes at most `out_size` bytes to `out`; false if the stream is damaged or holds another number of bytes.
inline bool inflate(const uint8_t* stream, size_t size, uint8_t* out, size_t out_size) {
  unsigned long written = out_size;
  return uncompress(out, &written, stream, size) == 0 && written == out_size;
}

}  // namespace qn
