// QnXnnpackBackend: ExecuTorch's XnnpackBackend, with constants that may be stored as tables.
//
// The delegate's payload is XNNPACK's own. XNNPACK asks a NamedDataMap for its constants while it packs them; this backend puts a map
// in between that expands table blobs and passes everything else on. After init nothing of this file is in the way.

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/platform/log.h>
#include <sys/mman.h>

#include "table_blob.h"

namespace {

using namespace executorch::runtime;

class ExpandingMap final : public NamedDataMap {
 public:
  explicit ExpandingMap(const NamedDataMap& stored) : stored_(stored) {}

  Result<FreeableBuffer> get_data(std::string_view key) const override {
    auto stored = stored_.get_data(key);
    if (!stored.ok()) return stored;
    const auto* data = static_cast<const uint8_t*>(stored->data());
    if (!qn::TableBlob::has_magic(data, stored->size())) return stored;

    const auto blob = qn::TableBlob::parse(data, stored->size());
    if (!blob) {
      ET_LOG(Error, "constant %.*s is a damaged table blob", static_cast<int>(key.size()), key.data());
      return Error::InvalidExternalData;
    }
    // A mapping of its own, not malloc: the heap would keep these blocks after XNNPACK has packed them.
    void* dense = mmap(nullptr, blob->dense_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (dense == MAP_FAILED) return Error::MemoryAllocationFailed;
    blob->expand(dense);
    return FreeableBuffer(dense, blob->dense_bytes(), [](void*, void* mapped, size_t size) { munmap(mapped, size); });
  }

  Error load_data_into(std::string_view key, void* buffer, size_t size) const override {
    auto data = get_data(key);
    if (!data.ok()) return data.error();
    if (size > data->size()) return Error::InvalidArgument;
    std::memcpy(buffer, data->data(), size);
    return Error::Ok;
  }

  Result<const TensorLayout> get_tensor_layout(std::string_view key) const override { return stored_.get_tensor_layout(key); }
  Result<uint32_t> get_num_keys() const override { return stored_.get_num_keys(); }
  Result<const char*> get_key(uint32_t index) const override { return stored_.get_key(index); }

 private:
  const NamedDataMap& stored_;
};

class QnXnnpackBackend final : public BackendInterface {
 public:
  bool is_available() const override { return xnnpack() != nullptr && xnnpack()->is_available(); }

  Result<DelegateHandle*> init(BackendInitContext& context, FreeableBuffer* payload, ArrayRef<CompileSpec> specs) const override {
    if (context.get_named_data_map() == nullptr) return xnnpack()->init(context, payload, specs);
    const ExpandingMap constants(*context.get_named_data_map());  // XNNPACK reads constants during init only
    BackendInitContext expanding(
        context.get_runtime_allocator(), context.event_tracer(), context.get_method_name(), &constants, context.runtime_specs());
    return xnnpack()->init(expanding, payload, specs);
  }

  Error execute(BackendExecutionContext& context, DelegateHandle* handle, Span<EValue*> args) const override {
    return xnnpack()->execute(context, handle, args);
  }

  void destroy(DelegateHandle* handle) const override { xnnpack()->destroy(handle); }

  Error set_option(BackendOptionContext& context, const Span<BackendOption>& options) override {
    return xnnpack()->set_option(context, options);
  }

  Error get_option(BackendOptionContext& context, Span<BackendOption>& options) override {
    return xnnpack()->get_option(context, options);
  }

 private:
  // Looked up each time (a dozen string compares): XnnpackBackend may register after this library is loaded.
  static BackendInterface* xnnpack() { return get_backend_class("XnnpackBackend"); }
};

QnXnnpackBackend backend;
[[maybe_unused]] const Error registered = register_backend({"QnXnnpackBackend", &backend});

}  // namespace
