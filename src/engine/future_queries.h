// The queries that a layer may expect behind a prompt, for scores that look ahead: mean and
// covariance of the prompt's own, turned to the positions that come next.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "engine/attention_ops.h"
#include "engine/graph.h"
#include "headkv/error.h"

namespace headkv {

class FutureQueries {
public:
    explicit FutureQueries(const AttentionShape& shape);

    // The mean of the turns that RoPE gives a query at the kFuturePositions positions from
    // `tokens` on: asked of the model's own RoPE, so that its pairs, its partial dimensions and its
    // scaling are right. `run` computes a graph. Error (failure): out of memory.
    Result<void> prepare(const Hyper& hyper, const Weights& weights, std::int64_t tokens,
                         const std::function<Result<void>(ggml_cgraph*)>& run);

    // A node that adds the queries of a chunk before RoPE, q [dim_k, query_heads, chunk], whose
    // first token is at `position`; the first kSinkQueries of a prompt are left out. Sums are in
    // double, token by token: chunks may be cut anywhere.
    ggml_tensor* add(ggml_context* context, ggml_tensor* q, std::int64_t position);

    // Of the layer that has been added: [query_heads][dim_k], [query_heads][dim_k][dim_k].
    struct Moments {
        std::vector<float> mean, covariance;
    };
    Moments moments() const;
    void clear();  // begins the next layer

private:
    static void compute(ggml_tensor* out, int thread, int threads, void* data);

    AttentionShape shape_;
    std::vector<double> turn_;  // [dim_k][dim_k]
    // Of queries less the first one that counted, so that large means cost no digits.
    std::vector<float> origin_;     // [query_heads][dim_k]
    std::vector<double> sums_;      // [query_heads][dim_k]
    std::vector<double> products_;  // [query_heads][dim_k][dim_k], from the diagonal on
    std::int64_t count_ = 0;
    std::int64_t position_ = 0;  // of the chunk under way
    std::atomic<std::int64_t> next_{0};
};

}  // namespace headkv
