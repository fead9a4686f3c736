// Layer blob, version 1: a layer whose weight stays a table. ../README.md specifies it byte by byte.
//
// Plain C++17 without ExecuTorch. The input is never trusted.
#pragma once

#include <cmath>
#include <optional>
#include <string_view>

#include "bytes.h"

namespace qn {

// What a layer takes and gives.
enum class LayerKind : uint32_t {
  kStatic = 0,       // int8 [..., inputs] to int8 [..., outputs]
  kDynamic = 1,      // floats [..., inputs] to floats, quantized row by row
  kConvolution = 2,  // int8 [N, inputs, ...] to int8 [N, outputs, ...]: at each position a static layer
};

struct LayerBlob {
  LayerKind kind;
  float x_scale, y_scale;                // not of dynamic ones, as the rest of these
  int32_t x_zero, y_zero;                // -128 to 127
  int32_t low, high;                     // of the output's steps
  std::string_view weight, scale, bias;  // keys of the constants; the bias's is empty where there is none

  // What a blob says, or nothing where it breaks a rule of the format. The keys point into `data`.
  static std::optional<LayerBlob> parse(const uint8_t* data, size_t size) {
    static constexpr uint8_t kMagic[16] = {0x89, 'Q', 'N', 'L', 'A', 'Y', 'E', 'R', 0x5f, 0x06, 0xce, 0x5c, 0x31, 0x72, 0xf9, 0xa3};
    if (!starts_with(data, size, kMagic) || size < kHeaderBytes || read_u32(data + 16) != 1 || read_u32(data + 20) > 2) return std::nullopt;
    LayerBlob blob{};
    blob.kind = static_cast<LayerKind>(read_u32(data + 20));
    blob.x_scale = read_f32(data + 24), blob.x_zero = read_i32(data + 28);
    blob.y_scale = read_f32(data + 32), blob.y_zero = read_i32(data + 36);
    blob.low = read_i32(data + 40), blob.high = read_i32(data + 44);
    const auto is_step = [](int32_t value) { return value >= -128 && value <= 127; };
    const auto is_scale = [](float value) { return std::isfinite(value) && value > 0; };
    if (!is_scale(blob.x_scale) || !is_scale(blob.y_scale) || !is_step(blob.x_zero) || !is_step(blob.y_zero) || !is_step(blob.low) ||
        !is_step(blob.high) || blob.low > blob.high) {
      return std::nullopt;
    }
    size_t at = kHeaderBytes;
    std::string_view* keys[] = {&blob.weight, &blob.scale, &blob.bias};
    for (size_t i = 0; i < 3; ++i) {
      const size_t length = read_u32(data + 48 + 4 * i);
      if (length > size - at) return std::nullopt;
      *keys[i] = {reinterpret_cast<const char*>(data + at), length};
      at += length;
    }
    return blob;  // what follows is XNNPACK's graph of the layer, for readers that expand it
  }

 private:
  static constexpr size_t kHeaderBytes = 60;
  static int32_t read_i32(const uint8_t* p) { return static_cast<int32_t>(read_u32(p)); }
  static float read_f32(const uint8_t* p) {
    const uint32_t bits = read_u32(p);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

}  // namespace qn
