// qn_runner: runs a .pte on the device, for verification and timing. ../README.md, "qn_runner", says how to call it and what it prints.

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#include <executorch/extension/threadpool/threadpool_guard.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace {

using namespace executorch::extension;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using executorch::runtime::Program;

[[noreturn]] void fail(const std::string& message) {
  std::cerr << "qn_runner: " << message << std::endl;
  std::exit(1);
}

void check(Error error, const std::string& what) {
  if (error != Error::Ok) fail(what + ": " + executorch::runtime::to_string(error));
}

const std::map<std::string, ScalarType> kTypes = {
    {"float32", ScalarType::Float}, {"float64", ScalarType::Double}, {"int64", ScalarType::Long}, {"int32", ScalarType::Int},
    {"int16", ScalarType::Short},   {"int8", ScalarType::Char},      {"uint8", ScalarType::Byte}, {"bool", ScalarType::Bool},
};

// A tensor file is a line "dtype size size ...\n" and the tensor's bytes, for each tensor.
std::vector<TensorPtr> read_tensors(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("can't read " + path);
  std::vector<TensorPtr> tensors;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line);
    std::string name;
    words >> name;
    const auto type = kTypes.find(name);
    if (type == kTypes.end()) fail(path + ": '" + line.substr(0, 40) + "' is no line of a dtype and sizes");
    std::vector<SizesType> sizes;
    uint64_t bytes = executorch::runtime::elementSize(type->second);
    for (int64_t size; words >> size;) {
      if (size < 0 || size > INT32_MAX || __builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes) || bytes > INT32_MAX) {
        fail(path + ": a tensor of '" + line + "' is too large");
      }
      sizes.push_back(static_cast<SizesType>(size));
    }
    if (!words.eof()) fail(path + ": '" + line.substr(0, 40) + "' has a size that is no number");
    std::vector<uint8_t> data(bytes);
    if (!file.read(reinterpret_cast<char*>(data.data()), static_cast<std::streamsize>(bytes))) fail(path + " ends within '" + line + "'");
    tensors.push_back(make_tensor_ptr(std::move(sizes), std::move(data), {}, {}, type->second));
  }
  return tensors;
}

void write_tensors(const std::string& path, const std::vector<EValue>& values) {
  std::ofstream file(path, std::ios::binary);
  for (const auto& value : values) {
    if (!value.isTensor()) fail("an output is no tensor");
    const auto& tensor = value.toTensor();
    const auto type = std::find_if(kTypes.begin(), kTypes.end(), [&](const auto& each) { return each.second == tensor.scalar_type(); });
    if (type == kTypes.end()) fail("an output has a dtype that a tensor file does not know");
    file << type->first;
    for (const auto size : tensor.sizes()) file << ' ' << size;
    file << '\n';
    file.write(static_cast<const char*>(tensor.const_data_ptr()), static_cast<std::streamsize>(tensor.nbytes()));
  }
  if (!file.flush()) fail("can't write " + path);
}

// A line of /proc/self/status in bytes; 0 where there is no such file.
long memory(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(name + ":", 0) == 0) return std::atol(line.c_str() + name.size() + 1) * 1024;
  }
  return 0;
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int count, char** words) {
  const std::string usage = "usage: qn_runner MODEL.pte INPUTS OUTPUTS [--runs N] [--method NAME] [--mmap] [--all-threads]";
  std::vector<std::string> paths;
  std::string method = "forward";
  long runs = 0;
  bool mmap = false, all_threads = false;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--mmap") {
      mmap = true;
    } else if (word == "--all-threads") {
      all_threads = true;
    } else if ((word == "--runs" || word == "--method") && i + 1 < count) {
      const std::string value = words[++i];
      if (word == "--method") {
        method = value;
      } else if (char* end; (runs = std::strtol(value.c_str(), &end, 10)) < 0 || *end || value.empty()) {
        fail("--runs " + value + " is no number; " + usage);
      }
    } else if (word.rfind("--", 0) == 0) {
      fail("don't know " + word + "; " + usage);
    } else {
      paths.push_back(word);
    }
  }
  if (paths.size() != 3) fail(usage);

  std::optional<threadpool::NoThreadPoolGuard> one_thread;
  if (!all_threads) one_thread.emplace();
  const auto inputs = read_tensors(paths[1]);
  std::vector<EValue> values(inputs.begin(), inputs.end());
  const long before = memory("VmRSS");

  const auto start = std::chrono::steady_clock::now();
  Module module(paths[0], mmap ? Module::LoadMode::Mmap : Module::LoadMode::File);
  check(module.load(Program::Verification::InternalConsistency), "can't load " + paths[0]);
  check(module.load_method(method), "can't load '" + method + "' of " + paths[0]);
  const double load_ms = milliseconds_since(start);
  const long loaded = memory("VmRSS"), peak = memory("VmHWM");

  const auto first_start = std::chrono::steady_clock::now();
  auto outputs = module.execute(method, values);
  check(outputs.error(), "can't run '" + method + "'");
  const double first_ms = milliseconds_since(first_start);
  write_tensors(paths[2], *outputs);

  std::vector<double> times;
  for (long run = 0; run < runs; ++run) {
    const auto run_start = std::chrono::steady_clock::now();
    check(module.execute(method, values).error(), "can't run '" + method + "' again");
    times.push_back(milliseconds_since(run_start));
  }
  std::sort(times.begin(), times.end());
  std::printf("{\"load_ms\": %.4f, \"first_ms\": %.4f, \"runs\": %ld", load_ms, first_ms, runs);
  if (runs) std::printf(", \"median_ms\": %.4f, \"min_ms\": %.4f", times[times.size() / 2], times.front());
  std::printf(", \"rss_before\": %ld, \"rss_loaded\": %ld, \"rss_load_peak\": %ld, \"rss_peak\": %ld}\n", before, loaded, peak,
              memory("VmHWM"));
}
