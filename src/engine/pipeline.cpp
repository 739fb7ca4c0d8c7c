#include "engine/pipeline.h"

#include <algorithm>
#include <cassert>

namespace headkv {

Result<Pipeline> Pipeline::create(const Model& model) {
    Pipeline pipeline;
    Threads threads;
    for (const StageWeights& stage : model.impl().stages) {
        auto compute = Compute::create(model, stage.device, threads);
        if (!compute) return tl::unexpected(compute.error());
        pipeline.parts_.push_back({std::move(*compute), stage.first, stage.layers});
    }
    return pipeline;
}

std::size_t Pipeline::part_of(std::int64_t layer) const {
    const auto found = std::ranges::find_if(
        parts_, [&](const Part& part) { return layer >= part.first && layer < part.end(); });
    assert(found != parts_.end());
    return static_cast<std::size_t>(found - parts_.begin());
}

void Pipeline::synchronize() const {
    for (const Part& part : parts_) ggml_backend_synchronize(part.compute->backend());
}

void Pipeline::hand_over(std::size_t from, std::size_t to, ggml_tensor* source,
                         ggml_tensor* target) const {
    for (auto* tensor : {source, target}) {
        if (tensor->buffer == nullptr) ggml_backend_view_init(tensor);
    }
    ggml_backend_tensor_copy_async(compute(from).backend(), compute(to).backend(), source, target);
}

}  // namespace headkv
