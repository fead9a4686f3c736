// What a library of operators needs of onnxruntime's C API, by place as in onnxruntime_slots.h: there are no headers in the wheels.
#pragma once

#include <vector>

#include "onnxruntime_slots.h"

namespace ort {

struct Context;  // OrtKernelContext
struct Info;     // OrtKernelInfo
struct Domain;   // OrtCustomOpDomain

constexpr uint32_t kOpsVersion = 17;  // of the table and of the struct below: the newest function here came with it

enum Type { kFloat = 1, kUint8 = 2, kInt8 = 3, kInt32 = 6, kInt64 = 7, kUint4 = 21 };

struct Failure {
  Status* status;
};

class OpsApi {
  void* const* table;
  template <typename... Parameters>
  using Call = Function<Status*, Parameters...>;

 public:
  explicit OpsApi(void* const* table) : table(table) {}

  const Function<Status*, int, const char*> status{table, 0};
  const Call<const char*, Domain**> create_domain{table, 26};
  const Call<Domain*, const void*> add_to_domain{table, 27};
  const Call<SessionOptions*, Domain*> add_domain{table, 28};
  const Call<const Value*, void**> data{table, 51};
  const Call<const Shape*, int*> element_type{table, 60};
  const Call<const Shape*, size_t*> rank{table, 61};
  const Call<const Shape*, int64_t*, size_t> sizes{table, 62};
  const Call<const Value*, Shape**> shape{table, 65};
  const Call<const Context*, size_t, const Value**> input{table, 90};
  const Call<Context*, size_t, const int64_t*, size_t, Value**> output{table, 91};
  const Function<void, Shape*> release_shape{table, 99};
  const Call<const Info*, size_t, int*, const Value**> constant_input{table, 249};
  const Call<const Context*, void (*)(void*, size_t), size_t, size_t, void*> parallel_for{table, 274};

  void check(Status* failed) const {
    if (failed != nullptr) throw Failure{failed};
  }

  std::vector<int64_t> shape_of(const Value* value) const {
    Shape* shape_info = nullptr;
    check(shape(value, &shape_info));
    size_t count = 0;
    Status* failed = rank(shape_info, &count);
    std::vector<int64_t> result(count);
    if (failed == nullptr) failed = sizes(shape_info, result.data(), count);
    release_shape(shape_info);
    check(failed);
    return result;
  }

  int type_of(const Value* value) const {
    Shape* shape_info = nullptr;
    check(shape(value, &shape_info));
    int type = 0;
    Status* failed = element_type(shape_info, &type);
    release_shape(shape_info);
    check(failed);
    return type;
  }

  template <typename T>
  T* data_of(const Value* value) const {
    void* found = nullptr;
    check(data(value, &found));
    return static_cast<T*>(found);
  }
};

// OrtCustomOp of version 17; onnxruntime calls each function with the struct or with the kernel that `create` made.
struct CustomOp {
  uint32_t version;
  void* (*create_old)(const CustomOp*, const void*, const Info*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  int (*input_type)(const CustomOp*, size_t);
  size_t (*inputs)(const CustomOp*);
  int (*output_type)(const CustomOp*, size_t);
  size_t (*outputs)(const CustomOp*);
  void (*compute_old)(void*, Context*);
  void (*destroy)(void*);
  int (*input_kind)(const CustomOp*, size_t);
  int (*output_kind)(const CustomOp*, size_t);
  int (*input_memory)(const CustomOp*, size_t);
  int (*variadic[4])(const CustomOp*);
  Status* (*create)(const CustomOp*, const void*, const Info*, void**);
  Status* (*compute)(void*, Context*);
  Status* (*infer_shape)(const CustomOp*, void*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
  size_t (*may_inplace)(int**, int**);
  void (*release_inplace)(int*, int*);
  size_t (*alias_map)(int**, int**);
  void (*release_alias)(int*, int*);
};

}  // namespace ort
