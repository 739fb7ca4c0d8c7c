#include "engine/recall.h"

#include <algorithm>
#include <cmath>

#include "engine/step_recall.h"

namespace headkv {

namespace {

constexpr std::int64_t kMostNodes = 64;  // of one layer
constexpr std::int64_t kLeastGrowth = 256;

using KeepLists = std::vector<std::vector<std::int32_t>>;  // [kv_heads] of one layer

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

// Few copies, little waste: an eighth of what is held.
Result<void> make_room(SequenceCache& archive, std::int64_t count) {
    if (archive.room() >= count) return {};
    const auto held = archive.head(0, 0).count;
    return archive.grow(std::max({count, kLeastGrowth, held / 8}));
}

// Keys [0, count) of every head as a prefill has them: f16, not rotated, [kv_heads][count][dim_k].
std::vector<Half> keys_of(const SequenceCache& archive, std::int64_t layer, std::int64_t count) {
    const auto& shape = archive.shape();
    std::vector<Half> keys;
    keys.reserve(size(shape.heads * count * shape.dim_k));
    for (std::int64_t head = 0; head < shape.heads; ++head) {
        append_keys(archive, layer, head, 0, count, keys);
    }
    return keys;
}

class Turn {
public:
    Turn(const Compute& compute, const Model& model, const Method& method, PrefillTarget& state,
         std::int64_t past, std::int64_t count)
        : compute_(compute),
          model_(model.impl()),
          method_(method),
          state_(state),
          past_(past),
          count_(count),
          shape_{model_.hyper.shape, model_.hyper.head_dim_k, model_.hyper.head_dim_v,
                 1.0F / std::sqrt(static_cast<float>(model_.hyper.head_dim_k))},
          attention_(shape_),
          work_(compute.backend()) {}

    Result<void> begin(std::span<const Token> turn);
    Result<void> layer(std::int64_t layer);
    // The archive holds the turn's rows, the cache what each layer selected of all.
    Result<void> finish();
    Result<std::vector<float>> logits();

private:
    Result<void> compute(ggml_cgraph* graph);
    Result<void> project(std::int64_t layer);
    Result<void> attend(std::int64_t layer);
    Result<KeepLists> select(std::int64_t layer);
    void archive_rows(std::int64_t layer);

    const Compute& compute_;
    const Model::Impl& model_;
    const Method& method_;
    PrefillTarget& state_;
    std::int64_t past_, count_;
    AttentionShape shape_;
    DecodeAttention attention_;
    WorkMemory work_;
    std::vector<KeepLists> kept_;  // [layers]; positions, the turn's included

    ggml_context_ptr context_;
    ggml_backend_buffer_ptr buffer_;
    ggml_tensor* ids_ = nullptr;        // i32 [count]
    ggml_tensor* positions_ = nullptr;  // i32 [count]
    ggml_tensor* hidden_ = nullptr;     // f32 [embedding, count]
    ggml_tensor* q_ = nullptr;          // f32 [dim_k, query_heads, count], after RoPE
    ggml_tensor* k_ = nullptr;          // f32 [dim_k, kv_heads, count], after RoPE
    ggml_tensor* v_ = nullptr;          // f32 [dim_v, kv_heads, count]
};

Result<void> Turn::compute(ggml_cgraph* graph) {
    if (!work_.place(graph)) return failure("not enough memory for a turn of {} tokens", count_);
    return compute_.run(graph);
}

Result<void> Turn::begin(std::span<const Token> turn) {
    const auto& hyper = model_.hyper;
    context_ = make_context(8);
    auto* c = context_.get();
    ids_ = ggml_new_tensor_1d(c, GGML_TYPE_I32, count_);
    positions_ = ggml_new_tensor_1d(c, GGML_TYPE_I32, count_);
    hidden_ = ggml_new_tensor_2d(c, GGML_TYPE_F32, hyper.embedding, count_);
    q_ = ggml_new_tensor_3d(c, GGML_TYPE_F32, shape_.dim_k, shape_.heads.query_heads, count_);
    k_ = ggml_new_tensor_3d(c, GGML_TYPE_F32, shape_.dim_k, shape_.heads.kv_heads, count_);
    v_ = ggml_new_tensor_3d(c, GGML_TYPE_F32, shape_.dim_v, shape_.heads.kv_heads, count_);
    buffer_.reset(ggml_backend_alloc_ctx_tensors(c, compute_.backend()));
    if (!buffer_) return failure("not enough memory for a turn of {} tokens", count_);
    std::vector<std::int32_t> positions(turn.size());
    for (std::size_t i = 0; i < turn.size(); ++i) {
        positions[i] = static_cast<std::int32_t>(past_) + static_cast<std::int32_t>(i);
    }
    ggml_backend_tensor_set(ids_, turn.data(), 0, ggml_nbytes(ids_));
    ggml_backend_tensor_set(positions_, positions.data(), 0, ggml_nbytes(positions_));
    const auto passing = make_context(kMostNodes);
    const GraphBuilder build{passing.get(), hyper, model_.weights, nullptr};
    auto* graph = ggml_new_graph_custom(passing.get(), size(kMostNodes), false);
    ggml_build_forward_expand(graph, ggml_cpy(passing.get(), build.embed(ids_), hidden_));
    if (auto done = compute(graph); !done) return done;
    return make_room(*state_.archive, count_);
}

Result<void> Turn::project(std::int64_t layer) {
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    LinearOps products(LinearOps::Use::prompt);
    const GraphBuilder build{c, model_.hyper, model_.weights, &products};
    auto* graph = ggml_new_graph_custom(c, size(kMostNodes), false);
    const auto part = build.project(model_.weights.layers[size(layer)],
                                    columns(c, hidden_, 0, count_), positions_);
    ggml_build_forward_expand(graph, ggml_cpy(c, part.q, q_));
    ggml_build_forward_expand(graph, ggml_cpy(c, part.k, k_));
    ggml_build_forward_expand(graph, ggml_cpy(c, part.v, v_));
    return compute(graph);
}

// Behind the rows held, where selection reads them; attend() stores them once more.
void Turn::archive_rows(std::int64_t layer) {
    const auto* keys = static_cast<const float*>(k_->data);
    const auto* values = static_cast<const float*>(v_->data);
    for (std::int64_t i = 0; i < count_; ++i) {
        for (std::int64_t head = 0; head < shape_.heads.kv_heads; ++head) {
            state_.archive->store(layer, head, past_ + i, keys, values);
            keys += shape_.dim_k;
            values += shape_.dim_v;
        }
    }
}

Result<KeepLists> Turn::select(std::int64_t layer) {
    std::vector<float> observed;
    const auto needs = method_.needs();
    const auto skip = std::min(needs.skip, count_ - 1);
    const auto queries = std::min(needs.queries, count_ - skip);
    if (queries > 0) {
        const auto keys = keys_of(*state_.archive, layer, past_ + count_);
        const auto context = make_context(kMostNodes);
        Observation plan;
        plan.shape = shape_;
        plan.rows = {keys, {}, past_ + count_};
        plan.count = queries;
        plan.skip = skip;
        plan.squared = needs.squares;
        plan.decay = needs.query_decay;
        plan.queries = static_cast<const float*>(q_->data) +
                       (count_ - skip - queries) * shape_.dim_k * shape_.heads.query_heads;
        auto* node = observe(context.get(), plan);
        auto* graph = ggml_new_graph_custom(context.get(), size(kMostNodes), false);
        ggml_build_forward_expand(graph, node);
        if (auto done = compute(graph); !done) return tl::unexpected(done.error());
        observed.resize(size(ggml_nelements(node)));
        ggml_backend_tensor_get(node, observed.data(), 0, ggml_nbytes(node));
    }
    const auto heads = shape_.heads.kv_heads, width = shape_.heads.group() * shape_.dim_k;
    std::vector<float> products;  // [kv_heads][rows]
    for (std::int64_t head = 0; method_.needs().clusters.size > 0 && head < heads; ++head) {
        const auto* query =
            static_cast<const float*>(q_->data) + ((count_ - 1) * heads + head) * width;
        const auto values = cluster_values(method_, *state_.archive, layer, head, past_ + count_,
                                           method_.plan().at(layer, head), {query, size(width)},
                                           state_.clusters[size(layer * heads + head)]);
        products.insert(products.end(), values.begin(), values.end());
    }
    return method_.keep_layer(layer, {.observed = observed, .cluster_products = products});
}

Result<void> Turn::attend(std::int64_t layer) {
    const DecodeAttention::Slot slot{&*state_.archive, &state_.log, 0, count_};
    attention_.prepare({&slot, 1}, shape_.heads.layers);
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    LinearOps products(LinearOps::Use::prompt);
    const GraphBuilder build{c, model_.hyper, model_.weights, &products};
    auto* graph = ggml_new_graph_custom(c, size(kMostNodes), false);
    ggml_build_forward_expand(graph, build.finish_layer(model_.weights.layers[size(layer)],
                                                        columns(c, hidden_, 0, count_),
                                                        attention_.attend(c, q_, k_, v_, layer)));
    return compute(graph);
}

Result<void> Turn::layer(std::int64_t layer) {
    if (auto done = project(layer); !done) return done;
    archive_rows(layer);
    auto kept = select(layer);
    if (!kept) return tl::unexpected(kept.error());
    kept_.push_back(std::move(*kept));
    return attend(layer);
}

Result<void> Turn::finish() {
    state_.archive->append(past_, count_);
    state_.log.written += count_;
    // Rows of the archive are in order of their positions, so positions are indices.
    for (std::int64_t layer = 0; layer < shape_.heads.layers; ++layer) {
        auto filled = state_.cache.fill(layer, *state_.archive, kept_[size(layer)], state_.reserve);
        if (!filled) return filled;
    }
    return {};
}

Result<std::vector<float>> Turn::logits() {
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const GraphBuilder build{c, model_.hyper, model_.weights, nullptr};
    auto* node = build.logits(columns(c, hidden_, count_ - 1, 1));
    auto* graph = ggml_new_graph_custom(c, size(kMostNodes), false);
    ggml_build_forward_expand(graph, node);
    if (auto done = compute(graph); !done) return tl::unexpected(done.error());
    std::vector<float> result(size(ggml_nelements(node)));
    ggml_backend_tensor_get(node, result.data(), 0, ggml_nbytes(node));
    return result;
}

}  // namespace

bool recalls(const Method& method) {
    switch (method.recipe().score) {
        case ScoreStep::window_attention:
        case ScoreStep::layer_attention:
        case ScoreStep::squared_attention:
        case ScoreStep::last_query:
        case ScoreStep::accumulated_attention:  // of the turn's queries
        case ScoreStep::prefix_mass:            // the same
        case ScoreStep::key_clusters:           // by its clusters
            return true;
        default:
            return false;
    }
}

Result<Method> method_of_turn(const Method& method, const HeadShape& shape, std::int64_t tokens,
                              std::int64_t row_bytes) {
    auto config = method.config();
    config.budget = {Budget::Unit::rows, method.rows_budget()};
    config.question = {};  // that of the prompt is not the turn's
    return Method::create(config, shape, tokens, row_bytes);
}

Result<void> archive_newest(PrefillTarget& state, std::int64_t count) {
    auto& archive = *state.archive;
    if (auto room = make_room(archive, count); !room) return room;
    const auto& shape = state.cache.shape();
    const auto past = archive.head(0, 0).count;
    std::vector<float> key(size(shape.dim_k)), value(size(shape.dim_v));
    for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
        for (std::int64_t head = 0; head < shape.heads; ++head) {
            const auto first = state.cache.head(layer, head).count - count;
            for (std::int64_t i = 0; i < count; ++i) {
                state.cache.load(layer, head, first + i, key.data(), value.data());
                archive.store(layer, head, past + i, key.data(), value.data());
            }
        }
    }
    archive.append(past, count);
    return {};
}

Result<std::vector<float>> recall_turn(const Compute& compute, const Model& model,
                                       const Method& method, PrefillTarget& state,
                                       std::int64_t past, std::span<const Token> turn) {
    const auto count = static_cast<std::int64_t>(turn.size());
    Turn reading(compute, model, method, state, past, count);
    if (auto begun = reading.begin(turn); !begun) return tl::unexpected(begun.error());
    for (std::int64_t layer = 0; layer < model.info().shape.layers; ++layer) {
        if (auto done = reading.layer(layer); !done) return tl::unexpected(done.error());
    }
    if (auto done = reading.finish(); !done) return tl::unexpected(done.error());
    return reading.logits();
}

}  // namespace headkv
