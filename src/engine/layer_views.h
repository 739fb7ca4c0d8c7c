// What methods look at in a layer, computed once for all of them (LayerNeeds, LayerView).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <tuple>
#include <vector>

#include "engine/attention_ops.h"
#include "engine/future_queries.h"
#include "engine/key_clusters.h"
#include "engine/reconstruction.h"
#include "headkv/error.h"
#include "headkv/method.h"

namespace headkv {

// The views of one layer that a prefill has read; what they hold lives as long as this.
class LayerViews {
public:
    struct Source {
        AttentionShape shape;
        LayerRows rows;
        // [query_heads * dim_k] each, after RoPE, of the last tokens, then of those of a text that
        // was read behind them, `draft` in number; its rows follow the prompt's in `rows`.
        std::span<const float> queries;
        std::int64_t draft = 0;
        const Matrix* output = nullptr;                  // the output projection
        const FutureQueries* future = nullptr;           // where a method asks for it
        const Reconstruction* reconstruction = nullptr;  // the same
        std::span<const TokenKind> kinds = {};           // the same
        std::span<const std::int32_t> sentences = {};    // where they begin; the same
    };
    // Runs a graph, with memory for its results.
    using Run = std::function<Result<void>(ggml_cgraph*)>;
    LayerViews(const Source& source, Run run) : source_(source), run_(std::move(run)) {}

    // Computes what no earlier call has. Error (failure): out of memory.
    Result<LayerView> of(const LayerNeeds& needs);

    // Attention to the same rows, by queries, tokens behind them, whether squared, whether a
    // draft's queries look, too, and what a query counts beside the next one:
    // [query_heads][tokens] each.
    using Observed =
        std::map<std::tuple<std::int64_t, std::int64_t, bool, bool, double>, std::vector<float>>;
    // Of what of() has computed so far, with what other layers that read these rows have seen: the
    // larger value of each. Views that of() has given show it, too.
    void join(const Observed& others);
    Observed take_observed() { return std::move(observed_); }

    // [kv_heads] as of() has made them for a method that ranks them.
    const std::vector<KeyClusters>& clusters(const ClusterNeeds& needs) const;

private:
    Result<std::vector<float>> computed(ggml_tensor* node, ggml_context* context) const;
    Result<std::vector<float>> observed(const LayerNeeds& needs) const;
    // Of the `count`-th last token of the prompt, from which on they lie together.
    const float* queries_from(std::int64_t count) const;
    Result<std::vector<float>> output_norms() const;
    struct Clusters {
        ClusterNeeds needs;
        std::vector<KeyClusters> made;  // [kv_heads]
        std::vector<float> products;    // [kv_heads][tokens]
    };
    Result<const Clusters*> clustered(const ClusterNeeds& needs);

    Source source_;
    Run run_;
    Observed observed_;
    std::vector<float> keys_, values_, output_norms_;
    std::vector<std::unique_ptr<Clusters>> clusters_;
    FutureQueries::Moments moments_;
};

}  // namespace headkv
