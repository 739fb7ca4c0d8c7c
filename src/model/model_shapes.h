// Sizes of usual models, by name: what a model costs follows from these, not from its weights.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "headkv/error.h"

namespace headkv {

// Biases of q, k and v, and norms of q and k, follow from the architecture (model/architecture.h).
// The texts belong to others: those of model_shapes() and architectures() live on.
struct ModelShape {
    std::string_view name, architecture;
    std::int64_t layers = 0, embedding = 0, query_heads = 0, kv_heads = 0, head_dim = 0;
    std::int64_t feed_forward = 0, vocabulary = 0, context = 0;
    float rope_base = 10000;
    float norm_epsilon = 1e-5F;
    bool tied = false;  // no output.weight: the embedding is used again
};

std::span<const ModelShape> model_shapes();

// Every count is possible, the heads share evenly and RoPE can pair the dimensions of a head.
// Errors (bad_input): the first that is wrong.
Result<void> check_shape(const ModelShape& shape);

}  // namespace headkv
