// Runs a .pte on ExecuTorch: run_pte model.pte image.bin, a file of float32 [1, 1, 8, 8]. Prints the scores, a line each.
//
// A stock .pte (qn-deploy unpack model.stock.qnz) needs nothing of ours. model.pte with tables needs libqn_xnnpack_backend linked in.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>

#include <cstdio>
#include <fstream>
#include <vector>

using executorch::extension::from_blob;
using executorch::extension::Module;
using executorch::runtime::Program;

int main(int count, char** words) {
  if (count != 3) return std::fprintf(stderr, "usage: run_pte model.pte image.bin\n"), 2;
  std::vector<float> pixels(64);
  std::ifstream file(words[2], std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), 4 * 64)) return std::fprintf(stderr, "image.bin holds no 64 floats\n"), 2;

  Module module(words[1], Module::LoadMode::File);
  if (module.load(Program::Verification::InternalConsistency) != executorch::runtime::Error::Ok) {  // the default checks less
    return std::fprintf(stderr, "%s can't be loaded\n", words[1]), 1;
  }
  const auto image = from_blob(pixels.data(), {1, 1, 8, 8});
  const auto found = module.forward(image);
  if (!found.ok()) return std::fprintf(stderr, "it failed: %s\n", executorch::runtime::to_string(found.error())), 1;

  const auto scores = found->at(0).toTensor();
  for (ssize_t i = 0; i < scores.numel(); ++i) std::printf("%.9g\n", scores.const_data_ptr<float>()[i]);
}
