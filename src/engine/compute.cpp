#include "engine/compute.h"

namespace headkv {

Result<std::unique_ptr<Compute>> Compute::create(const Model& model) {
    std::unique_ptr<Compute> result(new Compute());
    result->threads_ = model.info().threads;
    result->backend_.reset(ggml_backend_dev_init(model.impl().device, nullptr));
    if (!result->backend_) return failure("cannot start the {} backend", model.info().device);
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
    const auto status = ggml_backend_graph_compute(backend_.get(), graph);
    if (status == GGML_STATUS_SUCCESS) return {};
    return failure("{} cannot compute: {}", ggml_backend_name(backend_.get()),
                   ggml_status_to_string(status));
}

Result<void> Compute::start(ggml_cgraph* graph) const {
    const auto status = ggml_backend_graph_compute_async(backend_.get(), graph);
    if (status == GGML_STATUS_SUCCESS) return {};
    return failure("{} cannot compute: {}", ggml_backend_name(backend_.get()),
                   ggml_status_to_string(status));
}

ggml_context_ptr make_context(std::int64_t tensors) {
    const auto count = static_cast<std::size_t>(tensors);
    const auto bytes = count * ggml_tensor_overhead() + ggml_graph_overhead_custom(count, false);
    return ggml_context_ptr(ggml_init({bytes, nullptr, true}));
}

}  // namespace headkv
