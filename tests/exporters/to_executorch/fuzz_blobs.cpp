// Fuzz target for libFuzzer over both readers of blobs: whatever the bytes are, nothing is read or written out of bounds.
//
//   clang++ -std=c++17 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -I ../../../exporters/to_executorch/native \
//     fuzz_blobs.cpp -o fuzz_blobs -lz && ./fuzz_blobs -runs=1000000 CORPUS
//
// test_native.py runs it on the inputs of fuzz_corpus.txt, which holds one a line in hex.
#include <memory>

#include "graph_blob.h"
#include "table_blob.h"

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
  return 0;
}
