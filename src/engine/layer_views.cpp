#include "engine/layer_views.h"

#include <algorithm>

#include "engine/compute.h"

namespace headkv {

namespace {

std::vector<float> as_floats(std::span<const Half> rows) {
    std::vector<float> floats(rows.size());
    kernels::best().to_float(rows.data(), floats.data(), static_cast<std::int64_t>(rows.size()));
    return floats;
}

}  // namespace

// Mean attention of the last `queries` tokens, or of its squares, [query_heads][tokens].
Result<std::vector<float>> LayerViews::observed(std::int64_t queries, bool squares) const {
    const auto width = source_.shape.heads.query_heads * source_.shape.dim_k;
    const auto held = static_cast<std::int64_t>(source_.queries.size()) / width;
    const auto context = make_context(1);
    Observation plan;
    plan.shape = source_.shape;
    plan.rows = source_.rows;
    plan.count = std::min(queries, source_.rows.tokens);
    plan.squared = squares;
    plan.queries = source_.queries.data() + (held - plan.count) * width;
    auto* node = observe(context.get(), plan);
    auto* graph = ggml_new_graph_custom(context.get(), 1, false);
    ggml_build_forward_expand(graph, node);
    if (auto done = run_(graph); !done) return tl::unexpected(done.error());
    std::vector<float> result(static_cast<std::size_t>(ggml_nelements(node)));
    ggml_backend_tensor_get(node, result.data(), 0, ggml_nbytes(node));
    return result;
}

Result<LayerView> LayerViews::of(const LayerNeeds& needs) {
    LayerView view;
    if (needs.queries > 0) {
        auto& known = observed_[{needs.queries, needs.squares}];
        if (known.empty()) {
            auto made = observed(needs.queries, needs.squares);
            if (!made) return tl::unexpected(made.error());
            known = std::move(*made);
        }
        view.observed = known;
    }
    if (needs.keys) {
        if (keys_.empty()) keys_ = as_floats(source_.rows.keys);
        view.keys = keys_;
    }
    if (needs.values) {
        if (values_.empty()) values_ = as_floats(source_.rows.values);
        view.values = values_;
    }
    return view;
}

}  // namespace headkv
