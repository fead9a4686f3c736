// Fuzz target for libFuzzer over all readers of blobs: whatever the bytes are, nothing is read or written out of bounds.
//
//   clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I ../../../exporters/to_executorch/native \
//     fuzz_blobs.cpp ../../../exporters/kernels/table.cpp -o fuzz_blobs -lz && ./fuzz_blobs -runs=1000000 CORPUS
//
// test_native.py runs it on the inputs of fuzz_corpus.txt, which holds one a line in hex.
#include <memory>

#include "graph_blob.h"
#include "layer_blob.h"
#include "table_blob.h"
#include "tile_blob.h"

namespace {

// Reads all that a view points to.
template <typename T>
size_t touch(const T* data, size_t count) {
  size_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += static_cast<size_t>(data[i]);
  return sum;
}

volatile size_t sink;

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kLimit = 1 << 20;  // what a small input can ask for is a limit of the format, not a fault of the reader
  if (const auto blob = qn::TableBlob::parse(data, size); blob && blob->dense_bytes() <= kLimit) {
    const std::unique_ptr<uint8_t[]> out(new uint8_t[blob->dense_bytes()]);  // not one byte more; and aligned for a float
    blob->expand(out.get());
  }
  if (const auto blob = qn::GraphBlob::parse(data, size); blob && blob->graph_bytes() <= kLimit) {
    const std::unique_ptr<uint8_t[]> out(new uint8_t[blob->graph_bytes()]);
    blob->inflate(out.get());
  }
  if (const auto table = qn::TileBlob::parse(data, size))
    sink = touch(table->codes, table->code_bytes) + touch(table->centroids, table->centroid_bytes);
  if (const auto layer = qn::LayerBlob::parse(data, size)) {
    for (const auto& key : {layer->weight, layer->scale, layer->bias}) sink = touch(key.data(), key.size());
  }
  return 0;
}
