// QnTableLinear: linear layers and 1x1 convolutions whose weight stays a table. A delegate for each layer: it holds what the kernels keep
// beside the table, and the codes where the runtime has them, which in a file that is memory-mapped is the file itself.
//
// It computes what XNNPACK would with the dense weight, to the bit: the int32 sums are the same integers, and floats are rounded in its
// order.

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/core/exec_aten/util/tensor_util.h>
#include <executorch/runtime/kernel/thread_parallel_interface.h>
#include <executorch/runtime/platform/log.h>

#include <memory>
#include <vector>

#include "../../kernels/paths.h"
#include "../../kernels/quantize_rows.h"
#include "constants.h"
#include "layer_blob.h"
#include "tile_blob.h"

// Null where the application's ExecuTorch does not export its thread pool: layers then run on the thread that calls them.
namespace executorch::extension {
__attribute__((weak)) bool parallel_for(int64_t, int64_t, int64_t, runtime::FunctionRef<void(int64_t, int64_t)>);
}

namespace {

using namespace executorch::runtime;
using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::aten::Tensor;

constexpr int64_t kTilesOfAJob = 16;  // each job builds the LUTs for itself

// XNNPACK's choice.
qn::RowRule row_rule() {
#if defined(__aarch64__)
  if (qn::kNeonDot.supported()) return qn::RowRule::kKleidiAi;
#endif
  return qn::RowRule::kXnnpack;
}

class Layer {
 public:
  // `codes` holds the table.
  Layer(const qn::LayerBlob& blob, const qn::Table& table, FreeableBuffer codes) : blob_(blob), linear_(table), codes_(std::move(codes)) {}

  // Scales and bias of the rows as the file has them, 4 bytes each; the bias may be empty.
  bool take_rows(const FreeableBuffer& scale, const FreeableBuffer& bias) {
    const auto out = static_cast<size_t>(linear_.table().out);
    if (scale.size() != 4 * out || (bias.size() != 0 && bias.size() != 4 * out)) return false;
    factors_.resize(out);
    std::memcpy(factors_.data(), scale.data(), 4 * out);
    for (float& factor : factors_) {
      if (!(std::isfinite(factor) && factor > 0)) return false;
      if (!is_dynamic()) factor = blob_.x_scale * factor / blob_.y_scale;
    }
    if (bias.size() == 0) return true;
    void* to = is_dynamic() ? static_cast<void*>((floats_.resize(out), floats_.data())) : (steps_.resize(out), steps_.data());
    std::memcpy(to, bias.data(), 4 * out);
    return true;
  }

  Error compute(const Tensor& x, const Tensor& y) const {
    const ScalarType type = is_dynamic() ? ScalarType::Float : ScalarType::Char;
    const bool at_positions = blob_.kind == qn::LayerKind::kConvolution;
    const ssize_t features = at_positions ? 1 : x.dim() - 1;  // the dimension
    if (features < 0 || features >= x.dim() || x.size(features) != linear_.in() || x.scalar_type() != type || y.scalar_type() != type ||
        !is_contiguous_dim_order(x.dim_order().data(), x.dim_order().size())) {
      ET_LOG(Error, "a layer of %d inputs got a tensor of another size, dtype or order", static_cast<int>(linear_.in()));
      return Error::InvalidArgument;
    }
    std::vector<SizesType> sizes(x.sizes().begin(), x.sizes().end());
    sizes[static_cast<size_t>(features)] = static_cast<SizesType>(linear_.table().out);
    if (const Error error = resize_tensor(y, {sizes.data(), sizes.size()}); error != Error::Ok) return error;
    const int64_t rows = x.numel() / linear_.in();
    if (rows == 0) return Error::Ok;
    if (is_dynamic()) return compute_dynamic(x.const_data_ptr<float>(), rows, y.mutable_data_ptr<float>());
    const int64_t samples = at_positions ? x.size(0) : 1;
    return compute_static(x.const_data_ptr<int8_t>(), samples, rows / samples, at_positions, y.mutable_data_ptr<int8_t>());
  }

 private:
  bool is_dynamic() const { return blob_.kind == qn::LayerKind::kDynamic; }

  // Samples of so many rows each. Where the rows are positions, each feature has its values of a sample together, else each row.
  Error compute_static(const int8_t* x, int64_t samples, int64_t rows, bool at_positions, int8_t* y) const {
    const qn::Centred centred{linear_.row_sums(), blob_.x_zero, steps_.empty() ? nullptr : steps_.data()};
    const int64_t in = linear_.in(), out = linear_.table().out;
    for (int64_t n = 0; n < samples; ++n, x += rows * in, y += rows * out) {
      const qn::Output<int8_t> to = at_positions ? qn::Output<int8_t>{y, 1, rows} : qn::Output<int8_t>{y, out, 1};
      const qn::Requantize<int8_t> sink(centred, factors_.data(), true, blob_.y_zero, blob_.low, blob_.high, to);
      const auto* bytes = reinterpret_cast<const uint8_t*>(x);
      const Error error = run(at_positions ? qn::Input{bytes, rows, 1, rows, 0} : qn::Input{bytes, rows, in, 1, 0}, sink);
      if (error != Error::Ok) return error;
    }
    return Error::Ok;
  }

  Error compute_dynamic(const float* x, int64_t rows, float* y) const {
    static const qn::RowRule rule = row_rule();
    const int64_t in = linear_.in();
    const std::unique_ptr<int8_t[]> steps(new int8_t[static_cast<size_t>(rows * in)]);
    std::vector<float> scales(static_cast<size_t>(rows));
    std::vector<int32_t> zeros(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r) {
      const qn::RowGrid grid = qn::quantize_row(x + r * in, in, rule, steps.get() + r * in);
      scales[static_cast<size_t>(r)] = grid.scale, zeros[static_cast<size_t>(r)] = grid.zero;
    }
    const float* bias = floats_.empty() ? nullptr : floats_.data();
    const qn::DequantizeRows sink(rule, linear_.row_sums(), zeros.data(), scales.data(), factors_.data(), bias, y, linear_.table().out);
    return run({reinterpret_cast<const uint8_t*>(steps.get()), rows, in, 1, 0}, sink);
  }

  Error run(const qn::Input& input, const qn::Sink& sink) const {
    const int64_t tiles = linear_.tiles(), jobs = (tiles + kTilesOfAJob - 1) / kTilesOfAJob;
    if (jobs == 1 || executorch::extension::parallel_for == nullptr) {
      linear_.run(input, sink);
      return Error::Ok;
    }
    const auto work = [&](int64_t first, int64_t last) {
      linear_.run(input, first * kTilesOfAJob, std::min(last * kTilesOfAJob, tiles), sink);
    };
    return executorch::extension::parallel_for(0, jobs, 1, work) ? Error::Ok : Error::Internal;
  }

  const qn::LayerBlob blob_;  // its keys are not valid any more
  const qn::TableLinear linear_;
  const FreeableBuffer codes_;
  std::vector<float> factors_;  // of the sums: to steps of the output, or the weight's scales
  std::vector<int32_t> steps_;  // the bias of a static layer
  std::vector<float> floats_;   // of a dynamic one
};

class TableBackend final : public BackendInterface {
 public:
  bool is_available() const override { return true; }

  Result<DelegateHandle*> init(BackendInitContext& context, FreeableBuffer* payload, ArrayRef<CompileSpec>) const override {
    const auto blob = qn::LayerBlob::parse(static_cast<const uint8_t*>(payload->data()), payload->size());
    if (!blob || context.get_named_data_map() == nullptr) {
      ET_LOG(Error, "a delegate of the program is a damaged layer blob");
      return Error::DelegateInvalidCompatibility;
    }
    const NamedDataMap& stored = *context.get_named_data_map();
    auto weight = qn::find_constant(stored, blob->weight);
    auto scale = qn::find_constant(stored, blob->scale);
    auto bias = blob->bias.empty() ? Result<FreeableBuffer>(FreeableBuffer()) : qn::find_constant(stored, blob->bias);
    if (!weight.ok() || !scale.ok() || !bias.ok()) {
      ET_LOG(Error, "a constant of a layer that keeps its table is missing");
      return Error::InvalidExternalData;
    }
    const auto table = qn::TileBlob::parse(static_cast<const uint8_t*>(weight->data()), weight->size());
    if (!table) return damaged(blob->weight);
    auto layer = std::make_unique<Layer>(*blob, *table, std::move(*weight));
    if (!layer->take_rows(*scale, *bias)) return damaged(blob->weight);
    payload->Free();
    return layer.release();
  }

  Error execute(BackendExecutionContext&, DelegateHandle* handle, Span<EValue*> args) const override {
    if (args.size() != 2 || !args[0]->isTensor() || !args[1]->isTensor()) return Error::InvalidArgument;
    return static_cast<const Layer*>(handle)->compute(args[0]->toTensor(), args[1]->toTensor());
  }

  void destroy(DelegateHandle* handle) const override { delete static_cast<Layer*>(handle); }

 private:
  static Error damaged(std::string_view key) {
    ET_LOG(Error, "constant %.*s is a damaged tile blob, or has other scales or biases than rows", static_cast<int>(key.size()),
           key.data());
    return Error::InvalidExternalData;
  }
};

TableBackend backend;
[[maybe_unused]] const Error registered = register_backend({"QnTableLinear", &backend});

}  // namespace
