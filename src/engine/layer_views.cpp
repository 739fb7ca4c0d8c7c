#include "engine/layer_views.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cmath>
#include <cstring>

#include "engine/compute.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// [heads][tokens][dim] of the first `tokens` of every head's `held` rows.
std::vector<float> as_floats(std::span<const Half> rows, std::int64_t heads, std::int64_t tokens,
                             std::int64_t held) {
    const auto dim = static_cast<std::int64_t>(rows.size()) / (heads * held);
    std::vector<float> floats(size(heads * tokens * dim));
    for (std::int64_t head = 0; head < heads; ++head) {
        kernels::best().to_float(rows.data() + head * held * dim,
                                 floats.data() + head * tokens * dim, tokens * dim);
    }
    return floats;
}

// [out][in]
std::vector<float> as_floats(const Matrix& w) {
    std::vector<float> floats(size(w.out * w.in));
    if (w.file_type == GGML_TYPE_F32) {
        std::memcpy(floats.data(), w.file.data(), floats.size() * sizeof(float));
    } else {
        ggml_get_type_traits(w.file_type)->to_float(w.file.data(), floats.data(), w.out * w.in);
    }
    return floats;
}

struct OutputNorms {
    AttentionShape shape;
    LayerRows rows;
    std::vector<float> weights;  // [out][query_heads * dim_v]
    std::atomic<std::int64_t> next{0};
};

// out [tokens, query_heads]. A unit is a query head and a block of rows: its part of the weights
// takes the place of queries, the values that of keys.
void compute_output_norms(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    constexpr std::int64_t kRows = 512, kOutputs = 32;  // at once
    auto& plan = *static_cast<OutputNorms*>(data);
    const auto dim = plan.shape.dim_v, width = plan.shape.heads.query_heads * dim;
    const auto outputs = static_cast<std::int64_t>(plan.weights.size()) / width;
    const auto tokens = plan.rows.tokens, blocks = (tokens + kRows - 1) / kRows;
    thread_local std::vector<float> memory;
    memory.resize(size(kOutputs * (dim + kRows)));
    float* products = memory.data() + kOutputs * dim;
    const auto units = plan.shape.heads.query_heads * blocks;
    for (auto unit = plan.next.fetch_add(1); unit < units; unit = plan.next.fetch_add(1)) {
        const auto head = unit / blocks, first = unit % blocks * kRows;
        const auto rows = std::min(kRows, tokens - first);
        const auto* values =
            plan.rows.values.data() +
            (head / plan.shape.heads.group() * plan.rows.head_rows() + first) * dim;
        float* sums = static_cast<float*>(out->data) + head * tokens + first;
        std::fill_n(sums, rows, 0.0F);
        for (std::int64_t begin = 0; begin < outputs; begin += kOutputs) {
            const auto some = std::min(kOutputs, outputs - begin);
            for (std::int64_t i = 0; i < some; ++i) {
                std::copy_n(plan.weights.data() + (begin + i) * width + head * dim, dim,
                            memory.data() + i * dim);
            }
            kernels::best().dot_rows(memory.data(), some, values, rows, dim, products, rows);
            for (std::int64_t i = 0; i < some; ++i) {
                for (std::int64_t j = 0; j < rows; ++j) sums[j] += std::abs(products[i * rows + j]);
            }
        }
    }
}

struct Clustering {
    AttentionShape shape;
    LayerRows rows;
    std::int64_t first = 0;
    const float* queries = nullptr;                // [query_heads][dim_k] of the last token
    std::vector<KeyClusters>* clusters = nullptr;  // [kv_heads]
    std::atomic<std::int64_t> next{0};
};

// out [tokens, kv_heads]. A unit is a head.
void compute_clusters(ggml_tensor* out, int /*thread*/, int /*threads*/, void* data) {
    auto& plan = *static_cast<Clustering*>(data);
    const auto dim = plan.shape.dim_k, tokens = plan.rows.tokens;
    const auto width = plan.shape.heads.group() * dim;
    const auto first = std::min(plan.first, tokens);
    const auto heads = plan.shape.heads.kv_heads;
    for (auto head = plan.next.fetch_add(1); head < heads; head = plan.next.fetch_add(1)) {
        auto& clusters = (*plan.clusters)[size(head)];
        clusters.add(plan.rows.keys.subspan(size((head * plan.rows.head_rows() + first) * dim),
                                            size((tokens - first) * dim)),
                     dim);
        const auto products = clusters.products({plan.queries + head * width, size(width)}, dim);
        std::copy_n(products.begin(), tokens, static_cast<float*>(out->data) + head * tokens);
    }
}

}  // namespace

const float* LayerViews::queries_from(std::int64_t count) const {
    const auto width = source_.shape.heads.query_heads * source_.shape.dim_k;
    return source_.queries.data() + std::ssize(source_.queries) - (count + source_.draft) * width;
}

// Mean attention, or of its squares, [query_heads][tokens].
Result<std::vector<float>> LayerViews::observed(const LayerNeeds& needs) const {
    const auto context = make_context(1);
    const auto tokens = source_.rows.tokens;
    Observation plan;
    plan.shape = source_.shape;
    plan.rows = source_.rows;
    plan.squared = needs.squares;
    plan.decay = needs.query_decay;
    if (!needs.draft || source_.draft == 0) {
        plan.skip = needs.skip;
        plan.count = std::min(needs.queries, tokens - plan.skip);
        plan.queries = queries_from(plan.skip + plan.count);
        return computed(observe(context.get(), plan), context.get());
    }
    const auto of_prompt = std::min(needs.queries, tokens);
    plan.rows.tokens = tokens + source_.draft;
    plan.count = of_prompt + source_.draft;
    plan.alike = source_.draft;
    plan.queries = queries_from(of_prompt);
    auto seen = computed(observe(context.get(), plan), context.get());
    if (!seen) return seen;
    // What they see of the draft itself is left out.
    for (std::int64_t head = 0; head < source_.shape.heads.query_heads; ++head) {
        std::copy_n(seen->begin() + head * plan.rows.tokens, tokens, seen->begin() + head * tokens);
    }
    seen->resize(size(source_.shape.heads.query_heads * tokens));
    return seen;
}

Result<std::vector<float>> LayerViews::output_norms() const {
    const auto context = make_context(1);
    OutputNorms plan{source_.shape, source_.rows, as_floats(*source_.output)};
    auto* node = ggml_custom_4d(context.get(), GGML_TYPE_F32, source_.rows.tokens,
                                source_.shape.heads.query_heads, 1, 1, nullptr, 0,
                                compute_output_norms, GGML_N_TASKS_MAX, &plan);
    return computed(node, context.get());
}

Result<const LayerViews::Clusters*> LayerViews::clustered(const ClusterNeeds& needs) {
    for (const auto& known : clusters_) {
        if (known->needs == needs) return known.get();
    }
    const auto& shape = source_.shape;
    auto fresh = std::make_unique<Clusters>();
    fresh->needs = needs;
    fresh->made.assign(size(shape.heads.kv_heads), KeyClusters(needs));
    const auto context = make_context(1);
    Clustering plan{shape, source_.rows, needs.first, queries_from(1), &fresh->made};
    auto* node =
        ggml_custom_4d(context.get(), GGML_TYPE_F32, source_.rows.tokens, shape.heads.kv_heads, 1,
                       1, nullptr, 0, compute_clusters, GGML_N_TASKS_MAX, &plan);
    auto products = computed(node, context.get());
    if (!products) return tl::unexpected(products.error());
    fresh->products = std::move(*products);
    clusters_.push_back(std::move(fresh));
    return clusters_.back().get();
}

void LayerViews::join(const Observed& others) {
    for (auto& [what, values] : observed_) {
        const auto& other = others.at(what);
        std::transform(values.begin(), values.end(), other.begin(), values.begin(),
                       [](float a, float b) { return std::max(a, b); });
    }
}

const std::vector<KeyClusters>& LayerViews::clusters(const ClusterNeeds& needs) const {
    const auto known = std::find_if(clusters_.begin(), clusters_.end(),
                                    [&](const auto& other) { return other->needs == needs; });
    assert(known != clusters_.end());
    return (*known)->made;
}

Result<std::vector<float>> LayerViews::computed(ggml_tensor* node, ggml_context* context) const {
    auto* graph = ggml_new_graph_custom(context, 1, false);
    ggml_build_forward_expand(graph, node);
    if (auto done = run_(graph); !done) return tl::unexpected(done.error());
    std::vector<float> result(size(ggml_nelements(node)));
    ggml_backend_tensor_get(node, result.data(), 0, ggml_nbytes(node));
    return result;
}

Result<LayerView> LayerViews::of(const LayerNeeds& needs) {
    LayerView view;
    const auto heads = source_.shape.heads.kv_heads;
    const auto attention = [&](const LayerNeeds& wanted,
                               std::span<const float>& seen) -> Result<void> {
        if (wanted.queries == 0) return {};
        auto& known = observed_[{wanted.queries, wanted.skip, wanted.squares, wanted.draft,
                                 wanted.query_decay}];
        if (known.empty()) {
            auto made = observed(wanted);
            if (!made) return tl::unexpected(made.error());
            known = std::move(*made);
        }
        seen = known;
        return {};
    };
    auto all = needs;
    if (needs.recent_queries > 0) all.query_decay = 1;
    if (auto seen = attention(all, view.observed); !seen) {
        return tl::unexpected(seen.error());
    }
    const LayerNeeds recent{.queries = needs.recent_queries, .query_decay = needs.query_decay};
    if (auto seen = attention(recent, view.recent); !seen) {
        return tl::unexpected(seen.error());
    }
    if (needs.token_kinds) view.kinds = source_.kinds;
    if (needs.keys) {
        if (keys_.empty()) {
            keys_ =
                as_floats(source_.rows.keys, heads, source_.rows.tokens, source_.rows.head_rows());
        }
        view.keys = keys_;
    }
    if (needs.values) {
        if (values_.empty()) {
            values_ = as_floats(source_.rows.values, heads, source_.rows.tokens,
                                source_.rows.head_rows());
        }
        view.values = values_;
    }
    if (needs.future_queries) {
        if (moments_.mean.empty()) moments_ = source_.future->moments();
        view.query_mean = moments_.mean;
        view.query_covariance = moments_.covariance;
    }
    if (needs.output_norms) {
        if (output_norms_.empty()) {
            auto made = output_norms();
            if (!made) return tl::unexpected(made.error());
            output_norms_ = std::move(*made);
        }
        view.output_norms = output_norms_;
    }
    if (needs.reconstruction) view.reconstruction = source_.reconstruction->best();
    if (needs.sentences) view.sentences = source_.sentences;
    if (needs.clusters.size > 0) {
        const auto made = clustered(needs.clusters);
        if (!made) return tl::unexpected(made.error());
        view.cluster_products = (*made)->products;
    }
    return view;
}

}  // namespace headkv
