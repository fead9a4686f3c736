// The functions of onnxruntime's C API that the runner calls, by their place in its table.
//
// The wheels hold the library and no header. None is needed: struct OrtApi is a table of function pointers that is only ever appended to (its
// own source asserts the place of the last one of each version), so these places are the same in every version since 1.5.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

extern "C" {
struct OrtApiBase {
  const void* const*(*get_api)(uint32_t version);
  const char* (*get_version)();
};
const OrtApiBase* OrtGetApiBase();
}

namespace ort {

struct Status;
struct Env;
struct SessionOptions;
struct Session;
struct RunOptions;
struct Value;
struct MemoryInfo;
struct Shape;
struct Allocator;

constexpr uint32_t kVersion = 5;  // of the table; the newest function here came with it

template <typename... Parameters>
struct Function {
  Status* (*pointer)(Parameters...);
  Function(const void* const* table, int place) : pointer(reinterpret_cast<Status* (*)(Parameters...)>(const_cast<void*>(table[place]))) {}
  Status* operator()(Parameters... parameters) const { return pointer(parameters...); }
};

class Api {
  const void* const* table = OrtGetApiBase()->get_api(kVersion);

 public:
  const Function<int, const char*, Env**> create_env{table, 3};
  const Function<Env*, const char*, const SessionOptions*, Session**> create_session{table, 7};
  const Function<Session*, const RunOptions*, const char* const*, const Value* const*, size_t, const char* const*, size_t, Value**> run{table, 9};
  const Function<SessionOptions**> create_options{table, 10};
  const Function<SessionOptions*, int> optimization{table, 23};
  const Function<SessionOptions*, int> threads{table, 24};
  const Function<const Session*, size_t*> input_count{table, 30};
  const Function<const Session*, size_t*> output_count{table, 31};
  const Function<const Session*, size_t, Allocator*, char**> input_name{table, 36};
  const Function<const Session*, size_t, Allocator*, char**> output_name{table, 37};
  const Function<const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**> tensor{table, 49};
  const Function<Value*, void**> data{table, 51};
  const Function<const Shape*, int*> element_type{table, 60};
  const Function<const Shape*, size_t*> rank{table, 61};
  const Function<const Shape*, int64_t*, size_t> sizes{table, 62};
  const Function<const Shape*, size_t*> elements{table, 64};
  const Function<const Value*, Shape**> shape{table, 65};
  const Function<int, int, MemoryInfo**> cpu_memory{table, 69};
  const Function<Allocator*, void*> free{table, 76};
  const Function<Allocator**> default_allocator{table, 78};
  const Function<SessionOptions*, const char*, const char*> config{table, 130};

  // Throws the message of a failure.
  void check(Status* status) const {
    if (status != nullptr) {
      const auto message = reinterpret_cast<const char* (*)(const Status*)>(const_cast<void*>(table[2]));
      throw std::runtime_error(message(status));
    }
  }
};

}  // namespace ort
