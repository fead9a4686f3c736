// Reading bytes that come from a file: nothing here assumes alignment or the machine's byte order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace qn {

inline uint32_t read_u32(const uint8_t* p) {
  return static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
         static_cast<uint32_t>(p[3]) << 24;
}

template <size_t kLength>
bool starts_with(const uint8_t* data, size_t size, const uint8_t (&start)[kLength]) {
  return size >= kLength && std::memcmp(data, start, kLength) == 0;
}

}  // namespace qn
