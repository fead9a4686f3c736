// QnXnnpackBackend: ExecuTorch's XnnpackBackend, for delegates whose graph may be compressed and whose constants may be tables.
//
// XNNPACK gets its own graph, inflated. It asks a NamedDataMap for its constants while it packs them; this backend puts a map in between
// that knows the short keys, expands table blobs and passes everything else on. After init nothing of this file is in the way.

#include <executorch/runtime/backend/interface.h>
#include <executorch/runtime/platform/log.h>
#include <sys/mman.h>

#include "constants.h"
#include "graph_blob.h"
#include "table_blob.h"

namespace {

using namespace executorch::runtime;

// A mapping of its own, not malloc: the heap would keep these blocks after XNNPACK has packed them.
Result<FreeableBuffer> allocate(size_t size) {
  void* mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return Error::MemoryAllocationFailed;
  return FreeableBuffer(mapped, size, [](void*, void* data, size_t bytes) { munmap(data, bytes); });
}

void* writable(const FreeableBuffer& buffer) { return const_cast<void*>(buffer.data()); }

class ExpandingMap final : public NamedDataMap {
 public:
  explicit ExpandingMap(const NamedDataMap& stored) : stored_(stored) {}

  Result<FreeableBuffer> get_data(std::string_view key) const override {
    auto stored = qn::find_constant(stored_, key);
    if (!stored.ok()) return stored;
    const auto* data = static_cast<const uint8_t*>(stored->data());
    if (!qn::TableBlob::has_magic(data, stored->size())) return stored;

    const auto blob = qn::TableBlob::parse(data, stored->size());
    if (!blob) {
      ET_LOG(Error, "constant %.*s is a damaged table blob", static_cast<int>(key.size()), key.data());
      return Error::InvalidExternalData;
    }
    auto dense = allocate(blob->dense_bytes());
    if (dense.ok()) blob->expand(writable(*dense));
    return dense;
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
    const auto* data = static_cast<const uint8_t*>(payload->data());
    if (!qn::GraphBlob::has_magic(data, payload->size())) return init_xnnpack(context, payload, specs);

    auto graph = inflate(data, payload->size());
    if (!graph.ok()) return graph.error();
    payload->Free();  // as XNNPACK does with the graph
    return init_xnnpack(context, &*graph, specs);
  }

  Error execute(BackendExecutionContext& context, DelegateHandle* handle, Span<EValue*> args) const override {
    return xnnpack()->execute(context, handle, args);
  }

  void destroy(DelegateHandle* handle) const override { xnnpack()->destroy(handle); }

  Error set_option(BackendOptionContext& context, const Span<BackendOption>& options) override {
    return xnnpack()->set_option(context, options);
  }

  Error get_option(BackendOptionContext& context, Span<BackendOption>& options) override { return xnnpack()->get_option(context, options); }

 private:
  static Result<FreeableBuffer> inflate(const uint8_t* data, size_t size) {
    if (const auto blob = qn::GraphBlob::parse(data, size)) {
      auto graph = allocate(blob->graph_bytes());
      if (!graph.ok() || blob->inflate(writable(*graph))) return graph;
    }
    ET_LOG(Error, "a delegate of the program is a damaged graph blob");
    return Error::DelegateInvalidCompatibility;
  }

  static Result<DelegateHandle*> init_xnnpack(BackendInitContext& context, FreeableBuffer* graph, ArrayRef<CompileSpec> specs) {
    if (context.get_named_data_map() == nullptr) return xnnpack()->init(context, graph, specs);
    const ExpandingMap constants(*context.get_named_data_map());  // XNNPACK reads constants during init only
    BackendInitContext expanding = with_constants(context, &constants, 0);
    return xnnpack()->init(expanding, graph, specs);
  }

  // A context that differs in its constants only. Releases of ExecuTorch before 1.3 have no runtime specs to pass on.
  template <class Context>
  static auto with_constants(Context& context, const NamedDataMap* constants, int)
      -> decltype(Context(nullptr, nullptr, nullptr, constants, context.runtime_specs())) {
    return Context(context.get_runtime_allocator(), context.event_tracer(), context.get_method_name(), constants, context.runtime_specs());
  }
  template <class Context>
  static Context with_constants(Context& context, const NamedDataMap* constants, long) {
    return Context(context.get_runtime_allocator(), context.event_tracer(), context.get_method_name(), constants);
  }

  // Looked up each time (a dozen string compares): XnnpackBackend may register after this library is loaded.
  static BackendInterface* xnnpack() { return get_backend_class("XnnpackBackend"); }
};

QnXnnpackBackend backend;
[[maybe_unused]] const Error registered = register_backend({"QnXnnpackBackend", &backend});

}  // namespace
