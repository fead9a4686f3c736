// The sums of random tables on every path that the processor has, against plain loops. Without a test framework, so that one file and a
// cross compiler are enough to run it on an emulated processor. Prints the paths; the exit code is 1 if a sum is wrong.
#include <cstdio>
#include <cstring>
#include <random>
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

bool check(std::mt19937& random, int64_t most) {
  const auto below = [&](int64_t count) { return static_cast<int64_t>(random() % static_cast<uint64_t>(count)); };
  const int64_t out = 1 + below(200), columns = 1 + below(300), books = 1 + below(columns), size = 1 + below(below(2) ? 16 : 256);
  const int64_t ds[] = {1, 2, 2, 3, 4, 4, 5, 8, 16, 17}, d = ds[below(10)], rows = 1 + below(most), in = columns * d;
  const bool extreme = below(3) == 0;
  std::vector<int8_t> centroids(static_cast<size_t>(books * size * d));
  for (int8_t& each : centroids) each = static_cast<int8_t>(extreme ? (below(2) ? 127 : -127) : below(255) - 127);
  std::vector<uint8_t> codes(qn::packed_bytes(out, columns, size)), x(static_cast<size_t>(rows * in));
  for (uint8_t& each : x) each = static_cast<uint8_t>(extreme ? (below(2) ? 0x80 : 0x7f) : below(256));
  std::vector<int8_t> weight(static_cast<size_t>(out * in));
  const int64_t groups = (columns + 3) / 4;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t i = 0; i < columns; ++i) {
      const int64_t code = below(size);
      if (size <= 16) {
        const int64_t nibble = ((o / 64 * groups + i / 4) * 64 + o % 64) * 4 + i % 4;
        codes[static_cast<size_t>(nibble / 2)] |= static_cast<uint8_t>(code << (nibble % 2 * 4));
      } else {
        codes[static_cast<size_t>(o * columns + i)] = static_cast<uint8_t>(code);
      }
      std::memcpy(&weight[static_cast<size_t>(o * in + i * d)], &centroids[static_cast<size_t>((i * books / columns * size + code) * d)],
                  static_cast<size_t>(d));
    }
  }
  std::vector<int32_t> expected(static_cast<size_t>(rows * out)), found(expected.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < out; ++o) {
      for (int64_t k = 0; k < in; ++k) {
        expected[static_cast<size_t>(r * out + o)] += static_cast<int8_t>(x[static_cast<size_t>(r * in + k)]) * weight[static_cast<size_t>(o * in + k)];
      }
    }
  }
  const qn::Table table{codes.data(), codes.size(), centroids.data(), centroids.size(), out, columns, books, size, d};
  if (const char* why = qn::problem(table)) return std::printf("refused: %s\n", why), false;
  for (const qn::Path* path : qn::paths()) {
    std::fill(found.begin(), found.end(), -1);
    qn::TableLinear(table, path).run({x.data(), rows, in, 1, 0}, Sums(found, out));
    if (found != expected) {
      std::printf("%s: wrong sums: out %d columns %d books %d size %d d %d rows %d\n", path->name, int(out), int(columns), int(books), int(size), int(d),
                  int(rows));
      return false;
    }
  }
  return true;
}

}  // namespace

int main() {
  std::mt19937 random(1);
  for (const qn::Path* path : qn::paths()) std::printf("%s ", path->name);
  for (int round = 0; round < 60; ++round) {
    if (!check(random, round % 10 ? 8 : 150)) return 1;
  }
  std::printf("\n");
}
