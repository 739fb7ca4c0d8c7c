// The devices that compute a model: front to back, each has consecutive layers. The first one
// embeds the tokens, the last one makes the logits; hidden states go from one to the next.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/compute.h"
#include "headkv/error.h"

namespace headkv {

class Pipeline {
public:
    struct Part {
        std::unique_ptr<Compute> compute;
        std::int64_t first = 0, layers = 0;
        std::int64_t end() const { return first + layers; }
    };

    // One part a stage of the model. Error (failure): a backend cannot be started.
    static Result<Pipeline> create(const Model& model);

    std::span<const Part> parts() const { return parts_; }
    std::size_t size() const { return parts_.size(); }
    const Part& operator[](std::size_t index) const { return parts_[index]; }
    Compute& compute(std::size_t index) const { return *parts_[index].compute; }
    std::size_t part_of(std::int64_t layer) const;
    bool is_last(std::size_t index) const { return index + 1 == parts_.size(); }
    void synchronize() const;  // waits for all of them

    // Queues a copy of a tensor of part `from` into one of the same shape and strides of part `to`,
    // behind all that is queued on `from`; what is queued on `to` from now on sees it. Nothing that
    // is queued on `to` may still use the target.
    void hand_over(std::size_t from, std::size_t to, ggml_tensor* source,
                   ggml_tensor* target) const;

private:
    std::vector<Part> parts_;
};

}  // namespace headkv
