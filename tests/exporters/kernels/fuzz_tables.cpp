// libFuzzer over packed weights: any bytes are refused, or give the sums of the portable path. The fuzzer's flags: test_fuzz.py.
#include <cstdlib>
#include <cstring>
#include <vector>

#include "../../../exporters/kernels/paths.h"
#include "../../../exporters/kernels/table_linear.h"

namespace {

struct Sums final : qn::Sink {
  std::vector<int32_t>& to;
  int64_t out;
  Sums(std::vector<int32_t>& to, int64_t out) : to(to), out(out) {}
  void take(int64_t r0, int64_t rows, int64_t o0, int64_t outs, const int32_t* sums, int64_t stride) const override {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(&to[static_cast<size_t>((r0 + r) * out + o0)], sums + r * stride, static_cast<size_t>(outs) * 4);
  }
};

// Sizes that are mostly of a few lanes, so that a run takes microseconds; sometimes of more than a tile, and sometimes absurd.
int64_t size_from(const uint8_t* data) {
  if (data[1] < 230) return 1 + data[0] % 12;
  if (data[1] < 250) return 1 + data[0] % 80;
  return data[1] < 253 ? static_cast<int64_t>(data[0]) - 128 : int64_t{1} << (data[0] % 64);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t length) {
  if (length < 12) return 0;
  const int64_t out = size_from(data), columns = size_from(data + 2), books = size_from(data + 4), d = data[7] < 250 ? 1 + data[6] % 9 : size_from(data + 6);
  const int64_t size = data[9] < 128 ? 1 + data[8] % 16 : 1 + data[8];
  const int64_t rows = data[11] < 230 ? 1 + data[10] % 3 : 1 + data[10] % 10;  // few are looked up, more are decoded
  const uint8_t *rest = data + 12, *end = data + length;
  const auto draw = [&](size_t count, bool centroids) {  // exactly so many bytes, so that AddressSanitizer sees the first one too many
    std::vector<uint8_t> bytes(count);
    for (uint8_t& each : bytes) {
      each = rest < end ? *rest++ : static_cast<uint8_t>(count * 37 + static_cast<size_t>(&each - bytes.data()) * 101);
      if (centroids && each == 0x80) each = 0x81;
    }
    return bytes;
  };
  qn::Table table{nullptr, 0, nullptr, 0, out, columns, books, size, d};
  const auto small = [](int64_t value) { return value >= 1 && value <= 300; };
  const bool fits = small(out) && small(columns) && small(books) && small(size) && small(d) && data[11] < 250;
  table.code_bytes = fits ? qn::packed_bytes(out, columns, size) : data[11];
  table.centroid_bytes = fits ? static_cast<size_t>(books * size * d) : data[11];
  const std::vector<uint8_t> codes = draw(table.code_bytes, false), centroids = draw(table.centroid_bytes, true);
  table.codes = codes.data(), table.centroids = reinterpret_cast<const int8_t*>(centroids.data());
  if (qn::problem(table) != nullptr) return 0;
  const std::vector<uint8_t> x = draw(static_cast<size_t>(rows * columns * d), false);
  std::vector<int32_t> expected(static_cast<size_t>(rows * out)), found(expected.size());
  const qn::Input input{x.data(), rows, columns * d, 1, static_cast<uint8_t>(data[10] & 0x80)};
  qn::TableLinear(table, &qn::kPortable).run(input, Sums(expected, out));
  for (const qn::Path* path : qn::paths()) {
    qn::TableLinear(table, path).run(input, Sums(found, out));
    if (found != expected) std::abort();
  }
  return 0;
}
