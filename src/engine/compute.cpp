#include "engine/compute.h"

#include <algorithm>
#include <chrono>

namespace headkv {

Result<std::unique_ptr<Compute>> Compute::create(const Model& model) {
    std::unique_ptr<Compute> result(new Compute());
    result->threads_ = model.info().threads;
    result->backend_.reset(ggml_backend_dev_init(model.impl().device, nullptr));
    if (!result->backend_) return failure("cannot start the {} backend", model.info().device);
    result->keys_.push_back(make_context(1));
    result->anchor_ = ggml_new_tensor_1d(result->keys_[0].get(), GGML_TYPE_I32, 1);
    result->anchor_buffer_.reset(
        ggml_backend_alloc_ctx_tensors(result->keys_[0].get(), result->backend_.get()));
    if (!result->anchor_buffer_) {
        return failure("no memory is left on {}", ggml_backend_name(result->backend_.get()));
    }
    result->passing_ = result->new_key();
    if (ggml_backend_dev_type(model.impl().device) != GGML_BACKEND_DEVICE_TYPE_CPU) return result;
    // One pool for all graphs: threads that stay awake between the steps of an answer.
    auto params = ggml_threadpool_params_default(result->threads_);
    result->pool_.reset(ggml_threadpool_new(&params));
    if (!result->pool_) {
        return failure("cannot start {} threads; use fewer with --threads", result->threads_);
    }
    ggml_backend_cpu_set_n_threads(result->backend_.get(), result->threads_);
    ggml_backend_cpu_set_threadpool(result->backend_.get(), result->pool_.get());
    return result;
}

Result<void> Compute::run(ggml_cgraph* graph) const {
    return checked(ggml_backend_graph_compute(backend_.get(), graph));
}

Result<void> Compute::start(ggml_cgraph* graph) const {
    return checked(ggml_backend_graph_compute_async(backend_.get(), graph));
}

Result<void> Compute::checked(ggml_status status) const {
    if (status == GGML_STATUS_SUCCESS) return {};
    return failure("{} cannot compute: {}", ggml_backend_name(backend_.get()),
                   ggml_status_to_string(status));
}

ggml_tensor* Compute::new_key() {
    keys_.push_back(make_context(1));
    return ggml_view_1d(keys_.back().get(), anchor_, 1, 0);
}

ggml_cgraph* Compute::new_graph(ggml_context* context, std::int64_t nodes, ggml_tensor* key) const {
    auto* graph = ggml_new_graph_custom(context, static_cast<std::size_t>(nodes), false);
    ggml_build_forward_expand(graph, key);
    return graph;
}

WorkMemory::WorkMemory(ggml_backend_t backend)
    : allocator_(ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend))) {}

bool WorkMemory::place(ggml_cgraph* graph) {
    if (!allocator_ || !ggml_gallocr_alloc_graph(allocator_.get(), graph)) return false;
    bytes_ = std::max(bytes_, ggml_gallocr_get_buffer_size(allocator_.get(), 0));
    return true;
}

double now_ms() {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(now).count();
}

ggml_tensor* columns(ggml_context* context, ggml_tensor* matrix, std::int64_t first,
                     std::int64_t count) {
    return ggml_view_2d(context, matrix, matrix->ne[0], count, matrix->nb[1],
                        static_cast<std::size_t>(first) * matrix->nb[1]);
}

ggml_context_ptr make_context(std::int64_t tensors) {
    const auto count = static_cast<std::size_t>(tensors);
    const auto bytes = count * ggml_tensor_overhead() + ggml_graph_overhead_custom(count, false);
    return ggml_context_ptr(ggml_init({bytes, nullptr, true}));
}

}  // namespace headkv
