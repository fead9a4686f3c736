// What runtimes make of the sums. Each element is computed in float32 in the order that is written here: compile with -ffp-contract=off.
#pragma once

#include <cmath>
#include <cstring>

#include "table_linear.h"

namespace qn {

// The place of output (r, o): data[r * row + o * column].
template <typename T>
struct Output {
  T* data;
  int64_t row, column;
};

// Of activations with a zero point: sums of (x - zero) * w are those of x * w less zero * sum w.
struct Centred {
  const int32_t* row_sums;
  int32_t zero;  // of the int8 activations, at most 255 in magnitude
  const int32_t* bias;  // [out], or null
  int32_t operator()(int32_t sum, int64_t o) const {
    return static_cast<int32_t>(static_cast<uint32_t>(sum) - static_cast<uint32_t>(zero) * static_cast<uint32_t>(row_sums[o]) +
                                (bias ? static_cast<uint32_t>(bias[o]) : 0u));
  }
};

// Static activations: clamp(round_half_even(float(sum + bias) * factor) + zero), as onnxruntime and XNNPACK do; low and high are the ends of T.
template <typename T>
struct Requantize final : Sink {
  Centred centred;
  const float* factor;  // [out], or [1]: s_x * s_w / s_y
  bool by_row;          // of the weight: factor has an entry for each output
  int32_t zero, low, high;
  Output<T> to;

  Requantize(Centred centred, const float* factor, bool by_row, int32_t zero, int32_t low, int32_t high, Output<T> to)
      : centred(centred), factor(factor), by_row(by_row), zero(zero), low(low), high(high), to(to) {}

  void take(int64_t r0, int64_t rows, int64_t o0, int64_t outs, const int32_t* sums, int64_t stride) const override {
    const float least = static_cast<float>(low - zero), most = static_cast<float>(high - zero);
    for (int64_t r = 0; r < rows; ++r) {
      T* line = to.data + (r0 + r) * to.row;
      for (int64_t i = 0; i < outs; ++i) {
        const float scaled = static_cast<float>(centred(sums[r * stride + i], o0 + i)) * factor[by_row ? o0 + i : 0];
        const float clamped = scaled < least ? least : scaled > most ? most : scaled;
        // Adding 1.5 * 2^23 rounds to even and leaves the integer in the low bits.
        const float shifted = clamped + 12582912.0f;
        int32_t steps;
        std::memcpy(&steps, &shifted, sizeof steps);
        line[(o0 + i) * to.column] = static_cast<T>(steps - 0x4b400000 + zero);
      }
    }
  }
};

// Dynamic activations of one scale: float(sum) * (s_x * s_w) + bias, as onnxruntime's MatMulIntegerToFloat and DynamicQuantizeMatMul do. On ARM
// they round once, by a fused multiply-add.
struct Dequantize final : Sink {
  Centred centred;
  float x_scale;
  const float* w_scale;  // [out], or [1]
  bool by_row;
  const float* bias;  // [out], or null
  Output<float> to;

  Dequantize(Centred centred, float x_scale, const float* w_scale, bool by_row, const float* bias, Output<float> to)
      : centred(centred), x_scale(x_scale), w_scale(w_scale), by_row(by_row), bias(bias), to(to) {}

  void take(int64_t r0, int64_t rows, int64_t o0, int64_t outs, const int32_t* sums, int64_t stride) const override {
    for (int64_t r = 0; r < rows; ++r) {
      float* line = to.data + (r0 + r) * to.row;
      for (int64_t i = 0; i < outs; ++i) {
        const float value = static_cast<float>(centred(sums[r * stride + i], o0 + i)), scale = x_scale * w_scale[by_row ? o0 + i : 0];
        const float added = bias ? bias[o0 + i] : 0.0f;
#if defined(__aarch64__)
        line[(o0 + i) * to.column] = std::fma(value, scale, added);
#else
        line[(o0 + i) * to.column] = value * scale + added;
#endif
      }
    }
  }
};

// How a runtime rounds activations that have a scale and zero point for each row, and the floats that it makes of their sums.
//   kXnnpack:  x to even; fma(float(sum) * s_x, s_w, bias)
//   kKleidiAi: x away from zero; float(sum) * (s_x * s_w) + bias. XNNPACK calls KleidiAI's kernels on ARM processors with dot products.
enum class RowRule { kXnnpack, kKleidiAi };

// Dynamic activations with a scale and zero point for each row.
struct DequantizeRows final : Sink {
  RowRule rule;
  const int32_t* row_sums;
  const int32_t* zeros;   // [rows]
  const float* x_scales;  // [rows]
  const float* w_scale;   // [out]
  const float* bias;      // [out], or null
  float* to;              // [rows][out]
  int64_t out;

  DequantizeRows(RowRule rule, const int32_t* row_sums, const int32_t* zeros, const float* x_scales, const float* w_scale, const float* bias,
                 float* to, int64_t out)
      : rule(rule), row_sums(row_sums), zeros(zeros), x_scales(x_scales), w_scale(w_scale), bias(bias), to(to), out(out) {}

  void take(int64_t r0, int64_t rows, int64_t o0, int64_t outs, const int32_t* sums, int64_t stride) const override {
#if defined(__x86_64__)
    static const bool fuses = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (fuses) return take_fused(r0, rows, o0, outs, sums, stride);
#endif
    for (int64_t r = 0; r < rows; ++r) line(r0 + r, o0, outs, sums + r * stride);
  }

 private:
#if defined(__x86_64__)
  // The same with the processor's own instruction, many at a time; without it std::fma is a call for each output.
  __attribute__((target("avx2,fma"))) void take_fused(int64_t r0, int64_t rows, int64_t o0, int64_t outs, const int32_t* sums, int64_t stride) const {
    for (int64_t r = 0; r < rows; ++r) line(r0 + r, o0, outs, sums + r * stride);
  }
#endif

  __attribute__((always_inline)) inline void line(int64_t r, int64_t o0, int64_t outs, const int32_t* sums) const {
    const auto zero = static_cast<uint32_t>(zeros[r]);
    const float x_scale = x_scales[r];
    const int32_t* of_row = row_sums + o0;
    const float *scales = w_scale + o0, *added = bias ? bias + o0 : nullptr;
    float* values = to + r * out + o0;
    for (int64_t i = 0; i < outs; ++i) {
      const auto centred = static_cast<int32_t>(static_cast<uint32_t>(sums[i]) - zero * static_cast<uint32_t>(of_row[i]));
      const float value = static_cast<float>(centred), start = added ? added[i] : 0.0f;
      values[i] = rule == RowRule::kXnnpack ? std::fma(value * x_scale, scales[i], start) : value * (x_scale * scales[i]) + start;
    }
  }
};

}  // namespace qn
