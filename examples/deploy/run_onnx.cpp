// Runs model.onnx on onnxruntime: run_onnx model.onnx image.bin, a file of float32 [1, 1, 8, 8]. Prints the scores, a line each.

#include <onnxruntime_cxx_api.h>

#include <array>
#include <cstdio>
#include <fstream>
#include <vector>

int main(int count, char** words) {
  if (count != 3) return std::fprintf(stderr, "usage: run_onnx model.onnx image.bin\n"), 2;
  const std::array<int64_t, 4> shape = {1, 1, 8, 8};
  std::vector<float> pixels(64);
  std::ifstream file(words[2], std::ios::binary);
  if (!file.read(reinterpret_cast<char*>(pixels.data()), 4 * 64)) return std::fprintf(stderr, "image.bin holds no 64 floats\n"), 2;
  try {
    Ort::Env environment;
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);                             // small models: more threads cost more than they give
    options.AddConfigEntry("session.x64quantprecision", "1");  // exact int8 sums on x86 without VNNI; others ignore it
    Ort::Session session(environment, words[1], options);

    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    const auto image = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    const std::array<const char*, 1> inputs = {"image"}, outputs = {"output"};  // as manifest.json names them
    const auto found = session.Run(Ort::RunOptions(), inputs.data(), &image, 1, outputs.data(), 1);

    const size_t scores = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
    for (size_t i = 0; i < scores; ++i) std::printf("%.9g\n", found[0].GetTensorData<float>()[i]);
  } catch (const Ort::Exception& error) {
    return std::fprintf(stderr, "%s\n", error.what()), 1;
  }
}
