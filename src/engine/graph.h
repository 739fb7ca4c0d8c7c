// The parts of a decoder layer as ggml nodes; prefill and decode put their attention between them.
#pragma once

#include <ggml.h>

#include <initializer_list>

#include "engine/linear_op.h"
#include "model/model_impl.h"

namespace headkv {

struct GraphBuilder {
    ggml_context* context;
    const Hyper& hyper;
    const Weights& weights;
    LinearOps* several = nullptr;  // products with several tokens, in the CPU's own engine

    // w x for columns of x [in, tokens] -> [out, tokens]. The one place that decides how a matrix
    // is multiplied.
    ggml_tensor* linear(const Matrix& w, ggml_tensor* x) const;
    // Whether products with the parts of `whole` are one product: not in the CPU's own engine,
    // which takes one matrix at a time.
    bool joined(const Matrix& whole) const { return several == nullptr && whole; }
    // f32 rows of a product of a joined matrix, from byte `above` on, which moves behind them.
    ggml_tensor* part_of(ggml_tensor* all, std::int64_t rows, std::size_t& above) const;
    ggml_tensor* norm(ggml_tensor* x, ggml_tensor* weight) const;
    // The same as the input of products with these matrices alone, in whatever type they take.
    ggml_tensor* norm_for(std::initializer_list<const Matrix*> products, ggml_tensor* x,
                          ggml_tensor* weight) const;
    bool bf16_inputs(std::initializer_list<const Matrix*> products, std::int64_t columns) const;

    struct Projections {
        ggml_tensor* q;        // [head_dim_k, query_heads, tokens], after RoPE
        ggml_tensor* k;        // [head_dim_k, kv_heads, tokens], after RoPE
        ggml_tensor* v;        // [head_dim_v, kv_heads, tokens]
        ggml_tensor* plain_q;  // as q, before RoPE
    };
    // x [embedding, tokens]: hidden states before the layer; positions i32 [tokens]. Without `rows`
    // k and v are null: the layer reads another's.
    Projections project(const LayerWeights& layer, ggml_tensor* x, ggml_tensor* positions,
                        bool rows = true) const;

    // RoPE of a layer. x [head_dim_k, heads, tokens], positions i32 [tokens].
    ggml_tensor* rotate(const LayerWeights& layer, ggml_tensor* x, ggml_tensor* positions) const;

    // Output projection, feed-forward and both residuals, added into x in place.
    // attention [query_heads * head_dim_v, tokens].
    ggml_tensor* finish_layer(const LayerWeights& layer, ggml_tensor* x,
                              ggml_tensor* attention) const;

    ggml_tensor* embed(ggml_tensor* tokens) const;  // i32 [tokens] -> [embedding, tokens]
    ggml_tensor* logits(ggml_tensor* x) const;      // [embedding, tokens] -> [vocabulary, tokens]
};

}  // namespace headkv
