// How far attention moves each head away from what it had at the token itself.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <vector>

#include "engine/attention_ops.h"

namespace headkv {

// Sums, over the tokens of a text but its first, cos(v, o) of each query head: v is the value row
// of its KV head at the token, o what the head's attention makes of all rows up to there. A head
// that looks at nothing but its own token has 1. Importance of heads after BaKlaVa (2502.13176).
class ValueCosines {
public:
    explicit ValueCosines(const AttentionShape& shape);

    // attended [dim_v * query_heads, chunk], v [dim_v, kv_heads, chunk] -> a node to be computed
    // before the next call. `position`: of the chunk's first token.
    ggml_tensor* add(ggml_context* context, ggml_tensor* attended, ggml_tensor* v,
                     std::int64_t layer, std::int64_t position);

    // Means over the tokens added, [layers][query_heads], in [-1, 1]; 0 where there were none.
    std::vector<double> means() const;

private:
    static void compute(ggml_tensor* out, int thread, int threads, void* data);

    AttentionShape shape_;
    std::int64_t layer_ = 0, position_ = 0;
    std::atomic<std::int64_t> next_{0};
    std::vector<double> sums_;          // [layers][query_heads]
    std::vector<std::int64_t> counts_;  // [layers] tokens
};

}  // namespace headkv
