// Tensors as .npy files, version 1.0, as numpy writes them: magic, header, the elements row-major and little-endian.
#pragma once

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace npy {

constexpr char kMagic[] = "\x93NUMPY\x01";  // and the 0 that ends it: version 1.0

struct Tensor {
  std::string descr;  // numpy's name of the element type, "<f4"
  std::vector<int64_t> shape;
  std::string bytes;
};

inline std::string field(const std::string& header, const std::string& key, char open, char close, const std::string& path) {
  const size_t at = header.find("'" + key + "'");
  const size_t from = at == std::string::npos ? at : header.find(open, header.find(':', at));
  const size_t to = from == std::string::npos ? from : header.find(close, from + 1);
  if (to == std::string::npos) throw std::runtime_error(path + " is no .npy file: its header has no " + key);
  return header.substr(from + 1, to - from - 1);
}

inline Tensor read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("can't read " + path);
  const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (all.size() < 10 || all.compare(0, 8, kMagic, 8) != 0) throw std::runtime_error(path + " is no .npy file of version 1.0");
  const size_t length = static_cast<uint8_t>(all[8]) + 256 * static_cast<uint8_t>(all[9]);
  const std::string header = all.substr(10, length);
  if (header.find("'fortran_order': False") == std::string::npos) throw std::runtime_error(path + " is not row-major");
  Tensor tensor{field(header, "descr", '\'', '\'', path), {}, all.substr(10 + header.size())};
  const std::string shape = field(header, "shape", '(', ')', path);
  for (size_t at = 0; at < shape.size();) {
    if (shape[at] == ',' || shape[at] == ' ') {
      ++at;
    } else {
      size_t read = 0;
      tensor.shape.push_back(std::stoll(shape.substr(at), &read));
      at += read;
    }
  }
  return tensor;
}

inline void write(const std::string& path, const std::string& descr, const std::vector<int64_t>& shape, const void* data, size_t size) {
  std::string header = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (";
  for (int64_t each : shape) header += std::to_string(each) + ",";
  header += "), }";
  header.append((64 - (10 + header.size() + 1) % 64) % 64, ' ');  // numpy aligns the elements to 64 bytes
  header += '\n';
  std::ofstream file(path, std::ios::binary);
  file.write(kMagic, 8).put(static_cast<char>(header.size() & 255)).put(static_cast<char>(header.size() >> 8));
  file << header;
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  file.close();
  if (!file) throw std::runtime_error("can't write " + path);
}

}  // namespace npy
