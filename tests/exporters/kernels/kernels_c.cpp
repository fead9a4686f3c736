// The kernels for ctypes, for tests and benchmarks.
#include <cstring>

#include "../../../exporters/kernels/output.h"
#include "../../../exporters/kernels/paths.h"

namespace {

struct ToInt32 final : qn::Sink {
  int32_t* to;
  int64_t out;
  ToInt32(int32_t* to, int64_t out) : to(to), out(out) {}
  void take(int64_t r0, int64_t rows, int64_t o0, int64_t outs, const int32_t* sums, int64_t stride) const override {
    for (int64_t r = 0; r < rows; ++r) std::memcpy(to + (r0 + r) * out + o0, sums + r * stride, static_cast<size_t>(outs) * 4);
  }
};

}  // namespace

extern "C" {

int qn_paths() { return static_cast<int>(qn::paths().size()); }
const char* qn_path(int index) { return qn::paths()[static_cast<size_t>(index)]->name; }

// Why there is no such table, or null and the table made ready.
const char* qn_create(const uint8_t* codes, size_t code_bytes, const int8_t* centroids, size_t centroid_bytes, int64_t out, int64_t columns,
                      int64_t books, int64_t size, int64_t d, int path, qn::TableLinear** made) {
  const qn::Table table{codes, code_bytes, centroids, centroid_bytes, out, columns, books, size, d};
  if (const char* why = qn::problem(table)) return why;
  *made = new qn::TableLinear(table, path < 0 ? nullptr : qn::paths()[static_cast<size_t>(path)]);
  return nullptr;
}
void qn_destroy(qn::TableLinear* table) { delete table; }
const int32_t* qn_row_sums(const qn::TableLinear* table) { return table->row_sums(); }

void qn_sums(const qn::TableLinear* table, const uint8_t* x, int64_t rows, int64_t row, int64_t column, int flip, int64_t first, int64_t last,
             int32_t* to) {
  table->run({x, rows, row, column, static_cast<uint8_t>(flip)}, first, last, ToInt32(to, table->table().out));
}

void qn_requantize(const qn::TableLinear* table, const uint8_t* x, int64_t rows, int32_t x_zero, const int32_t* bias, const float* factor, int by_row,
                   int32_t zero, uint8_t* to) {
  const qn::Requantize<uint8_t> sink({table->row_sums(), x_zero - 128, bias}, factor, by_row, zero, 0, 255, {to, table->table().out, 1});
  table->run({x, rows, table->in(), 1, 0x80}, sink);
}
}
