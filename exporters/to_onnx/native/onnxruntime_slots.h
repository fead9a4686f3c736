// The functions of onnxruntime's C API that the runner calls, by their place in its table.
//
// The wheels hold the library and no header, and none is needed: struct OrtApi is a table of function pointers that is only ever appended to
// (its own source asserts the place of the last one of each version), so these places are the same in every version since 1.5.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

extern "C" {
struct OrtApiBase {
  void* const* (*get_api)(uint32_t version);
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
struct Shape;  // OrtTensorTypeAndShapeInfo
struct Allocator;

constexpr uint32_t kVersion = 5;  // of the table: the newest function here came with it

template <typename Result, typename... Parameters>
class Function {
  Result (*pointer)(Parameters...);

 public:
  Function(void* const* table, int place) : pointer(reinterpret_cast<Result (*)(Parameters...)>(table[place])) {}
  Result operator()(Parameters... parameters) const { return pointer(parameters...); }
};

class Api {
  void* const* table = OrtGetApiBase()->get_api(kVersion);
  template <typename... Parameters>
  using Call = Function<Status*, Parameters...>;
  const Function<const char*, const Status*> message{table, 2};

 public:
  const Call<int, const char*, Env**> create_env{table, 3};
  const Call<Env*, const char*, const SessionOptions*, Session**> create_session{table, 7};
  const Call<Session*, const RunOptions*, const char* const*, const Value* const*, size_t, const char* const*, size_t, Value**> run{table, 9};
  const Call<SessionOptions**> create_options{table, 10};
  const Call<SessionOptions*, int> optimization{table, 23};
  const Call<SessionOptions*, int> threads{table, 24};
  const Call<const Session*, size_t*> input_count{table, 30};
  const Call<const Session*, size_t*> output_count{table, 31};
  const Call<const Session*, size_t, Allocator*, char**> input_name{table, 36};
  const Call<const Session*, size_t, Allocator*, char**> output_name{table, 37};
  const Call<const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**> tensor{table, 49};
  const Call<Value*, void**> data{table, 51};
  const Call<const Shape*, int*> element_type{table, 60};
  const Call<const Shape*, size_t*> rank{table, 61};
  const Call<const Shape*, int64_t*, size_t> sizes{table, 62};
  const Call<const Shape*, size_t*> elements{table, 64};
  const Call<const Value*, Shape**> shape{table, 65};
  const Call<int, int, MemoryInfo**> cpu_memory{table, 69};
  const Call<Allocator**> default_allocator{table, 78};
  const Function<void, Value*> release_value{table, 96};
  const Call<SessionOptions*, const char*, const char*> config{table, 130};

  // Throws the message of a failure.
  void check(Status* status) const {
    if (status != nullptr) throw std::runtime_error(message(status));
  }
};

}  // namespace ort
