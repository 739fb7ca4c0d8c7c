#include "engine/graph.h"

#include <algorithm>

namespace headkv {

ggml_tensor* GraphBuilder::linear(const Matrix& w, ggml_tensor* x) const {
    if (several != nullptr && several->pays(w, x->ne[1])) {
        return several->multiply(context, w, x);
    }
    return ggml_mul_mat(context, w.tensor, x);
}

ggml_tensor* GraphBuilder::norm(ggml_tensor* x, ggml_tensor* weight) const {
    return ggml_mul(context, ggml_rms_norm(context, x, hyper.norm_epsilon), weight);
}

bool GraphBuilder::bf16_inputs(std::initializer_list<const Matrix*> products,
                               std::int64_t columns) const {
    return several != nullptr &&
           std::all_of(products.begin(), products.end(),
                       [&](const Matrix* w) { return several->bf16(*w, columns); });
}

ggml_tensor* GraphBuilder::norm_for(std::initializer_list<const Matrix*> products, ggml_tensor* x,
                                    ggml_tensor* weight) const {
    return bf16_inputs(products, x->ne[1]) ? several->norm(context, x, weight, hyper.norm_epsilon)
                                           : norm(x, weight);
}

GraphBuilder::Projections GraphBuilder::project(const LayerWeights& layer, ggml_tensor* x,
                                                ggml_tensor* positions, bool rows) const {
    const auto tokens = x->ne[1];
    const bool latent = hyper.traits->latent;
    auto* normed = !rows    ? norm_for({&layer.wq}, x, layer.attention_norm)
                   : latent ? norm_for({&layer.wq, &layer.wk}, x, layer.attention_norm)
                            : norm_for({&layer.wq, &layer.wk, &layer.wv}, x, layer.attention_norm);
    auto* all = rows && joined(layer.qkv) ? linear(layer.qkv, normed) : nullptr;
    std::size_t above = 0;
    const auto heads = [&](const Matrix& w, ggml_tensor* bias, std::int64_t dim,
                           std::int64_t count) {
        auto* y = all != nullptr ? part_of(all, w.out, above) : linear(w, normed);
        if (bias != nullptr) y = ggml_add(context, y, bias);
        const auto row = static_cast<std::size_t>(dim) * sizeof(float);
        return ggml_view_3d(context, y, dim, count, tokens, row, y->nb[1], 0);
    };
    const auto& shape = hyper.shape;
    // [head_dim_v, kv_heads, tokens] of keys: the part that RoPE leaves as it is
    const auto tail = [&](ggml_tensor* k) {
        const auto offset =
            static_cast<std::size_t>(hyper.head_dim_k - hyper.head_dim_v) * k->nb[0];
        return ggml_cont(context, ggml_view_3d(context, k, hyper.head_dim_v, shape.kv_heads, tokens,
                                               k->nb[1], k->nb[2], offset));
    };
    auto* q = heads(layer.wq, layer.bq, hyper.head_dim_k, shape.query_heads);
    if (!rows) {
        if (layer.q_norm != nullptr) q = norm(q, layer.q_norm);
        return {rotate(layer, q, positions), nullptr, nullptr, q};
    }
    auto* k = heads(layer.wk, layer.bk, hyper.head_dim_k, shape.kv_heads);
    auto* v = latent ? tail(k) : heads(layer.wv, layer.bv, hyper.head_dim_v, shape.kv_heads);
    if (layer.q_norm != nullptr) q = norm(q, layer.q_norm);
    if (layer.k_norm != nullptr) k = norm(k, layer.k_norm);
    if (!ggml_is_contiguous(v)) v = ggml_cont(context, v);
    return {rotate(layer, q, positions), rotate(layer, k, positions), v, q};
}

ggml_tensor* GraphBuilder::part_of(ggml_tensor* all, std::int64_t rows, std::size_t& above) const {
    auto* part = ggml_view_2d(context, all, rows, all->ne[1], all->nb[1], above);
    above += static_cast<std::size_t>(rows) * sizeof(float);
    return part;
}

ggml_tensor* GraphBuilder::rotate(const LayerWeights& layer, ggml_tensor* x,
                                  ggml_tensor* positions) const {
    const auto& rope = hyper.rope;
    const auto mode =
        hyper.traits->rope == RopeKind::halves ? GGML_ROPE_TYPE_NEOX : GGML_ROPE_TYPE_NORMAL;
    return ggml_rope_ext(context, x, positions, layer.rope_factors,
                         static_cast<int>(rope.dimensions), mode,
                         static_cast<int>(rope.original_context), rope.base, rope.frequency_scale,
                         rope.yarn_mix, rope.attention_factor, rope.beta_fast, rope.beta_slow);
}

ggml_tensor* GraphBuilder::finish_layer(const LayerWeights& layer, ggml_tensor* x,
                                        ggml_tensor* attention) const {
    x = ggml_add_inplace(context, x, linear(layer.wo, attention));
    auto* normed = norm_for({&layer.gate, &layer.up}, x, layer.ffn_norm);
    if (joined(layer.gate_up)) {
        auto* gated = ggml_swiglu(context, linear(layer.gate_up, normed));
        return ggml_add_inplace(context, x, linear(layer.down, gated));
    }
    auto* gate = linear(layer.gate, normed);
    auto* up = linear(layer.up, normed);
    auto* gated = bf16_inputs({&layer.down}, x->ne[1]) ? several->swiglu(context, gate, up)
                                                       : ggml_swiglu_split(context, gate, up);
    return ggml_add_inplace(context, x, linear(layer.down, gated));
}

ggml_tensor* GraphBuilder::embed(ggml_tensor* tokens) const {
    return ggml_get_rows(context, weights.token_embedding.tensor, tokens);
}

ggml_tensor* GraphBuilder::logits(ggml_tensor* x) const {
    return linear(weights.output, norm(x, weights.output_norm));
}

}  // namespace headkv
