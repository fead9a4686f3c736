// Runs a .onnx file on a device: qn_onnx_runner MODEL OUTPUTS [OPTION...] INPUT.npy...
//
//   OUTPUTS           folder for 0.npy, 1.npy, ...; each is there whole or not at all
//   --unoptimized     turns the rewriting of the graph off
//   --config KEY=VAL  a session configuration entry of onnxruntime; may be repeated
//   --runs N          runs N times (1 unless told) and gives N times
//
// Prints one line of JSON: {"load_ms": 1.5, "run_ms": [0.8]}. Exit code 1 and one line on standard error if the runtime refuses.
#include <chrono>
#include <cstdio>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <sstream>

#include "npy.h"
#include "onnxruntime_slots.h"

namespace {

using Clock = std::chrono::steady_clock;

// The element types by their number in the C API; the ones left out have no numpy type.
const std::map<int, std::string> kTypes = {{1, "<f4"}, {2, "|u1"}, {3, "|i1"}, {4, "<u2"}, {5, "<i2"}, {6, "<i4"},
                                           {7, "<i8"}, {9, "|b1"}, {10, "<f2"}, {11, "<f8"}, {12, "<u4"}, {13, "<u8"}};

struct Arguments {
  std::string model, outputs;
  std::vector<std::string> inputs;
  std::vector<std::pair<std::string, std::string>> config;
  bool optimized = true;
  int runs = 1;
};

Arguments parse(int count, char** words) {
  Arguments result;
  std::vector<std::string> plain;
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    const bool has_value = index + 1 < count;
    if (word == "--unoptimized") {
      result.optimized = false;
    } else if (word == "--runs" && has_value) {
      result.runs = std::stoi(words[++index]);
    } else if (word == "--config" && has_value) {
      const std::string entry = words[++index];
      const size_t at = entry.find('=');
      if (at == std::string::npos) throw std::runtime_error("--config takes KEY=VALUE, not " + entry);
      result.config.emplace_back(entry.substr(0, at), entry.substr(at + 1));
    } else {
      plain.push_back(word);
    }
  }
  if (plain.size() < 2 || result.runs < 1) throw std::runtime_error("usage: qn_onnx_runner MODEL OUTPUTS [--unoptimized] [--config KEY=VALUE] [--runs N] INPUT.npy...");
  result.model = plain[0];
  result.outputs = plain[1];
  result.inputs.assign(plain.begin() + 2, plain.end());
  return result;
}

double milliseconds(Clock::time_point start) { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); }

std::vector<std::string> names(const ort::Api& api, ort::Session* session, const decltype(ort::Api::input_count)& count, const decltype(ort::Api::input_name)& name) {
  ort::Allocator* allocator = nullptr;
  api.check(api.default_allocator(&allocator));
  size_t length = 0;
  api.check(count(session, &length));
  std::vector<std::string> result;
  for (size_t index = 0; index < length; ++index) {
    char* text = nullptr;
    api.check(name(session, index, allocator, &text));
    result.emplace_back(text);
    api.check(api.free(allocator, text));
  }
  return result;
}

std::vector<const char*> pointers(const std::vector<std::string>& words) {
  std::vector<const char*> result;
  for (const std::string& word : words) result.push_back(word.c_str());
  return result;
}

ort::Value* wrap(const ort::Api& api, npy::Tensor& tensor) {
  ort::MemoryInfo* memory = nullptr;
  api.check(api.cpu_memory(0, 0, &memory));  // OrtDeviceAllocator, OrtMemTypeDefault
  for (const auto& [type, descr] : kTypes) {
    if (descr != tensor.descr) continue;
    ort::Value* value = nullptr;
    api.check(api.tensor(memory, tensor.bytes.data(), tensor.bytes.size(), tensor.shape.data(), tensor.shape.size(), type, &value));
    return value;
  }
  throw std::runtime_error("no tensor of onnxruntime has elements of type " + tensor.descr);
}

void save(const ort::Api& api, ort::Value* value, const std::string& path) {
  ort::Shape* shape = nullptr;
  api.check(api.shape(value, &shape));
  int type = 0;
  size_t rank = 0, elements = 0;
  api.check(api.element_type(shape, &type));
  api.check(api.rank(shape, &rank));
  api.check(api.elements(shape, &elements));
  std::vector<int64_t> sizes(rank);
  api.check(api.sizes(shape, sizes.data(), rank));
  const auto found = kTypes.find(type);
  if (found == kTypes.end()) throw std::runtime_error("an output has elements of type " + std::to_string(type) + ", which numpy has not");
  void* data = nullptr;
  api.check(api.data(value, &data));
  npy::write(path + ".part", found->second, sizes, data, elements * static_cast<size_t>(found->second[2] - '0'));
  if (std::rename((path + ".part").c_str(), path.c_str()) != 0) throw std::runtime_error("can't write " + path);
}

void run(const Arguments& arguments) {
  const ort::Api api;
  ort::Env* env = nullptr;
  api.check(api.create_env(3, "qn", &env));  // logs errors only
  ort::SessionOptions* options = nullptr;
  api.check(api.create_options(&options));
  api.check(api.threads(options, 1));
  api.check(api.optimization(options, arguments.optimized ? 99 : 0));  // ORT_ENABLE_ALL, ORT_DISABLE_ALL
  for (const auto& [key, value] : arguments.config) api.check(api.config(options, key.c_str(), value.c_str()));

  Clock::time_point start = Clock::now();
  ort::Session* session = nullptr;
  api.check(api.create_session(env, arguments.model.c_str(), options, &session));
  const double load = milliseconds(start);

  const std::vector<std::string> inputs = names(api, session, api.input_count, api.input_name);
  const std::vector<std::string> outputs = names(api, session, api.output_count, api.output_name);
  if (inputs.size() != arguments.inputs.size()) {
    throw std::runtime_error("the model has " + std::to_string(inputs.size()) + " inputs, " + std::to_string(arguments.inputs.size()) + " were given");
  }
  std::vector<npy::Tensor> tensors;
  for (const std::string& path : arguments.inputs) tensors.push_back(npy::read(path));
  std::vector<ort::Value*> values;
  for (npy::Tensor& tensor : tensors) values.push_back(wrap(api, tensor));

  std::vector<ort::Value*> results(outputs.size());
  std::ostringstream times;
  for (int index = 0; index < arguments.runs; ++index) {
    results.assign(outputs.size(), nullptr);  // the process ends soon: nothing is released
    start = Clock::now();
    api.check(api.run(session, nullptr, pointers(inputs).data(), values.data(), values.size(), pointers(outputs).data(), outputs.size(), results.data()));
    times << (index ? ", " : "") << milliseconds(start);
  }
  for (size_t index = 0; index < results.size(); ++index) save(api, results[index], arguments.outputs + "/" + std::to_string(index) + ".npy");
  std::cout << "{\"load_ms\": " << load << ", \"run_ms\": [" << times.str() << "]}" << std::endl;
}

}  // namespace

int main(int count, char** words) {
  try {
    run(parse(count, words));
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
  std::quick_exit(0);  // the destructors of onnxruntime's statics have nothing to add
}
