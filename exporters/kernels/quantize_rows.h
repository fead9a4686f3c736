// Float activations to int8, a scale and zero point for each row, as XNNPACK does. Compile with -ffp-contract=off.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "output.h"

namespace qn {

struct RowGrid {
  float scale;   // value == scale * (step - zero)
  int32_t zero;  // of the int8 steps, -128 to 127
};

// The most and the least of a row, and 0.
inline void row_ends(const float* x, int64_t count, float& least, float& most) {
  constexpr int64_t kLanes = 16;
  float low[kLanes] = {}, high[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (int64_t i = 0; i < kLanes; ++i) {
      low[i] = x[k + i] < low[i] ? x[k + i] : low[i];
      high[i] = x[k + i] > high[i] ? x[k + i] : high[i];
    }
  }
  for (; k < count; ++k) low[0] = std::min(low[0], x[k]), high[0] = std::max(high[0], x[k]);
  least = *std::min_element(low, low + kLanes), most = *std::max_element(high, high + kLanes);
}

// Quantizes a row of `count` floats: 0 is a step, and the zero point follows from the end of the range whose error is smaller. A tie is
// rounded to even, or away from zero: see `RowRule`.
inline RowGrid quantize_row(const float* x, int64_t count, RowRule rule, int8_t* to) {
  float least = 0, most = 0;
  row_ends(x, count, least, most);
  const float factor = least == most ? 1.0f : 255.0f / (most - least);
  const float low = least * factor, high = most * factor;
  const float zero = (-128.0f + low) + (127.0f + high) > 0 ? -128.0f - low : 127.0f - high;
  const auto steps = static_cast<int32_t>(std::nearbyint(zero > -128.0f ? std::min(zero, 127.0f) : -128.0f));
  const float lowest = static_cast<float>(-128 - steps), highest = static_cast<float>(127 - steps);
  const auto clamped = [&](float value) { return value > lowest ? value < highest ? value : highest : lowest; };
  if (rule == RowRule::kKleidiAi) {
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<int8_t>(static_cast<int32_t>(std::round(clamped(x[k] * factor))) + steps);
    return {1.0f / factor, steps};
  }
  for (int64_t k = 0; k < count; ++k) {
    const float shifted = clamped(x[k] * factor) + 12582912.0f;  // 1.5 * 2^23 rounds to even and leaves the integer in the low bits
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    to[k] = static_cast<int8_t>(bits - 0x4b400000 + steps);
  }
  return {1.0f / factor, steps};
}

}  // namespace qn
