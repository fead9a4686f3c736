// libqn_onnx_ops.so: the operators of the domain qn_deploy, whose tables stay tables. Without this library onnxruntime takes the functions
// of the same names that a file carries (function.py), which mean the same, and expands the tables when it loads the file.
//
// Inputs, in the order of Input below:
//   TableLinear, TableMatMul, TableConv   static: uint8 activations in and out; a convolution of 1x1, [N, C, H, W]
//   DynamicTableLinear                    uint8 activations in, with their scale and zero point at run time; float out
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>

#include "../../kernels/output.h"
#include "custom_ops.h"

namespace {

constexpr int64_t kTilesOfAJob = 16;  // each job builds the LUTs for itself

const ort::OpsApi* api = nullptr;

enum Input : size_t {
  kX,
  kXScale,
  kXZero,
  kCodes,
  kCentroids,
  kOffsets,
  kSize,
  kWScale,
  kBias,
  kDynamicInputs,
  kWZero = 9,
  kYScale,
  kYZero,
  kStaticInputs
};

struct Operator : ort::CustomOp {
  const char* title;
  bool dynamic, convolution;
  bool small;  // at most 16 centroids: codes are uint4, else uint8
};

ort::Status* refusal(const std::string& message) { return api->status(2, ("qn_deploy: " + message).c_str()); }  // ORT_INVALID_ARGUMENT

class Layer {
 public:
  Layer(const Operator& op, const ort::Info* info) : op_(op) {
    const ort::Value* codes = constant(info, kCodes, "codes");
    const ort::Value* centroids = constant(info, kCentroids, "centroids");
    const int64_t* size = api->data_of<int64_t>(checked(constant(info, kSize, "size"), {2}, "size"));
    const std::vector<int64_t> shape = api->shape_of(codes), entries = api->shape_of(centroids);
    if (entries.size() != 2 || entries[0] < 1 || entries[1] < 1) throw std::invalid_argument("centroids must be [books * size, d]");
    qn::Table table{};
    table.out = size[0], table.columns = size[1], table.d = entries[1];
    table.codes = api->data_of<uint8_t>(codes), table.centroids = api->data_of<int8_t>(centroids);
    table.centroid_bytes = static_cast<size_t>(entries[0] * entries[1]);
    // The offset of the last column is that of the last codebook: (books - 1) * size.
    const ort::Value* offsets = constant(info, kOffsets, "offsets");
    const std::vector<int64_t> columns = api->shape_of(offsets);
    if (columns.size() != 1 || columns[0] != table.columns) throw std::invalid_argument("there must be an offset for each column of codes");
    const int32_t* at = api->data_of<int32_t>(offsets);
    table.size = entries[0] - at[columns[0] - 1];
    table.books = table.size > 0 ? entries[0] / table.size : 0;
    table.code_bytes = 1;
    for (const int64_t each : shape) table.code_bytes *= static_cast<size_t>(each);
    const bool packed = api->type_of(codes) == ort::kUint4;
    if (packed) table.code_bytes /= 2;
    if (const char* why = qn::problem(table)) throw std::invalid_argument(why);
    if (packed != (table.size <= qn::kSmall)) throw std::invalid_argument("codes into at most 16 centroids must be uint4, others uint8");
    for (int64_t i = 0; i < table.columns; ++i) {
      if (at[i] != i * table.books / table.columns * table.size)
        throw std::invalid_argument("the offsets are not those of equal codebooks");
    }
    linear_ = std::make_unique<qn::TableLinear>(table);
    const ort::Value* w_scale = constant(info, kWScale, "weight's scale");
    by_row_ = count(w_scale) > 1;
    w_scale_ = api->data_of<float>(by_row_ ? checked(w_scale, {table.out}, "weight's scale") : w_scale);
    bias_ = api->data_of<float>(checked(constant(info, kBias, "bias"), {table.out}, "bias"));
    if (!op.dynamic) prepare_static(info);
  }

  void compute(ort::Context* context) const {
    const ort::Value* x = nullptr;
    api->check(api->input(context, kX, &x));
    std::vector<int64_t> shape = api->shape_of(x);
    const int64_t channels = op_.convolution ? 1 : static_cast<int64_t>(shape.size()) - 1;
    if (shape.size() < (op_.convolution ? 4u : 1u) || shape[static_cast<size_t>(channels)] != linear_->in()) {
      throw std::invalid_argument("the input must have " + std::to_string(linear_->in()) + " channels");
    }
    int64_t before = 1, after = 1;  // of the channels: the images of a convolution and their pixels, or the rows of a linear layer and 1
    for (int64_t i = 0; i < channels; ++i) before *= shape[static_cast<size_t>(i)];
    for (size_t i = static_cast<size_t>(channels) + 1; i < shape.size(); ++i) after *= shape[i];
    shape[static_cast<size_t>(channels)] = linear_->table().out;
    ort::Value* y = nullptr;
    api->check(api->output(context, 0, shape.data(), shape.size(), &y));
    const uint8_t* from = api->data_of<uint8_t>(x);
    if (before == 0 || after == 0) return;
    if (op_.dynamic) {
      float x_scale = 0;
      int32_t x_zero = 0;
      read_input(context, x_scale, x_zero);
      const qn::Dequantize sink({linear_->row_sums(), x_zero - 128, nullptr}, x_scale, w_scale_, by_row_, bias_,
                                {api->data_of<float>(y), linear_->table().out, 1});
      run(context, {from, before, linear_->in(), 1, 0x80}, sink);
    } else if (op_.convolution) {
      for (int64_t image = 0; image < before; ++image) {
        uint8_t* to = api->data_of<uint8_t>(y) + image * linear_->table().out * after;
        run(context, {from + image * linear_->in() * after, after, 1, after, 0x80}, requantize({to, 1, after}));
      }
    } else {
      run(context, {from, before, linear_->in(), 1, 0x80}, requantize({api->data_of<uint8_t>(y), linear_->table().out, 1}));
    }
  }

 private:
  static const ort::Value* constant(const ort::Info* info, size_t index, const std::string& name) {
    int is_constant = 0;
    const ort::Value* value = nullptr;
    api->check(api->constant_input(info, index, &is_constant, &value));
    if (!is_constant || value == nullptr) throw std::invalid_argument("the " + name + " must be constant");
    return value;
  }

  static int64_t count(const ort::Value* value) {
    int64_t result = 1;
    for (const int64_t each : api->shape_of(value)) result *= each;
    return result;
  }

  static const ort::Value* checked(const ort::Value* value, const std::vector<int64_t>& shape, const std::string& name) {
    if (api->shape_of(value) != shape) throw std::invalid_argument("the " + name + " has another shape than the codes ask for");
    return value;
  }

  template <typename T>
  static T scalar(const ort::Value* value, const std::string& name) {
    if (count(value) != 1) throw std::invalid_argument("the " + name + " must be one number");
    return *api->data_of<T>(value);
  }

  // As onnxruntime quantizes the bias, and as it requantizes: each factor is rounded to float32 before the next.
  void prepare_static(const ort::Info* info) {
    const float x_scale = scalar<float>(constant(info, kXScale, "input's scale"), "input's scale");
    const float y_scale = scalar<float>(constant(info, kYScale, "output's scale"), "output's scale");
    x_zero_ = scalar<uint8_t>(constant(info, kXZero, "input's zero point"), "input's zero point") - 128;
    y_zero_ = scalar<uint8_t>(constant(info, kYZero, "output's zero point"), "output's zero point");
    const int64_t out = linear_->table().out;
    for (int64_t o = 0; o < out; ++o) {
      const float scale = x_scale * w_scale_[by_row_ ? o : 0], rounded = std::nearbyint(bias_[o] / scale);
      const bool fits = rounded > -2147483648.0f && rounded < 2147483648.0f;
      steps_.push_back(fits ? static_cast<int32_t>(rounded) : rounded > 0 ? INT32_MAX : INT32_MIN);
      if (by_row_ || o == 0) factors_.push_back(scale / y_scale);
    }
  }

  void read_input(ort::Context* context, float& scale, int32_t& zero) const {
    const ort::Value *scale_value = nullptr, *zero_value = nullptr;
    api->check(api->input(context, kXScale, &scale_value));
    api->check(api->input(context, kXZero, &zero_value));
    scale = scalar<float>(scale_value, "input's scale"), zero = scalar<uint8_t>(zero_value, "input's zero point");
  }

  qn::Requantize<uint8_t> requantize(qn::Output<uint8_t> to) const {
    return {{linear_->row_sums(), x_zero_, steps_.data()}, factors_.data(), by_row_, y_zero_, 0, 255, to};
  }

  void run(ort::Context* context, const qn::Input& x, const qn::Sink& sink) const {
    struct Job {
      const qn::TableLinear& linear;
      const qn::Input& x;
      const qn::Sink& sink;
      int64_t step;
    } job{*linear_, x, sink, kTilesOfAJob};
    const int64_t parts = (linear_->tiles() + job.step - 1) / job.step;
    const auto work = [](void* data, size_t part) {
      const Job& job = *static_cast<Job*>(data);
      const int64_t first = static_cast<int64_t>(part) * job.step;
      job.linear.run(job.x, first, std::min(first + job.step, job.linear.tiles()), job.sink);
    };
    if (parts == 1) {
      work(&job, 0);
    } else {
      api->check(api->parallel_for(context, work, static_cast<size_t>(parts), 0, &job));
    }
  }

  const Operator& op_;
  std::unique_ptr<qn::TableLinear> linear_;
  bool by_row_ = false;
  const float *w_scale_ = nullptr, *bias_ = nullptr;
  int32_t x_zero_ = 0, y_zero_ = 0;
  std::vector<int32_t> steps_;  // the bias of a static layer
  std::vector<float> factors_;  // of its sums
};

template <typename Body>
ort::Status* guarded(const Body& body) {
  try {
    body();
    return nullptr;
  } catch (const ort::Failure& failure) {
    return failure.status;
  } catch (const std::exception& error) {
    return refusal(error.what());
  }
}

const Operator& as_operator(const ort::CustomOp* op) { return *static_cast<const Operator*>(op); }

int input_type(const ort::CustomOp* self, size_t index) {
  if (index == kCodes) return as_operator(self).small ? ort::kUint4 : ort::kUint8;
  static const int types[kStaticInputs] = {ort::kUint8, ort::kFloat, ort::kUint8, ort::kUint8, ort::kInt8,  ort::kInt32,
                                           ort::kInt64, ort::kFloat, ort::kFloat, ort::kInt8,  ort::kFloat, ort::kUint8};
  return types[index];
}

Operator make(const char* title, bool dynamic, bool convolution, bool small) {
  Operator op{};
  op.title = title, op.dynamic = dynamic, op.convolution = convolution, op.small = small;
  op.version = ort::kOpsVersion;
  op.name = [](const ort::CustomOp* self) { return as_operator(self).title; };
  op.provider = [](const ort::CustomOp*) -> const char* { return nullptr; };
  op.input_type = input_type;
  op.inputs = [](const ort::CustomOp* self) -> size_t { return as_operator(self).dynamic ? kDynamicInputs : kStaticInputs; };
  op.output_type = [](const ort::CustomOp* self, size_t) -> int { return as_operator(self).dynamic ? ort::kFloat : ort::kUint8; };
  op.outputs = [](const ort::CustomOp*) -> size_t { return 1; };
  op.destroy = [](void* layer) { delete static_cast<Layer*>(layer); };
  op.input_kind = op.output_kind = op.input_memory = [](const ort::CustomOp*, size_t) { return 0; };  // required; in the processor's memory
  for (auto& each : op.variadic) each = [](const ort::CustomOp*) { return 1; };
  op.create = [](const ort::CustomOp* self, const void*, const ort::Info* info, void** made) {
    return guarded([&] { *made = new Layer(as_operator(self), info); });
  };
  op.compute = [](void* layer, ort::Context* context) { return guarded([&] { static_cast<Layer*>(layer)->compute(context); }); };
  op.start_version = [](const ort::CustomOp*) { return 1; };
  op.end_version = [](const ort::CustomOp*) { return INT32_MAX; };
  return op;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) ort::Status* RegisterCustomOps(ort::SessionOptions* options, const OrtApiBase* base) {
  void* const* functions = base->get_api(ort::kOpsVersion);
  if (functions == nullptr) {
    return ort::Function<ort::Status*, int, const char*>(base->get_api(1), 0)(2, "qn_deploy: the operators need onnxruntime 1.17 or newer");
  }
  static const ort::OpsApi table(functions);
  api = &table;
  return guarded([&] {
    // Each twice, for either type of codes: in onnxruntime 1.29 an input of any type is none of 4 bits.
    static const Operator operators[] = {
        make("TableLinear", false, false, true),       make("TableLinear", false, false, false),
        make("TableMatMul", false, false, true),       make("TableMatMul", false, false, false),
        make("TableConv", false, true, true),          make("TableConv", false, true, false),
        make("DynamicTableLinear", true, false, true), make("DynamicTableLinear", true, false, false),
    };
    ort::Domain* domain = nullptr;  // the sessions that use it live as long as they like: it is never released
    api->check(api->create_domain("qn_deploy", &domain));
    for (const Operator& op : operators) api->check(api->add_to_domain(domain, static_cast<const ort::CustomOp*>(&op)));
    api->check(api->add_domain(options, domain));
  });
}
