// qn_onnx_runner: runs a .onnx file on a device, for verification and timing. Called as qn_runner of ExecuTorch is:
//
//   qn_onnx_runner MODEL INPUTS OUTPUTS [--runs N] [--plain] [--stock] [--config KEY=VALUE]...
//
// INPUTS and OUTPUTS are tensor files (tensors.h). --plain turns the rewriting of the graph off and leaves our operators out, --stock does
// only the latter, --config sets an entry of the session's configuration. Prints a line of JSON: load_ms, first_ms, runs, and with runs median_ms and min_ms of the runs after the first. If it fails,
// the exit code is 1 and standard error has one line.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <utility>

#include "onnxruntime_slots.h"
#include "tensors.h"

extern "C" ort::Status* RegisterCustomOps(ort::SessionOptions* options, const OrtApiBase* base);  // qn_onnx_ops.cpp

namespace {

using Clock = std::chrono::steady_clock;

struct Arguments {
  std::vector<std::string> paths;
  std::vector<std::pair<std::string, std::string>> config;
  bool plain = false, stock = false;
  long runs = 0;
};

Arguments parse(int count, char** words) {
  const std::string usage = "usage: qn_onnx_runner MODEL INPUTS OUTPUTS [--runs N] [--plain] [--stock] [--config KEY=VALUE]...";
  Arguments result;
  for (int index = 1; index < count; ++index) {
    const std::string word = words[index];
    if (word == "--plain") {
      result.plain = result.stock = true;
    } else if (word == "--stock") {
      result.stock = true;
    } else if (word == "--runs" && index + 1 < count) {
      char* end = nullptr;
      result.runs = std::strtol(words[++index], &end, 10);
      if (result.runs < 0 || *end || end == words[index]) throw std::runtime_error("--runs takes a number, not " + std::string(words[index]));
    } else if (word == "--config" && index + 1 < count) {
      const std::string entry = words[++index];
      const size_t at = entry.find('=');
      if (at == std::string::npos) throw std::runtime_error("--config takes KEY=VALUE, not " + entry);
      result.config.emplace_back(entry.substr(0, at), entry.substr(at + 1));
    } else if (word.rfind("--", 0) == 0) {
      throw std::runtime_error("don't know " + word + "; " + usage);
    } else {
      result.paths.push_back(word);
    }
  }
  if (result.paths.size() != 3) throw std::runtime_error(usage);
  return result;
}

double milliseconds_since(Clock::time_point start) { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); }

template <typename Count, typename Name>
std::vector<const char*> names(const ort::Api& api, ort::Session* session, const Count& count, const Name& name) {
  ort::Allocator* allocator = nullptr;
  api.check(api.default_allocator(&allocator));
  size_t length = 0;
  api.check(count(session, &length));
  std::vector<const char*> result;
  for (size_t index = 0; index < length; ++index) {
    char* text = nullptr;  // the process ends soon: nothing here is released
    api.check(name(session, index, allocator, &text));
    result.push_back(text);
  }
  return result;
}

ort::Value* wrap(const ort::Api& api, Tensor& tensor) {
  ort::MemoryInfo* memory = nullptr;
  api.check(api.cpu_memory(0, 0, &memory));  // OrtDeviceAllocator, OrtMemTypeDefault
  ort::Value* value = nullptr;
  api.check(api.tensor(memory, tensor.bytes.data(), tensor.bytes.size(), tensor.sizes.data(), tensor.sizes.size(), tensor.type, &value));
  return value;
}

Tensor unwrap(const ort::Api& api, ort::Value* value) {
  ort::Shape* shape = nullptr;
  api.check(api.shape(value, &shape));
  Tensor tensor{};
  size_t rank = 0, elements = 0;
  api.check(api.element_type(shape, &tensor.type));
  api.check(api.rank(shape, &rank));
  api.check(api.elements(shape, &elements));
  tensor.sizes.resize(rank);
  api.check(api.sizes(shape, tensor.sizes.data(), rank));
  const auto kind = std::find_if(kKinds.begin(), kKinds.end(), [&](const auto& each) { return each.second.type == tensor.type; });
  if (kind == kKinds.end()) throw std::runtime_error("an output has a dtype that a tensor file does not know");
  void* data = nullptr;
  api.check(api.data(value, &data));
  tensor.bytes.assign(static_cast<const char*>(data), static_cast<const char*>(data) + elements * kind->second.size);
  return tensor;
}

void run(const Arguments& arguments) {
  std::vector<Tensor> tensors = read_tensors(arguments.paths[1]);
  const ort::Api api;
  ort::Env* env = nullptr;
  api.check(api.create_env(3, "qn", &env));  // ORT_LOGGING_LEVEL_ERROR
  ort::SessionOptions* options = nullptr;
  api.check(api.create_options(&options));
  api.check(api.threads(options, 1));
  api.check(api.optimization(options, arguments.plain ? 0 : 99));  // ORT_DISABLE_ALL, ORT_ENABLE_ALL
  if (!arguments.stock) api.check(RegisterCustomOps(options, OrtGetApiBase()));
  for (const auto& [key, value] : arguments.config) api.check(api.config(options, key.c_str(), value.c_str()));

  const Clock::time_point start = Clock::now();
  ort::Session* session = nullptr;
  api.check(api.create_session(env, arguments.paths[0].c_str(), options, &session));
  const double load_ms = milliseconds_since(start);

  const auto inputs = names(api, session, api.input_count, api.input_name);
  const auto outputs = names(api, session, api.output_count, api.output_name);
  if (inputs.size() != tensors.size()) {
    throw std::runtime_error("the model has " + std::to_string(inputs.size()) + " inputs, the file has " + std::to_string(tensors.size()));
  }
  std::vector<ort::Value*> values;
  for (Tensor& tensor : tensors) values.push_back(wrap(api, tensor));

  std::vector<double> times;
  for (long index = 0; index <= arguments.runs; ++index) {
    std::vector<ort::Value*> results(outputs.size(), nullptr);
    const Clock::time_point run_start = Clock::now();
    api.check(api.run(session, nullptr, inputs.data(), values.data(), values.size(), outputs.data(), outputs.size(), results.data()));
    times.push_back(milliseconds_since(run_start));
    if (index == 0) {
      std::vector<Tensor> found;
      for (ort::Value* result : results) found.push_back(unwrap(api, result));
      write_tensors(arguments.paths[2], found);
    }
    for (ort::Value* result : results) api.release_value(result);
  }
  std::printf("{\"load_ms\": %.4f, \"first_ms\": %.4f, \"runs\": %ld", load_ms, times[0], arguments.runs);
  if (arguments.runs) {
    std::sort(times.begin() + 1, times.end());
    std::printf(", \"median_ms\": %.4f, \"min_ms\": %.4f", times[1 + arguments.runs / 2], times[1]);
  }
  std::printf("}\n");
}

}  // namespace

int main(int count, char** words) {
  try {
    run(parse(count, words));
  } catch (const std::exception& error) {
    const std::string message = error.what();
    std::cerr << "qn_onnx_runner: " << message.substr(0, message.find('\n')) << std::endl;
    return 1;
  }
  return 0;
}
