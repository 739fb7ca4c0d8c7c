#include "engine/prefill.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "engine/sentences.h"
#include "engine/token_kinds.h"
#include "engine/turn_keys.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::int64_t kArchiveReserve = 256;
constexpr std::int64_t kMostNodes = 64;  // of one layer's chunk

}  // namespace

Prefill::Prefill(const Compute& compute, const Model& model, std::vector<PrefillTarget> targets,
                 const Options& options)
    : compute_(compute),
      model_(model.impl()),
      tokenizer_(model.tokenizer()),
      targets_(std::move(targets)),
      options_(options),
      work_(compute.backend()) {
    const auto& hyper = model_.hyper;
    shape_ = {hyper.shape, hyper.head_dim_k, hyper.head_dim_v,
              1.0F / std::sqrt(static_cast<float>(hyper.head_dim_k))};
}

Result<std::unique_ptr<Prefill>> Prefill::create(const Compute& compute, const Model& model,
                                                 std::span<const Token> prompt,
                                                 std::vector<PrefillTarget> targets,
                                                 const Options& options) {
    std::unique_ptr<Prefill> prefill(new Prefill(compute, model, std::move(targets), options));
    if (auto allocated = prefill->allocate(prompt); !allocated) {
        return tl::unexpected(allocated.error());
    }
    return prefill;
}

Result<void> Prefill::allocate(std::span<const Token> prompt) {
    const auto& hyper = model_.hyper;
    tokens_ = static_cast<std::int64_t>(prompt.size());
    window_ = 1;
    for (auto& target : targets_) {
        target.selection.emplace(target.method);
        const auto needs = target.method.needs();
        window_ = std::max(
            window_, std::min(tokens_, std::max(needs.queries + needs.skip, needs.recent_queries)));
        if (needs.token_kinds && kinds_.empty()) kinds_ = token_kinds(tokenizer_, prompt);
        if (needs.sentences && sentences_.empty()) {
            sentences_ = sentence_starts(*model_.tokenizer, prompt);
        }
        if (needs.future_queries && !future_) future_.emplace(shape_);
        if (needs.reconstruction && !reconstruction_) reconstruction_.emplace(shape_, tokens_);
    }
    std::vector<Token> ids;
    std::vector<std::int32_t> positions;
    std::int64_t longest = 0;  // of what is read behind the prompt
    const auto add = [&](std::span<const Token> tokens, const RepeatPiece* piece) {
        const auto count = std::ssize(tokens), row = ids.empty() ? 0 : tokens_;
        stretches_.push_back({piece, std::ssize(ids), count, row});
        ids.insert(ids.end(), tokens.begin(), tokens.end());
        for (std::int64_t i = 0; i < count; ++i) {
            positions.push_back(static_cast<std::int32_t>(row + i));
        }
        if (row > 0) longest = std::max(longest, count);
    };
    add(prompt, nullptr);
    for (const auto& piece : options_.repeats) add(piece.tokens, &piece);
    if (!options_.draft.empty()) add(options_.draft, nullptr);
    columns_ = std::ssize(ids);
    const auto held = tokens_ + longest;  // rows of a head
    places_.resize(assign_places());
    context_ = make_context(16 + 2 * std::ssize(places_));
    auto* c = context_.get();
    ids_ = ggml_new_tensor_1d(c, GGML_TYPE_I32, columns_);
    positions_ = ggml_new_tensor_1d(c, GGML_TYPE_I32, columns_);
    hidden_ = ggml_new_tensor_2d(c, GGML_TYPE_F32, hyper.embedding, columns_);
    auto needed = ggml_nbytes(hidden_);
    for (auto& place : places_) {
        place.keys =
            ggml_new_tensor_3d(c, GGML_TYPE_F16, hyper.head_dim_k, held, hyper.shape.kv_heads);
        place.values =
            ggml_new_tensor_3d(c, GGML_TYPE_F16, hyper.head_dim_v, held, hyper.shape.kv_heads);
        needed += ggml_nbytes(place.keys) + ggml_nbytes(place.values);
    }
    queries_ = ggml_new_tensor_2d(c, GGML_TYPE_F32, hyper.head_dim_k * hyper.shape.query_heads,
                                  window_ + std::ssize(options_.draft));
    buffer_.reset(ggml_backend_alloc_ctx_tensors(c, compute_.backend()));
    if (!buffer_) {
        return failure(
            "not enough memory to read {} tokens: {} MiB are needed for hidden states and one "
            "layer's keys and values",
            tokens_, needed >> 20);
    }
    if (options_.unit != nullptr) packed_.emplace(*options_.unit);
    if (options_.unit != nullptr && PackedLayerRows::fits(shape_)) {
        packed_rows_.emplace(*options_.unit, shape_, held);
    }
    ggml_backend_tensor_set(ids_, ids.data(), 0, ggml_nbytes(ids_));
    ggml_backend_tensor_set(positions_, positions.data(), 0, ggml_nbytes(positions_));
    if (!future_) return {};
    return future_->prepare(hyper, model_.weights, tokens_,
                            [this](ggml_cgraph* graph) { return compute_graph(graph); });
}

std::int64_t Prefill::scratch_bytes() const {
    return static_cast<std::int64_t>(ggml_backend_buffer_get_size(buffer_.get()) + work_.bytes());
}

Result<void> Prefill::compute_graph(ggml_cgraph* graph) {
    if (!work_.place(graph)) {
        return failure("not enough memory for a chunk of {} tokens; use a smaller chunk",
                       options_.chunk);
    }
    return compute_.run(graph);
}

Result<bool> Prefill::step(std::int64_t most) {
    if (layer_ == model_.hyper.shape.layers) return true;
    // Chunks of equal length: no short last chunk that runs at a matrix-vector's speed.
    const auto longest = most > 0 ? std::min(most, options_.chunk) : options_.chunk;
    const auto& part = stretch();
    const auto left = part.first + part.count - begin_;
    const auto chunks = (left + longest - 1) / longest;
    const auto count = (left + chunks - 1) / chunks;
    if (layer_ == 0) {
        if (auto done = embed(begin_, count); !done) return tl::unexpected(done.error());
    }
    if (auto done = run_chunk(part, begin_, count); !done) return tl::unexpected(done.error());
    begin_ += count;
    if (begin_ < columns_) return false;
    const auto start = now_ms();
    if (auto done = compress_layer(); !done) return tl::unexpected(done.error());
    compress_ms_ += now_ms() - start;
    begin_ = 0;
    packed_tokens_ = 0;
    if (packed_) packed_->clear();
    return ++layer_ == model_.hyper.shape.layers;
}

const Prefill::Stretch& Prefill::stretch() const {
    const auto found =
        std::find_if(stretches_.begin(), stretches_.end(),
                     [this](const Stretch& part) { return begin_ < part.first + part.count; });
    assert(found != stretches_.end());
    return *found;
}

LayerRows Prefill::rows() const {
    const auto& [keys, values] = place();
    return {{static_cast<const Half*>(keys->data), size(ggml_nelements(keys))},
            {static_cast<const Half*>(values->data), size(ggml_nelements(values))},
            tokens_,
            keys->ne[1]};
}

// Layers whose rows no other reads take turns in one place; the others keep theirs until their last
// reader is done.
std::size_t Prefill::assign_places() {
    const auto layers = model_.hyper.shape.layers;
    place_of_.assign(size(layers), 0);
    if (!options_.share) return 1;
    std::vector<std::int64_t> taken_until = {-1};  // [places] the last reader, -1: of passing use
    for (std::int64_t layer = 0; layer < layers; ++layer) {
        if (!options_.share->owns(layer)) {
            place_of_[size(layer)] = place_of_[size(options_.share->owner_of(layer))];
            continue;
        }
        const auto last = options_.share->last_reader(layer);
        if (last == layer) continue;
        auto free = std::find_if(taken_until.begin() + 1, taken_until.end(),
                                 [layer](std::int64_t until) { return until < layer; });
        if (free == taken_until.end()) free = taken_until.insert(free, -1);
        *free = last;
        place_of_[size(layer)] = static_cast<std::size_t>(free - taken_until.begin());
    }
    return taken_until.size();
}

Result<void> Prefill::embed(std::int64_t begin, std::int64_t count) {
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const GraphBuilder build{c, model_.hyper, model_.weights, nullptr};
    auto* ids = ggml_view_1d(c, ids_, count, size(begin) * sizeof(std::int32_t));
    auto* graph = ggml_new_graph_custom(c, size(kMostNodes), false);
    ggml_build_forward_expand(graph,
                              ggml_cpy(c, build.embed(ids), columns(c, hidden_, begin, count)));
    return compute_graph(graph);
}

Result<void> Prefill::run_chunk(const Stretch& stretch, std::int64_t begin, std::int64_t count) {
    const auto& hyper = model_.hyper;
    const bool prompt = stretch.prompt();
    const auto end = begin + count;
    const auto offset = begin - stretch.first;
    const auto row = stretch.row + offset;
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    LinearOps products(LinearOps::Use::prompt, packed_ ? &*packed_ : nullptr);
    const GraphBuilder build{c, hyper, model_.weights, &products};
    const auto& layer = model_.weights.layers[size(layer_)];
    auto* graph = ggml_new_graph_custom(c, size(kMostNodes), false);

    auto* x = columns(c, hidden_, begin, count);
    auto* positions = ggml_view_1d(c, positions_, count, size(begin) * sizeof(std::int32_t));
    const auto part = build.project(layer, x, positions, owns());
    // [dim, heads, chunk] -> rows of each head together
    const auto store = [&](ggml_tensor* from, ggml_tensor* rows) {
        auto* to = ggml_view_3d(c, rows, rows->ne[0], count, rows->ne[2], rows->nb[1], rows->nb[2],
                                size(row) * rows->nb[1]);
        auto* node = ggml_cpy(c, ggml_permute(c, from, 0, 2, 1, 3), to);
        ggml_build_forward_expand(graph, node);
        return node;
    };
    std::vector<ggml_tensor*> stored;  // none: an earlier layer's rows are all there
    if (owns()) stored = {store(part.k, place().keys), store(part.v, place().values)};

    if (stretch.piece == nullptr) store_queries(c, graph, part.q, stretch, begin, count);
    if (prompt && future_) {
        ggml_build_forward_expand(graph, future_->add(c, part.plain_q, begin));
    }
    if (stretch.piece != nullptr) {
        ggml_build_forward_expand(graph, reconstruction_->score(c, part.q, stored, rows(), tokens_,
                                                                *stretch.piece, offset));
    }
    // Behind the last layer only the last token is read: the others need their rows, no more.
    const bool last_layer = layer_ + 1 == hyper.shape.layers;
    PrefillAttention attention;
    if (!last_layer || options_.all_tokens || end == tokens_) {
        attention.shape = shape_;
        attention.rows = rows();
        attention.position = row;
        attention.packed = packed_rows_ ? &*packed_rows_ : nullptr;
        attention.unpacked = prompt ? packed_tokens_ : row;
        if (prompt) packed_tokens_ = end;
        auto* attended = prefill_attention(c, part.q, stored, attention);
        if (options_.cosines != nullptr && prompt) {
            ggml_build_forward_expand(graph,
                                      options_.cosines->add(c, attended, part.v, layer_, offset));
        }
        ggml_build_forward_expand(graph, build.finish_layer(layer, x, attended));
    }
    auto done = compute_graph(graph);
    if (done && stretch.piece != nullptr) reconstruction_->take();
    return done;
}

void Prefill::store_queries(ggml_context* context, ggml_cgraph* graph, ggml_tensor* q,
                            const Stretch& stretch, std::int64_t begin, std::int64_t count) const {
    // In front of the draft's lie those of the window.
    const auto looks = stretch.prompt() ? tokens_ - window_ : stretch.first;
    const auto first = std::max(begin, looks), end = begin + count;
    if (first >= end) return;
    auto* flat = ggml_reshape_2d(context, q, queries_->ne[0], count);
    auto* from = columns(context, flat, first - begin, end - first);
    const auto at = first - looks + (stretch.prompt() ? 0 : window_);
    auto* to = columns(context, queries_, at, end - first);
    ggml_build_forward_expand(graph, ggml_cpy(context, from, to));
}

Result<void> Prefill::compress_layer() {
    if (options_.visit && owns()) options_.visit(layer_, rows());
    const auto layer = options_.share ? options_.share->owner_of(layer_) : layer_;
    LayerViews views(
        {.shape = shape_,
         .rows = rows(),
         .queries = {static_cast<const float*>(queries_->data), size(ggml_nelements(queries_))},
         .draft = std::ssize(options_.draft),
         .output = &model_.weights.layers[size(layer_)].wo,
         .future = future_ ? &*future_ : nullptr,
         .reconstruction = reconstruction_ ? &*reconstruction_ : nullptr,
         .kinds = kinds_,
         .sentences = sentences_},
        [this](ggml_cgraph* graph) { return compute_graph(graph); });
    for (auto& target : targets_) {
        std::copy_n(static_cast<const float*>(queries_->data) + (window_ - 1) * queries_->ne[0],
                    queries_->ne[0], target.log.at(0, layer_));
        target.log.written = 1;
    }
    if (options_.share) {
        // An owner's rows are selected once all who read them have looked at them.
        const auto last = options_.share->last_reader(layer);
        for (const auto& target : targets_) {
            if (last == layer) break;
            const auto needs = target.method.needs();
            const auto view = views.of({.queries = needs.queries,
                                        .skip = needs.skip,
                                        .squares = needs.squares,
                                        .draft = needs.draft,
                                        .recent_queries = needs.recent_queries,
                                        .query_decay = needs.query_decay});
            if (!view) return tl::unexpected(view.error());
        }
        if (const auto found = seen_.find(layer); found != seen_.end()) views.join(found->second);
        if (layer_ < last) {
            seen_[layer] = views.take_observed();
            return {};
        }
        seen_.erase(layer);
    }
    for (auto& target : targets_) {
        const auto view = views.of(target.method.needs());
        if (!view) return tl::unexpected(view.error());
        if (auto filled = fill(target, layer, *view); !filled) return filled;
        if (const auto wanted = target.method.needs().clusters; wanted.size > 0) {
            const auto& made = views.clusters(wanted);
            std::copy(made.begin(), made.end(),
                      target.clusters.begin() + layer * shape_.heads.kv_heads);
        }
        for (const auto& cut : target.selection->cuts()) {
            for (std::size_t head = 0; head < cut.stay.size(); ++head) {
                target.cache.keep(cut.layer, static_cast<std::int64_t>(head), cut.stay[head]);
            }
            if (auto fits = target.cache.fit(cut.layer, target.reserve); !fits) return fits;
        }
        if (layer_ + 1 == model_.hyper.shape.layers) {
            if (target.method.rows_have_classes() && !target.archive) {
                target.classes = target.selection->classes();
                target.kinds = kinds_;
            }
            target.selection.reset();
        }
        if (target.archive) {
            std::vector<std::int32_t> every(size(tokens_));
            std::iota(every.begin(), every.end(), 0);
            const std::vector<std::vector<std::int32_t>> all(size(shape_.heads.kv_heads), every);
            if (auto filled = target.archive->fill(layer, rows(), all, kArchiveReserve); !filled) {
                return filled;
            }
        }
    }
    if (future_) future_->clear();
    if (reconstruction_) reconstruction_->clear();
    return {};
}

// What a method keeps of the layer goes into its cache.
Result<void> Prefill::fill(PrefillTarget& target, std::int64_t layer, const LayerView& view) {
    const auto keep = target.selection->next(layer, view);
    if (auto filled = target.cache.fill(layer, rows(), keep, target.reserve); !filled) {
        return filled;
    }
    const auto& merged = target.selection->merged();
    for (std::size_t head = 0; head < merged.size(); ++head) {
        for (std::size_t i = 0; i < merged[head].size();) {
            const auto into = merged[head][i].into;
            std::vector<std::int32_t> others;
            for (; i < merged[head].size() && merged[head][i].into == into; ++i) {
                others.push_back(merged[head][i].from);
            }
            const auto row = std::lower_bound(keep[head].begin(), keep[head].end(), into);
            target.cache.average_value(layer, static_cast<std::int64_t>(head),
                                       row - keep[head].begin(), rows(), others);
        }
    }
    if (!target.method.in_cache_positions()) return {};
    std::vector<KeyTurn> turns;
    for (std::size_t head = 0; head < keep.size(); ++head) {
        close_gaps(static_cast<std::int64_t>(head), keep[head], tokens_, turns);
    }
    return turn_keys(compute_, model_, layer, turns, target.cache);
}

Result<std::vector<float>> Prefill::computed(ggml_context* context, ggml_tensor* node) {
    auto* graph = ggml_new_graph_custom(context, size(kMostNodes), false);
    ggml_build_forward_expand(graph, node);
    if (auto done = compute_graph(graph); !done) return tl::unexpected(done.error());
    std::vector<float> result(size(ggml_nelements(node)));
    ggml_backend_tensor_get(node, result.data(), 0, ggml_nbytes(node));
    return result;
}

Result<std::vector<float>> Prefill::final_states() {
    assert(options_.all_tokens);
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const GraphBuilder build{c, model_.hyper, model_.weights, nullptr};
    auto* node = build.norm(columns(c, hidden_, 0, tokens_), model_.weights.output_norm);
    return computed(c, node);
}

Result<std::vector<float>> Prefill::logits(std::int64_t first, std::int64_t count) {
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const GraphBuilder build{c, model_.hyper, model_.weights, nullptr};
    auto* node = build.logits(columns(c, hidden_, first, count));
    return computed(c, node);
}

}  // namespace headkv
