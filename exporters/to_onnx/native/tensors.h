// Tensor files: for each tensor a line "dtype size size ...\n", then its elements, row-major and little-endian. As qn_runner's of ExecuTorch.
#pragma once

#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Kind {
  int type;     // its number in onnxruntime's C API
  size_t size;  // bytes of an element
};

inline const std::map<std::string, Kind> kKinds = {
    {"float32", {1, 4}}, {"float64", {11, 8}}, {"int64", {7, 8}}, {"int32", {6, 4}},
    {"int16", {5, 2}},   {"int8", {3, 1}},     {"uint8", {2, 1}}, {"bool", {9, 1}},
};

struct Tensor {
  int type;
  std::vector<int64_t> sizes;
  std::vector<char> bytes;
};

inline std::vector<Tensor> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("can't read " + path);
  std::vector<Tensor> tensors;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    const auto kind = kKinds.find(name);
    if (kind == kKinds.end()) throw std::runtime_error(path + ": '" + line.substr(0, 40) + "' is no line of a dtype and sizes");
    Tensor tensor{kind->second.type, {}, {}};
    int64_t bytes = static_cast<int64_t>(kind->second.size);
    for (int64_t size; words >> size;) {
      if (size < 0 || __builtin_mul_overflow(bytes, size, &bytes) || bytes > INT32_MAX) {
        throw std::runtime_error(path + ": a tensor of '" + line.substr(0, 40) + "' is too large");
      }
      tensor.sizes.push_back(size);
    }
    if (!words.eof()) throw std::runtime_error(path + ": '" + line.substr(0, 40) + "' has a size that is no number");
    tensor.bytes.resize(static_cast<size_t>(bytes));
    if (!file.read(tensor.bytes.data(), bytes)) throw std::runtime_error(path + " ends within '" + line + "'");
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

inline void write_tensors(const std::string& path, const std::vector<Tensor>& tensors) {
  std::ofstream file(path, std::ios::binary);
  for (const Tensor& tensor : tensors) {
    for (const auto& [name, kind] : kKinds) {
      if (kind.type == tensor.type) file << name;
    }
    for (const int64_t size : tensor.sizes) file << ' ' << size;
    file << '\n';
    file.write(tensor.bytes.data(), static_cast<std::streamsize>(tensor.bytes.size()));
  }
  if (!file.flush()) throw std::runtime_error("can't write " + path);
}
