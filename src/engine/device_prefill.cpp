#include "engine/device_prefill.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "engine/sentences.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::int64_t kMostNodes = 96;  // of one layer's chunk

// [tokens, queries, heads] -> sums over the queries [tokens, 1, heads]: one half is added to the
// other, again and again. (ggml's sum_rows wants the queries innermost, so a transposed copy, and
// takes a block of threads for every sum, however few its numbers are.)
ggml_tensor* sum_over_queries(ggml_context* c, ggml_tensor* each) {
    const auto part = [&](std::int64_t first, std::int64_t count) {
        return ggml_view_3d(c, each, each->ne[0], count, each->ne[2], each->nb[1], each->nb[2],
                            size(first) * each->nb[1]);
    };
    ggml_tensor* odd = nullptr;  // the sum of those that had no other to be added to
    while (each->ne[1] > 1) {
        const auto half = each->ne[1] / 2;
        if (each->ne[1] % 2 == 1) {
            auto* last = part(2 * half, 1);
            odd = odd == nullptr ? ggml_cont(c, last) : ggml_add(c, odd, last);
        }
        each = ggml_add(c, part(0, half), part(half, half));
    }
    return odd == nullptr ? each : ggml_add(c, each, odd);
}

}  // namespace

DevicePrefill::DevicePrefill(const Pipeline& pipeline, const Model& model,
                             std::vector<DeviceTarget> targets, const Options& options)
    : pipeline_(pipeline),
      model_(model.impl()),
      targets_(std::move(targets)),
      options_(options),
      places_(pipeline.size()) {
    const auto& hyper = model_.hyper;
    shape_ = {hyper.shape, hyper.head_dim_k, hyper.head_dim_v,
              1.0F / std::sqrt(static_cast<float>(hyper.head_dim_k))};
    options_.chunk = whole_blocks(options_.chunk);
}

DevicePrefill::~DevicePrefill() {
    pipeline_.synchronize();
    for (auto& target : targets_) target.cache->free_slot(target.slot);
}

Result<std::unique_ptr<DevicePrefill>> DevicePrefill::create(const Pipeline& pipeline,
                                                             const Model& model,
                                                             std::span<const Token> text,
                                                             std::vector<DeviceTarget> targets,
                                                             const Options& options) {
    std::unique_ptr<DevicePrefill> prefill(
        new DevicePrefill(pipeline, model, std::move(targets), options));
    if (auto allocated = prefill->allocate(text); !allocated) {
        return tl::unexpected(allocated.error());
    }
    for (std::size_t stage = 0; stage < pipeline.size(); ++stage) {
        if (pipeline[stage].layers == 0) continue;
        if (auto filled = prefill->fill_masks(stage); !filled) {
            return tl::unexpected(filled.error());
        }
    }
    return prefill;
}

DevicePrefill::Looking DevicePrefill::looking(const LayerNeeds& needs) const {
    if (needs.queries == 0) return {};
    const auto draft = options_.draft;
    return needs.draft && draft > 0
               ? Looking{needs.queries + draft, 0, needs.query_decay, draft}
               : Looking{needs.queries, needs.skip + draft, needs.query_decay, 0};
}

Result<void> DevicePrefill::allocate(std::span<const Token> text) {
    const auto& hyper = model_.hyper;
    tokens_ = static_cast<std::int64_t>(text.size());
    padded_ = whole_blocks(tokens_);
    options_.chunk = std::min(options_.chunk, padded_);
    window_ = 1;
    std::vector<Looking> observations;
    for (const auto& target : targets_) {
        const auto needs = target.method.needs();
        const auto looks = looking(needs);
        window_ = std::max(window_, looks.queries + looks.skip);
        if (looks.queries > 0 && std::ranges::find(observations, looks) == observations.end()) {
            observations.push_back(looks);
        }
        if (needs.sentences) sentences_of_ = {text.begin(), text.begin() + prompt_tokens()};
        assert(target.method.plan().rows.size() == size(hyper.shape.layers * hyper.shape.kv_heads));
    }
    std::vector<std::int32_t> positions(text.size());
    std::iota(positions.begin(), positions.end(), 0);
    for (std::size_t stage = 0; stage < places_.size(); ++stage) {
        if (auto done = allocate(stage, observations); !done) return done;
        auto& place = places_[stage];
        if (place.ids != nullptr) {
            ggml_backend_tensor_set(place.ids, text.data(), 0, ggml_nbytes(place.ids));
        }
        if (place.positions != nullptr) {
            ggml_backend_tensor_set(place.positions, positions.data(), 0,
                                    ggml_nbytes(place.positions));
        }
    }
    return {};
}

Result<void> DevicePrefill::allocate(std::size_t stage, std::span<const Looking> observations) {
    const auto& hyper = model_.hyper;
    auto& place = places_[stage];
    auto* backend = pipeline_.compute(stage).backend();
    const bool layers = pipeline_[stage].layers > 0;
    place.work = std::make_unique<WorkMemory>(backend);
    if (!layers && stage > 0) return {};  // logits() brings what it works on
    place.context = make_context(16 + 3 * std::ssize(observations));
    place.host_context = make_context(2 + std::ssize(observations));
    auto* c = place.context.get();
    if (stage == 0) place.ids = ggml_new_tensor_1d(c, GGML_TYPE_I32, tokens_);
    place.hidden = ggml_new_tensor_2d(c, GGML_TYPE_F32, hyper.embedding,
                                      layers ? tokens_ : std::min(options_.chunk, tokens_));
    auto bytes = ggml_nbytes(place.hidden);
    if (layers) {
        place.positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, tokens_);
        const auto rows = [&](std::int64_t dim) {
            auto* made = ggml_new_tensor_3d(c, GGML_TYPE_F16, dim, padded_, hyper.shape.kv_heads);
            bytes += ggml_nbytes(made);
            return made;
        };
        for (int side = 0; side < 2; ++side) {
            place.keys[side] = rows(hyper.head_dim_k);
            place.values[side] = rows(hyper.head_dim_v);
        }
        place.queries = ggml_new_tensor_2d(c, GGML_TYPE_F32,
                                           hyper.head_dim_k * hyper.shape.query_heads, window_);
        const auto lists = [&](ggml_context* context) {
            return ggml_new_tensor_1d(context, GGML_TYPE_I32, 2 * hyper.shape.kv_heads * padded_);
        };
        place.chosen = lists(c);
        place.host_lists = lists(place.host_context.get());
        for (const auto& looking : observations) {
            const auto mean = [&](ggml_context* context) {
                return ggml_new_tensor_2d(context, GGML_TYPE_F32, tokens_, hyper.shape.query_heads);
            };
            auto* mask = ggml_new_tensor_2d(c, GGML_TYPE_F32, tokens_, looking.queries);
            auto* weights = looking.decay != 1
                                ? ggml_new_tensor_2d(c, GGML_TYPE_F32, 1, looking.queries)
                                : nullptr;
            place.seen.push_back({looking,
                                  query_weights(looking.queries, looking.decay, looking.alike),
                                  mask, weights, mean(c), mean(place.host_context.get())});
        }
    }
    place.buffer.reset(ggml_backend_alloc_ctx_tensors(c, backend));
    auto* device = ggml_backend_get_device(backend);
    if (layers) {
        auto* pinned = ggml_backend_dev_host_buffer_type(device);
        place.host_buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(
            place.host_context.get(), pinned != nullptr ? pinned : ggml_backend_cpu_buffer_type()));
    }
    if (!place.seen.empty()) place.observed.reset(ggml_backend_event_new(device));
    if (!place.buffer || (layers && !place.host_buffer)) {
        return failure(
            "not enough memory on {} to read {} tokens: {} MiB are needed for hidden states and "
            "two layers' keys and values",
            ggml_backend_name(backend), tokens_, bytes >> 20);
    }
    ggml_backend_buffer_clear(place.buffer.get(), 0);  // padding must be numbers
    return {};
}

// causal[column, i] is 0 up to column padded_ + i and -inf behind. Seen from column
// padded_ - begin on, it is the causal mask of a chunk that begins at `begin`, whichever that is:
// one mask for all layers and chunks. `begin` is a whole number of blocks, as kernels want it
// aligned.
Result<void> DevicePrefill::fill_masks(std::size_t stage) {
    const auto chunk = options_.chunk;
    auto& place = places_[stage];
    auto* backend = pipeline_.compute(stage).backend();
    place.mask_context = make_context(1);
    auto*& causal = place.causal;
    causal = ggml_new_tensor_2d(place.mask_context.get(), GGML_TYPE_F16, padded_ + chunk, chunk);
    place.mask_buffer.reset(ggml_backend_alloc_ctx_tensors(place.mask_context.get(), backend));
    if (!place.mask_buffer) {
        return failure("not enough memory for chunks of {} tokens; use a smaller --chunk", chunk);
    }
    ggml_backend_buffer_clear(place.mask_buffer.get(), 0);

    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    auto* triangle = ggml_new_tensor_2d(c, GGML_TYPE_F16, chunk, chunk);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(c, backend));
    if (!buffer) return failure("not enough memory for chunks of {} tokens", chunk);
    std::vector<std::uint16_t> closed(size(chunk * chunk), 0);
    for (std::int64_t i = 0; i < chunk; ++i) {
        std::fill(closed.begin() + i * chunk + i + 1, closed.begin() + (i + 1) * chunk, 0xFC00);
    }
    ggml_backend_tensor_set(triangle, closed.data(), 0, ggml_nbytes(triangle));
    auto* graph = new_graph(stage, c);
    auto* to = ggml_view_2d(c, causal, chunk, chunk, causal->nb[1], size(padded_) * causal->nb[0]);
    ggml_build_forward_expand(graph, ggml_cpy(c, triangle, to));
    if (auto done = run(stage, graph); !done) return done;
    for (const Seen& seen : place.seen) {
        const auto queries = seen.looking.queries, skip = seen.looking.skip;
        std::vector<float> mask(size(tokens_ * queries), 0.0F);
        for (std::int64_t i = 0; i < queries; ++i) {
            const auto first = tokens_ - skip - queries + i + 1;
            std::fill(mask.begin() + i * tokens_ + first, mask.begin() + (i + 1) * tokens_,
                      -INFINITY);
        }
        ggml_backend_tensor_set(seen.mask, mask.data(), 0, ggml_nbytes(seen.mask));
        if (seen.weights == nullptr) continue;
        ggml_backend_tensor_set(seen.weights, seen.counts.each.data(), 0,
                                ggml_nbytes(seen.weights));
    }
    ggml_backend_synchronize(backend);
    return {};
}

std::int64_t DevicePrefill::scratch_bytes() const {
    std::int64_t bytes = 0;
    for (std::size_t stage = 0; stage < places_.size(); ++stage) bytes += scratch_bytes(stage);
    return bytes;
}

std::int64_t DevicePrefill::scratch_bytes(std::size_t stage) const {
    const auto& place = places_[stage];
    auto bytes = place.work->bytes();
    for (const auto* buffer : {&place.buffer, &place.mask_buffer}) {
        if (*buffer) bytes += ggml_backend_buffer_get_size(buffer->get());
    }
    return static_cast<std::int64_t>(bytes);
}

ggml_cgraph* DevicePrefill::new_graph(std::size_t stage, ggml_context* context) const {
    const auto& compute = pipeline_.compute(stage);
    return compute.new_graph(context, kMostNodes, compute.key_of_passing_graphs());
}

Result<void> DevicePrefill::run(std::size_t stage, ggml_cgraph* graph) {
    const auto& compute = pipeline_.compute(stage);
    if (!places_[stage].work->place(graph)) {
        return failure("not enough memory on {} for a chunk of {} tokens; use a smaller --chunk",
                       ggml_backend_name(compute.backend()), options_.chunk);
    }
    return compute.start(graph);
}

ggml_tensor* DevicePrefill::hidden(std::size_t stage, ggml_context* context, std::int64_t begin,
                                   std::int64_t count) const {
    // A stage that only embeds has room for a chunk.
    return columns(context, places_[stage].hidden, pipeline_[stage].layers > 0 ? begin : 0, count);
}

void DevicePrefill::take_over(std::size_t stage, std::int64_t begin, std::int64_t count) {
    const auto context = make_context(2);
    pipeline_.hand_over(stage - 1, stage, hidden(stage - 1, context.get(), begin, count),
                        hidden(stage, context.get(), begin, count));
}

Result<bool> DevicePrefill::step(std::int64_t most) {
    const auto layers = model_.hyper.shape.layers;
    if (layer_ == layers) return true;
    const auto limit = most > 0
                           ? std::clamp(most / kRowBlock * kRowBlock, kRowBlock, options_.chunk)
                           : options_.chunk;
    const auto count = std::min(limit, tokens_ - begin_);
    if (layer_ == 0) {
        if (auto done = embed(begin_, count); !done) return tl::unexpected(done.error());
    }
    const auto stage = pipeline_.part_of(layer_);
    if (stage > 0 && layer_ == pipeline_[stage].first) take_over(stage, begin_, count);
    if (auto done = run_chunk(begin_, count); !done) return tl::unexpected(done.error());
    // The device is busy now: select the rows of the layer before.
    if (pending_ >= 0) {
        if (auto done = compress(); !done) return tl::unexpected(done.error());
    }
    if (most > 0) ggml_backend_synchronize(pipeline_.compute(stage).backend());
    begin_ += count;
    if (begin_ < tokens_) return false;
    if (!targets_.empty()) {
        if (auto done = observe(); !done) return tl::unexpected(done.error());
    }
    begin_ = 0;
    if (++layer_ < layers) return false;
    if (pending_ >= 0) {
        if (auto done = compress(); !done) return tl::unexpected(done.error());
    }
    pipeline_.synchronize();
    return true;
}

Result<void> DevicePrefill::embed(std::int64_t begin, std::int64_t count) {
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const GraphBuilder build{c, model_.hyper, model_.weights, nullptr};
    auto* ids = ggml_view_1d(c, places_[0].ids, count, size(begin) * sizeof(std::int32_t));
    auto* graph = new_graph(0, c);
    ggml_build_forward_expand(graph, ggml_cpy(c, build.embed(ids), hidden(0, c, begin, count)));
    return run(0, graph);
}

Result<void> DevicePrefill::run_chunk(std::int64_t begin, std::int64_t count) {
    const auto& hyper = model_.hyper;
    const auto end = begin + count;
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const GraphBuilder build{c, hyper, model_.weights, nullptr};
    const auto& layer = model_.weights.layers[size(layer_)];
    const auto stage = pipeline_.part_of(layer_);
    auto& place = places_[stage];
    auto* graph = new_graph(stage, c);
    auto* keys = place.keys[layer_ % 2];
    auto* values = place.values[layer_ % 2];

    auto* x = hidden(stage, c, begin, count);
    auto* positions = ggml_view_1d(c, place.positions, count, size(begin) * sizeof(std::int32_t));
    const auto part = build.project(layer, x, positions);
    const auto store = [&](ggml_tensor* from, ggml_tensor* rows) {
        auto* to = ggml_view_3d(c, rows, rows->ne[0], count, rows->ne[2], rows->nb[1], rows->nb[2],
                                size(begin) * rows->nb[1]);
        ggml_build_forward_expand(graph, ggml_cpy(c, ggml_permute(c, from, 0, 2, 1, 3), to));
    };
    store(part.k, keys);
    store(part.v, values);

    const auto window_begin = std::max(begin, tokens_ - window_);
    if (window_begin < end && !targets_.empty()) {
        auto* flat = ggml_reshape_2d(c, part.q, place.queries->ne[0], count);
        auto* from = columns(c, flat, window_begin - begin, end - window_begin);
        auto* to =
            columns(c, place.queries, window_begin - (tokens_ - window_), end - window_begin);
        ggml_build_forward_expand(graph, ggml_cpy(c, from, to));
    }
    const bool last_layer = layer_ + 1 == hyper.shape.layers;
    if (!last_layer || options_.all_tokens || end == tokens_) {
        const auto seen = whole_blocks(end);
        const auto rows = [&](ggml_tensor* all) {
            return ggml_view_3d(c, all, all->ne[0], seen, all->ne[2], all->nb[1], all->nb[2], 0);
        };
        auto* attended = ggml_flash_attn_ext(c, ggml_permute(c, part.q, 0, 2, 1, 3), rows(keys),
                                             rows(values), nullptr, shape_.scale, 0.0F, 0.0F);
        // Set by hand: ggml_flash_attn_ext wants a contiguous mask, the kernels any row stride.
        attended->src[3] = ggml_view_2d(c, place.causal, seen, count, place.causal->nb[1],
                                        size(padded_ - begin) * place.causal->nb[0]);
        ggml_flash_attn_ext_set_prec(attended, GGML_PREC_F32);
        auto* flat = ggml_reshape_2d(c, attended, shape_.dim_v * hyper.shape.query_heads, count);
        ggml_build_forward_expand(graph, build.finish_layer(layer, x, flat));
    }
    return run(stage, graph);
}

Result<void> DevicePrefill::observe() {
    pending_ = layer_;
    const auto& heads = model_.hyper.shape;
    const auto stage = pipeline_.part_of(layer_);
    auto& place = places_[stage];
    auto* backend = pipeline_.compute(stage).backend();
    auto* keys = place.keys[layer_ % 2];
    for (const Seen& seen : place.seen) {
        const auto context = make_context(kMostNodes);
        auto* c = context.get();
        auto* graph = new_graph(stage, c);
        const auto count = seen.looking.queries, skip = seen.looking.skip;
        auto* window = columns(c, place.queries, window_ - skip - count, count);
        auto* split = ggml_reshape_3d(c, window, shape_.dim_k, heads.query_heads, count);
        // [dim_k, queries of all query heads of a KV head, kv_heads]
        auto* queries = ggml_reshape_3d(c, ggml_cont(c, ggml_permute(c, split, 0, 2, 1, 3)),
                                        shape_.dim_k, count * heads.group(), heads.kv_heads);
        auto* rows = ggml_view_3d(c, keys, shape_.dim_k, tokens_, heads.kv_heads, keys->nb[1],
                                  keys->nb[2], 0);
        auto* products = ggml_mul_mat(c, rows, queries);
        ggml_mul_mat_set_prec(products, GGML_PREC_F32);
        auto* each =
            ggml_soft_max_ext(c, ggml_reshape_3d(c, products, tokens_, count, heads.query_heads),
                              seen.mask, shape_.scale, 0.0F);
        if (seen.weights != nullptr) each = ggml_mul(c, each, seen.weights);
        auto* sums = sum_over_queries(c, each);
        auto* mean = ggml_scale(c, ggml_reshape_2d(c, sums, tokens_, heads.query_heads),
                                1.0F / seen.counts.sum);
        ggml_build_forward_expand(graph, ggml_cpy(c, mean, seen.mean));
        if (auto done = run(stage, graph); !done) return done;
        ggml_backend_tensor_get_async(backend, seen.mean, seen.host->data, 0,
                                      ggml_nbytes(seen.mean));
    }
    if (place.observed) ggml_backend_event_record(place.observed.get(), backend);
    return {};
}

Result<void> DevicePrefill::compress() {
    const auto stage = pipeline_.part_of(pending_);
    auto& place = places_[stage];
    if (!place.seen.empty()) {
        if (place.observed) {
            ggml_backend_event_synchronize(place.observed.get());
        } else {
            ggml_backend_synchronize(pipeline_.compute(stage).backend());
        }
        place.lists_used = 0;  // the layer before was stored before this one was observed
    }
    const auto start = now_ms();
    if (!sentences_of_.empty() && sentences_.empty()) {
        sentences_ = sentence_starts(*model_.tokenizer, sentences_of_);
    }
    for (auto& target : targets_) {
        std::span<const float> observed;
        const auto looks = looking(target.method.needs());
        for (const Seen& seen : place.seen) {
            if (seen.looking != looks) continue;
            observed = {static_cast<const float*>(seen.host->data),
                        size(ggml_nelements(seen.host))};
        }
        if (options_.draft > 0 && !observed.empty()) {
            observed_.clear();
            for (std::int64_t head = 0; head < shape_.heads.query_heads; ++head) {
                const auto row = observed.subspan(size(head * tokens_), size(prompt_tokens()));
                observed_.insert(observed_.end(), row.begin(), row.end());
            }
            observed = observed_;
        }
        const LayerView view{.observed = observed, .sentences = sentences_};
        auto keep = target.method.keep_layer(pending_, view);
        if (auto done = compact(target, keep); !done) return done;
        for (auto& list : keep) target.kept.push_back(std::move(list));
    }
    compress_ms_ += now_ms() - start;
    pending_ = -1;
    return {};
}

Result<void> DevicePrefill::compact(DeviceTarget& target,
                                    std::span<const std::vector<std::int32_t>> keep) {
    auto& cache = *target.cache;
    std::vector<std::int64_t> rows;
    for (const auto& list : keep) rows.push_back(static_cast<std::int64_t>(list.size()));
    if (auto added = cache.add_layer(pending_, rows); !added) return added;
    const auto& layer = cache.layer(pending_);

    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const auto stage = pipeline_.part_of(pending_);
    auto& place = places_[stage];
    const auto& compute = pipeline_.compute(stage);
    auto* graph = new_graph(stage, c);
    std::vector<std::int32_t> chosen;  // of every group: rows to take, then where they go
    for (const auto& group : layer.groups) {
        const auto& about = cache.row_class(group.row_class);
        const auto first = static_cast<std::int64_t>(chosen.size());
        std::vector<std::int32_t> counts, places;
        for (std::size_t i = 0; i < group.heads.size(); ++i) {
            const auto& list = keep[size(group.heads[i])];
            const auto from = static_cast<std::int32_t>(group.heads[i] * padded_);
            for (const auto position : list) chosen.push_back(from + position);
            const auto to = static_cast<std::int32_t>(
                group.row(about, target.slot, static_cast<std::int64_t>(i)));
            for (std::size_t row = 0; row < list.size(); ++row) {
                places.push_back(to + static_cast<std::int32_t>(row));
            }
            counts.push_back(static_cast<std::int32_t>(list.size()));
        }
        const auto count = static_cast<std::int64_t>(places.size());
        chosen.insert(chosen.end(), places.begin(), places.end());
        const auto indices = [&](std::int64_t begin) {
            return ggml_view_1d(c, place.chosen, count, size(begin) * sizeof(std::int32_t));
        };
        auto* rows_from = indices(first);
        auto* rows_to = indices(first + count);
        const auto move = [&](ggml_tensor* from, ggml_tensor* to) {
            auto* all = ggml_reshape_2d(c, from, from->ne[0], padded_ * from->ne[2]);
            auto* taken = ggml_get_rows(c, all, rows_from);
            if (ggml_is_quantized(to->type)) taken = compute.rotated(c, taken);
            ggml_build_forward_expand(graph, ggml_set_rows(c, to, taken, rows_to));
        };
        move(place.keys[pending_ % 2], layer.keys);
        move(place.values[pending_ % 2], layer.values);
        cache.set_counts(group.row_class, target.slot, counts);
    }
    // From memory that the device reads by itself: from any other the host would wait here until
    // the device has come this far, and the device then for the host to queue its next work.
    if (place.lists_used + std::ssize(chosen) > ggml_nelements(place.host_lists)) {
        ggml_backend_synchronize(compute.backend());
        place.lists_used = 0;
    }
    const auto lists = std::span(static_cast<std::int32_t*>(place.host_lists->data),
                                 size(ggml_nelements(place.host_lists)))
                           .subspan(size(place.lists_used), chosen.size());
    std::ranges::copy(chosen, lists.begin());
    place.lists_used += std::ssize(chosen);
    ggml_backend_tensor_set_async(compute.backend(), place.chosen, lists.data(), 0,
                                  lists.size_bytes());
    return run(stage, graph);
}

Result<std::vector<float>> DevicePrefill::logits(std::int64_t first, std::int64_t count) {
    const auto context = make_context(kMostNodes);
    auto* c = context.get();
    const GraphBuilder build{c, model_.hyper, model_.weights, nullptr};
    const auto stage = pipeline_.size() - 1;
    auto* backend = pipeline_.compute(stage).backend();
    const auto own_context = make_context(1);
    ggml_backend_buffer_ptr own;  // of a stage that only makes the logits
    ggml_tensor* x = nullptr;
    if (pipeline_[stage].layers > 0) {
        x = hidden(stage, c, first, count);
    } else {
        x = ggml_new_tensor_2d(own_context.get(), GGML_TYPE_F32, model_.hyper.embedding, count);
        own.reset(ggml_backend_alloc_ctx_tensors(own_context.get(), backend));
        if (!own) return failure("not enough memory for the logits of {} tokens", count);
        pipeline_.hand_over(stage - 1, stage, hidden(stage - 1, c, first, count), x);
    }
    auto* node = build.logits(x);
    auto* graph = new_graph(stage, c);
    ggml_build_forward_expand(graph, node);
    if (auto done = run(stage, graph); !done) return tl::unexpected(done.error());
    std::vector<float> result(size(ggml_nelements(node)));
    ggml_backend_synchronize(backend);
    ggml_backend_tensor_get(node, result.data(), 0, ggml_nbytes(node));
    return result;
}

}  // namespace headkv
