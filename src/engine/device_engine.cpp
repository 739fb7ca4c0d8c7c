#include "engine/device_engine.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <numeric>
#include <set>

#include "engine/capacity.h"
#include "engine/graph.h"
#include "engine/text_probabilities.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

ggml_type ggml_type_of(StoreStep step) {
    switch (step) {
        case StoreStep::f16:
            break;
        case StoreStep::q8_0:
            return GGML_TYPE_Q8_0;
        case StoreStep::q4_0:
            return GGML_TYPE_Q4_0;
    }
    return GGML_TYPE_F16;
}

}  // namespace

// The graphs of a step over some slots of some caches, one a stage; built once, run many times.
struct DeviceEngine::Step {
    struct Piece {
        ggml_context_ptr inputs_context, context;
        ggml_backend_buffer_ptr inputs_buffer;
        ggml_gallocr_ptr allocator;
        ggml_cgraph* graph = nullptr;
        ggml_tensor* key = nullptr;  // its first node
        // i32: token ids [tokens], positions [tokens], then per share: places in its masks and, as
        // f32, what these become [heads x slots of all classes, each]; for each of `patterns` the
        // rows that a layer's heads write to [slots x kv_heads]; where queries go in the log
        // [slots]. One copy a step.
        ggml_tensor* packed = nullptr;
        std::vector<std::vector<std::int64_t>> patterns;  // [shares] a layer of each way to lie
        ggml_tensor* from =
            nullptr;  // f32 [embedding, tokens] of the stage before, if there is one
        // To the next stage f32 [embedding, tokens]; of the last one the logits, f32 [vocabulary,
        // tokens], or the best tokens, i32 [tokens].
        ggml_tensor* result = nullptr;
    };
    std::vector<Share> shares;
    bool want_logits = false;
    std::int64_t tokens = 0;
    std::vector<Piece> pieces;  // [stages]
};

// Builds the attention of one layer over all shares.
struct DeviceEngine::Attention {
    struct Inputs {                                       // of a share
        std::vector<std::size_t> pattern;                 // [layers of the stage]
        std::vector<ggml_tensor*> rows;                   // [patterns] i32 [slots x kv_heads]
        ggml_tensor *log = nullptr, *log_rows = nullptr;  // null: none is kept
    };
    const Compute& compute;
    ggml_context* c;
    ggml_cgraph* graph;
    const AttentionShape& shape;
    std::int64_t first_layer;  // of the stage
    std::span<const Share> shares;
    std::span<const Inputs> inputs;  // [shares]
    // By their values: see constant().
    std::map<std::vector<std::int32_t>, ggml_tensor*>& gathers;
    std::vector<std::pair<ggml_tensor*, std::vector<std::int32_t>>>& constants;

    // A constant of the graph, i32, made once for equal values.
    ggml_tensor* constant(const std::vector<std::int32_t>& values) const {
        auto& tensor = gathers[values];
        if (tensor == nullptr) {
            tensor = ggml_new_tensor_1d(c, GGML_TYPE_I32, static_cast<std::int64_t>(values.size()));
            ggml_set_input(tensor);
            ggml_set_output(tensor);
            constants.emplace_back(tensor, values);
        }
        return tensor;
    }

    // What a share's cache wants of a layer's projections: as they are or, for quantised rows,
    // rotated. `turned`: those made for this layer already.
    GraphBuilder::Projections wanted(const DeviceCache::Shape& cache,
                                     const GraphBuilder::Projections& part,
                                     GraphBuilder::Projections& turned) const {
        const auto turn = [&](ggml_tensor* from, ggml_tensor*& known) {
            return known = known != nullptr ? known : compute.rotated(c, from);
        };
        auto result = part;
        if (ggml_is_quantized(cache.type_k)) {
            result.q = turn(part.q, turned.q);
            result.k = turn(part.k, turned.k);
        }
        if (ggml_is_quantized(cache.type_v)) result.v = turn(part.v, turned.v);
        return result;
    }

    // [dim_v * query_heads, slots] of one share; its tokens begin at `first`.
    ggml_tensor* of(std::size_t which, std::int64_t layer, std::int64_t first,
                    const GraphBuilder::Projections& part) const {
        const auto& share = shares[which];
        const auto& mine = inputs[which];
        auto& cache = *share.cache;
        const auto slots = share.slots;
        const auto kv_heads = shape.heads.kv_heads;
        const auto group = shape.heads.group();
        const auto& held = cache.layer(layer);
        // [width * kv_heads, tokens] -> the share's [width, slots x kv_heads]
        const auto own = [&](ggml_tensor* from, std::int64_t width) {
            return ggml_view_2d(c, from, width, slots * kv_heads, size(width) * sizeof(float),
                                size(first * kv_heads * width) * sizeof(float));
        };
        const auto store = [&](ggml_tensor* from, ggml_tensor* to) {
            ggml_build_forward_expand(
                graph, ggml_set_rows(c, to, own(from, to->ne[0]),
                                     mine.rows[mine.pattern[size(layer - first_layer)]]));
        };
        store(part.k, held.keys);
        store(part.v, held.values);
        const auto width = shape.dim_k * group;
        auto* queries = own(part.q, width);
        if (mine.log != nullptr) {
            auto* log = ggml_view_2d(c, mine.log, mine.log->ne[0], mine.log->ne[1], mine.log->nb[1],
                                     size(layer - first_layer) * mine.log->nb[2]);
            auto* flat = ggml_reshape_2d(c, queries, width * kv_heads, slots);
            ggml_build_forward_expand(graph, ggml_set_rows(c, log, flat, mine.log_rows));
        }
        // Group by group, slot by slot, and back: one gather for all groups each way.
        std::vector<std::int32_t> there, back(size(slots * kv_heads));
        for (const auto& one : held.groups) {
            for (std::int64_t slot = 0; slot < slots; ++slot) {
                for (const auto head : one.heads) {
                    const auto at = static_cast<std::int32_t>(slot * kv_heads) + head;
                    back[size(at)] = static_cast<std::int32_t>(there.size());
                    there.push_back(at);
                }
            }
        }
        const bool in_order = std::is_sorted(there.begin(), there.end());
        if (!in_order) queries = ggml_get_rows(c, queries, constant(there));
        ggml_tensor* all = nullptr;
        std::int64_t done = 0;
        for (const auto& one : held.groups) {
            const auto& about = cache.row_class(one.row_class);
            const auto columns = about.heads() * slots;
            auto* q = ggml_view_4d(c, queries, shape.dim_k, 1, group, columns, queries->nb[1],
                                   size(shape.dim_k) * sizeof(float), queries->nb[1],
                                   size(done) * queries->nb[1]);
            const auto used = [&](ggml_tensor* rows) {
                // The last dimension by hand, as in DeviceCache::describe.
                auto* view = ggml_view_4d(c, rows, rows->ne[0], rows->ne[1], 1, 1, rows->nb[1],
                                          rows->nb[2], rows->nb[3], 0);
                view->ne[3] = columns;
                return view;
            };
            auto* attended = compute.attend(c, q, used(one.keys), used(one.values),
                                            used(about.mask), shape.scale);
            attended = ggml_reshape_2d(c, attended, shape.dim_v * group, columns);
            all = all == nullptr ? attended : ggml_concat(c, all, attended, 1);
            done += columns;
        }
        if (!in_order) all = ggml_get_rows(c, all, constant(back));
        if (ggml_is_quantized(cache.shape().type_v)) {
            all =
                compute.rotated(c, ggml_reshape_2d(c, all, shape.dim_v, group * slots * kv_heads));
        }
        return ggml_reshape_2d(c, all, shape.dim_v * shape.heads.query_heads, slots);
    }
};

DeviceEngine::DeviceEngine(const Pipeline& pipeline, std::shared_ptr<const Model> model,
                           const EngineOptions& options)
    : pipeline_(pipeline),
      model_(std::move(model)),
      options_(options),
      peak_bytes_(pipeline.size(), 0) {
    const auto& hyper = model_->impl().hyper;
    shape_ = {hyper.shape, hyper.head_dim_k, hyper.head_dim_v,
              1.0F / std::sqrt(static_cast<float>(hyper.head_dim_k))};
}

DeviceEngine::~DeviceEngine() = default;

// --- prefill

Result<DeviceEngine::Place> DeviceEngine::place_for(const Method& method,
                                                    std::int64_t expected_new_tokens) {
    const auto& config = method.config();
    const bool grows = method.recipe().allocate == AllocateStep::all;
    const auto reserve =
        std::max<std::int64_t>(1, grows ? expected_new_tokens : config.options.reserve);
    const auto observe =
        std::max<std::int64_t>(options_.keep_queries ? 1 : 0, method.observe_answer());
    std::string key;
    if (!method.rows_follow_prompt()) {
        // Whole blocks of a group have room for others.
        const auto room = config.layout.groups > 0 ? whole_blocks(reserve) : reserve;
        key = fmt::format("{} {} {}x{} {} {}", ggml_type_name(ggml_type_of(config.store.keys)),
                          ggml_type_name(ggml_type_of(config.store.values)), config.layout.multiple,
                          config.layout.groups, room, observe);
        for (const auto rows : method.plan().rows) key += fmt::format(" {}", rows);
        // A cache whose slots are all taken stays with its sequences; the next ones get another.
        const auto found = caches_.find(key);
        const auto slot = found == caches_.end() ? -1 : found->second->take_slot();
        if (slot >= 0) return Place{found->second, slot};
    }
    const DeviceCache::Shape shape{shape_,
                                   ggml_type_of(config.store.keys),
                                   ggml_type_of(config.store.values),
                                   reserve,
                                   key.empty() ? 1 : std::max<std::int64_t>(1, options_.slots),
                                   observe,
                                   config.layout};
    auto cache = std::make_shared<DeviceCache>(pipeline_, shape);
    if (!key.empty()) {
        if (auto added = cache->add_layers(method.plan().rows); !added) {
            return tl::unexpected(added.error());
        }
        caches_[key] = cache;
    }
    return Place{cache, cache->take_slot()};
}

Result<Method> DeviceEngine::method_for(const MethodConfig& config, const HeadShape& shape,
                                        std::int64_t prompt_tokens, std::int64_t row_bytes,
                                        std::int64_t slots) {
    auto method = Method::create(config, shape, prompt_tokens, row_bytes);
    if (!method) return method;
    if (auto can = supports(*method); !can) return tl::unexpected(can.error());
    if (config.layout != RowLayout()) return method;
    MethodConfig placed = config;
    placed.layout = device_layout(*method, row_bytes, slots);
    if (placed.layout == config.layout) return method;
    return Method::create(placed, shape, prompt_tokens, row_bytes);
}

Result<void> DeviceEngine::supports(const Method& method) {
    if (method.recipe().allocate == AllocateStep::global) {
        return bad_input(
            "{} lets the rows of all layers compete, which a device does not: use --device cpu",
            method.recipe().name);
    }
    if (method.merges()) {
        return bad_input(
            "merging rows changes values, and rows stay on the device as they are: use --device "
            "cpu, or leave --merge out");
    }
    if (method.in_cache_positions()) {
        return bad_input(
            "positions in the cache turn keys, and rows stay on the device as they are: use "
            "--device cpu, or --positions text");
    }
    if (method.config().share) {
        return bad_input("{} shares rows between layers, which a device does not: use --device cpu",
                         method.recipe().name);
    }
    if (recall_of(method.config(), method.recipe())) {
        return bad_input("{} keeps every row in host memory for recall: use --device cpu",
                         method.recipe().name);
    }
    constexpr std::int64_t kMostObserved = 1024;  // their weights are held all at once
    const auto needs = method.needs();
    // Squares would be computed there if some method that runs there looked at them.
    const LayerNeeds can{.queries = needs.queries,
                         .skip = needs.skip,
                         .draft = needs.draft,
                         .query_decay = needs.query_decay,
                         .sentences = needs.sentences};
    if (needs != can) {
        return bad_input(
            "{} looks at more than attention, and rows stay on the device: use "
            "--device cpu",
            method.recipe().name);
    }
    if (needs.queries > kMostObserved) {
        return bad_input(
            "{} looks at the attention of {} queries, a device computes at most {} of a prompt: "
            "use --device cpu",
            method.recipe().name, needs.queries, kMostObserved);
    }
    return {};
}

Result<std::unique_ptr<DevicePrefill>> DeviceEngine::start_prefill(
    std::span<const Token> prompt, std::span<const MethodConfig> configs,
    std::span<const Token> draft, std::int64_t expected_new_tokens) {
    const auto& hyper = model_->impl().hyper;
    // All that may fail comes before the first slot is taken.
    std::vector<Method> methods;
    for (const MethodConfig& config : configs) {
        const auto bytes = row_bytes(config.store, hyper.head_dim_k, hyper.head_dim_v);
        if (!bytes) return tl::unexpected(bytes.error());
        auto method = method_for(config, hyper.shape, std::ssize(prompt), *bytes, options_.slots);
        if (!method) return tl::unexpected(method.error());
        methods.push_back(std::move(*method));
    }
    drop_unused();
    std::vector<DeviceTarget> targets;
    for (Method& method : methods) {
        auto place = place_for(method, expected_new_tokens);
        if (!place) {
            for (const auto& target : targets) target.cache->free_slot(target.slot);
            drop_unused();
            return tl::unexpected(place.error());
        }
        targets.push_back({std::move(method), std::move(place->cache), place->slot});
    }
    DevicePrefill::Options chosen;
    if (options_.chunk != EngineOptions().chunk) chosen.chunk = options_.chunk;
    chosen.draft = std::ssize(draft);
    std::vector<Token> text(prompt.begin(), prompt.end());
    text.insert(text.end(), draft.begin(), draft.end());
    return DevicePrefill::create(pipeline_, *model_, text, std::move(targets), chosen);
}

std::vector<SequenceId> DeviceEngine::take(DevicePrefill& prefill, SequenceId& next) {
    std::vector<SequenceId> ids;
    const auto kv_heads = shape_.heads.kv_heads;
    for (auto& target : prefill.targets()) {
        std::int64_t rows = 0;
        std::vector<std::int64_t> stage_bytes(pipeline_.size(), 0);
        for (std::size_t at = 0; at < target.kept.size(); ++at) {
            const auto held = static_cast<std::int64_t>(target.kept[at].size());
            const auto layer = static_cast<std::int64_t>(at) / kv_heads;
            stage_bytes[pipeline_.part_of(layer)] += held * target.cache->row_bytes();
            rows += held;
        }
        const auto bytes = rows * target.cache->row_bytes();
        ids.push_back(next);
        const auto tokens = prefill.prompt_tokens();
        sequences_.emplace(
            next++,
            Sequence{std::move(target.method), std::move(target.cache), target.slot, tokens, tokens,
                     bytes, rows, std::move(target.kept), tokens, 0, std::move(stage_bytes)});
    }
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        peak_bytes_[stage] =
            std::max(peak_bytes_[stage], bytes_in_use(stage) + prefill.scratch_bytes(stage));
    }
    prefill.targets().clear();
    return ids;
}

Result<std::vector<float>> DeviceEngine::log_probabilities(std::span<const Token> text,
                                                           const Progress& progress) {
    DevicePrefill::Options chosen;
    chosen.all_tokens = true;
    auto prefill = DevicePrefill::create(pipeline_, *model_, text, {}, chosen);
    if (!prefill) return tl::unexpected(prefill.error());
    return text_log_probabilities(**prefill, text, shape_.heads.layers, model_->info().vocabulary,
                                  progress);
}

// --- decode

void DeviceEngine::drop_graphs(const DeviceCache& cache) {
    steps_.remove_if([&](const Step& step) {
        return std::any_of(step.shares.begin(), step.shares.end(),
                           [&](const Share& share) { return share.cache.get() == &cache; });
    });
}

Result<DeviceEngine::Step*> DeviceEngine::step_graph(std::span<const Share> shares,
                                                     bool want_logits) {
    for (auto it = steps_.begin(); it != steps_.end(); ++it) {
        if (it->want_logits == want_logits && std::ranges::equal(it->shares, shares)) {
            steps_.splice(steps_.begin(), steps_, it);
            return &steps_.front();
        }
    }
    Step step;
    step.shares.assign(shares.begin(), shares.end());
    step.want_logits = want_logits;
    for (const Share& share : shares) step.tokens += share.slots;
    step.pieces.resize(pipeline_.size());
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        if (auto built = stage_graph(step, stage); !built) return tl::unexpected(built.error());
    }
    steps_.push_front(std::move(step));
    note_peak();
    if (std::ssize(steps_) > kMostGraphs) steps_.pop_back();
    return &steps_.front();
}

Result<void> DeviceEngine::stage_graph(Step& step, std::size_t stage) {
    const auto& impl = model_->impl();
    const auto& part = pipeline_[stage];
    auto& compute = pipeline_.compute(stage);
    auto& piece = step.pieces[stage];
    const auto& shares = step.shares;
    std::vector<Attention::Inputs> inputs;
    std::int64_t entries = 2 * step.tokens;
    for (const Share& share : shares) {
        auto& of_share = inputs.emplace_back();
        auto& patterns = piece.patterns.emplace_back();
        for (auto layer = part.first; layer < part.end(); ++layer) {
            const auto same = [&](std::int64_t other) {
                return share.cache->same_places(layer, other);
            };
            const auto found = std::find_if(patterns.begin(), patterns.end(), same);
            of_share.pattern.push_back(static_cast<std::size_t>(found - patterns.begin()));
            if (found == patterns.end()) patterns.push_back(layer);
        }
        entries += 2 * share.cache->heads_of_classes(stage) * share.slots +
                   static_cast<std::int64_t>(patterns.size()) * share.slots * shape_.heads.kv_heads;
        if (share.logs) entries += share.slots;
    }
    piece.inputs_context = make_context(2);
    piece.packed = ggml_new_tensor_1d(piece.inputs_context.get(), GGML_TYPE_I32, entries);
    if (stage > 0) {
        piece.from = ggml_new_tensor_2d(piece.inputs_context.get(), GGML_TYPE_F32,
                                        impl.hyper.embedding, step.tokens);
    }
    piece.inputs_buffer.reset(
        ggml_backend_alloc_ctx_tensors(piece.inputs_context.get(), compute.backend()));
    const auto too_little = [&] {
        return failure("not enough memory on {} to decode {} tokens at once",
                       ggml_backend_name(compute.backend()), step.tokens);
    };
    if (!piece.inputs_buffer) return too_little();

    auto nodes = part.layers * 48 + entries / 8 + 256;
    for (const Share& share : shares) {
        for (auto layer = part.first; layer < part.end(); ++layer) {
            nodes += 32 + 16 * std::ssize(share.cache->layer(layer).groups);
        }
    }
    piece.context = make_context(nodes);
    auto* c = piece.context.get();
    piece.key = compute.new_key();
    piece.graph = compute.new_graph(c, nodes, piece.key);
    std::int64_t offset = 0;
    const auto next = [&](std::int64_t count) {
        auto* view = ggml_view_1d(c, piece.packed, count, size(offset) * sizeof(std::int32_t));
        offset += count;
        return view;
    };
    auto* ids = next(step.tokens);
    auto* positions = next(step.tokens);
    for (std::size_t i = 0; i < shares.size() && part.layers > 0; ++i) {
        const Share& share = shares[i];
        const auto masks = share.cache->masks(stage);
        if (!masks) return tl::unexpected(masks.error());
        const auto count = share.cache->heads_of_classes(stage) * share.slots;
        auto* places = next(count);
        auto* values = next(count);
        values->type = GGML_TYPE_F32;  // the same bytes
        ggml_build_forward_expand(
            piece.graph, ggml_set_rows(c, *masks, ggml_reshape_2d(c, values, 1, count), places));
        for (std::size_t k = 0; k < piece.patterns[i].size(); ++k) {
            inputs[i].rows.push_back(next(share.slots * shape_.heads.kv_heads));
        }
        if (!share.logs) continue;
        const auto log = share.cache->log(stage);
        if (!log) return tl::unexpected(log.error());
        inputs[i].log = *log;
        inputs[i].log_rows = next(share.slots);
    }
    std::map<std::vector<std::int32_t>, ggml_tensor*> gathers;
    std::vector<std::pair<ggml_tensor*, std::vector<std::int32_t>>> constants;
    const Attention attention{compute, c,      piece.graph, shape_,   part.first,
                              shares,  inputs, gathers,     constants};
    const GraphBuilder build{c, impl.hyper, impl.weights, nullptr};
    auto* x = stage == 0 ? build.embed(ids) : piece.from;
    for (auto layer = part.first; layer < part.end(); ++layer) {
        const auto& weights = impl.weights.layers[size(layer)];
        const auto projected = build.project(weights, x, positions);
        GraphBuilder::Projections turned{};
        ggml_tensor* all = nullptr;
        std::int64_t first = 0;
        for (std::size_t i = 0; i < shares.size(); ++i) {
            const auto mine = attention.wanted(shares[i].cache->shape(), projected, turned);
            auto* one = attention.of(i, layer, first, mine);
            all = all == nullptr ? one : ggml_concat(c, all, one, 1);
            first += shares[i].slots;
        }
        x = build.finish_layer(weights, x, all);
    }
    if (pipeline_.is_last(stage)) {
        x = build.logits(x);
        if (!step.want_logits) x = ggml_argmax(c, x);
    }
    piece.result = x;
    ggml_set_output(piece.result);
    ggml_build_forward_expand(piece.graph, piece.result);
    for (int i = 0; i < ggml_graph_n_nodes(piece.graph); ++i) {
        const auto* node = ggml_graph_node(piece.graph, i);
        if (ggml_backend_supports_op(compute.backend(), node)) continue;
        return failure(
            "{} cannot compute {} here (rows stored as {} and {}); use --kv-type f16 or "
            "--device cpu",
            ggml_backend_name(compute.backend()), ggml_op_desc(node),
            ggml_type_name(shares[0].cache->shape().type_k),
            ggml_type_name(shares[0].cache->shape().type_v));
    }
    piece.allocator.reset(
        ggml_gallocr_new(ggml_backend_get_default_buffer_type(compute.backend())));
    if (!ggml_gallocr_alloc_graph(piece.allocator.get(), piece.graph)) return too_little();
    for (const auto& [tensor, values] : constants) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }
    return {};
}

Result<void> DeviceEngine::step(std::span<const DecodeInput> inputs, bool want_logits) {
    std::vector<Share> shares;
    Slots of_slot;
    std::vector<const DeviceCache*> touched;
    for (const auto& input : inputs) touched.push_back(sequences_.at(input.sequence).cache.get());
    // Sequences that wait beside them need room as well: their slots are written to, see below.
    for (auto& [id, sequence] : sequences_) {
        if (std::find(touched.begin(), touched.end(), sequence.cache.get()) == touched.end() ||
            sequence.cache->room(sequence.slot) > 0) {
            continue;
        }
        if (auto made = make_room(sequence); !made) return made;
    }
    for (const auto& input : inputs) {
        auto& sequence = sequences_.at(input.sequence);
        auto& slots = of_slot[sequence.cache.get()];
        if (slots.empty()) {
            slots.assign(size(sequence.cache->shape().slots), nullptr);
            shares.push_back({sequence.cache, 0});
        }
        slots[size(sequence.slot)] = &input;
    }
    for (auto& share : shares) {
        share.slots = share.cache->span();
        share.logs = options_.keep_queries;
        // The last queries before the reserve is full do the next selection.
        for (const auto* input : of_slot[share.cache.get()]) {
            if (input == nullptr) continue;
            const auto& sequence = sequences_.at(input->sequence);
            if (sequence.method.recipe().allocate == AllocateStep::all) continue;
            share.logs |= share.cache->room(sequence.slot) <= share.cache->shape().observe;
        }
    }
    const auto graph = step_graph(shares, want_logits);
    if (!graph) return tl::unexpected(graph.error());
    Step& step = **graph;

    std::vector<std::int32_t> packed;  // ids and positions
    packed.resize(size(2 * step.tokens), 0);
    std::size_t next = 0;
    std::map<SequenceId, std::size_t> column;
    for (const Share& share : shares) {
        const auto& slots = of_slot[share.cache.get()];
        for (std::int64_t slot = 0; slot < share.slots; ++slot, ++next) {
            const auto* input = slots[size(slot)];
            if (input == nullptr) continue;
            column[input->sequence] = next;
            packed[next] = input->token;
            packed[size(step.tokens) + next] =
                static_cast<std::int32_t>(sequences_.at(input->sequence).tokens);
        }
    }
    std::vector<std::vector<std::int32_t>> sent(step.pieces.size(), packed);  // [stages]
    for (std::size_t stage = 0; stage < step.pieces.size(); ++stage) {
        const auto& piece = step.pieces[stage];
        auto& mine = sent[stage];
        mine.resize(size(ggml_nelements(piece.packed)), 0);
        next = size(2 * step.tokens);
        for (std::size_t i = 0; i < shares.size() && pipeline_[stage].layers > 0; ++i) {
            pack_share(step, stage, i, of_slot, mine, next);
        }
        const auto& compute = pipeline_.compute(stage);
        ggml_backend_tensor_set_async(compute.backend(), piece.packed, mine.data(), 0,
                                      ggml_nbytes(piece.packed));
        if (stage > 0) {
            pipeline_.hand_over(stage - 1, stage, step.pieces[stage - 1].result, piece.from);
        }
        if (auto done = compute.start(piece.graph); !done) return done;
    }
    auto* backend = pipeline_.compute(pipeline_.size() - 1).backend();
    auto* result = step.pieces.back().result;
    token_of_.clear();
    best_.clear();
    if (want_logits) {
        logits_.resize(size(ggml_nelements(result)));
        ggml_backend_tensor_get_async(backend, result, logits_.data(), 0, ggml_nbytes(result));
        ggml_backend_synchronize(backend);
        for (const auto& input : inputs) token_of_.push_back(column.at(input.sequence));
    } else {
        std::vector<std::int32_t> best(size(step.tokens));
        ggml_backend_tensor_get_async(backend, result, best.data(), 0, ggml_nbytes(result));
        ggml_backend_synchronize(backend);
        for (const auto& input : inputs) best_.push_back(best[column.at(input.sequence)]);
    }
    for (const Share& share : shares) {
        for (const auto* input : of_slot[share.cache.get()]) {
            if (input == nullptr) continue;
            auto& sequence = sequences_.at(input->sequence);
            ++sequence.tokens;
            sequence.logged = share.logs ? sequence.logged + 1 : 0;
        }
    }
    return {};
}

// What a step writes where in a stage's layers of one share, and the rows that these thereby hold
// more.
void DeviceEngine::pack_share(const Step& step, std::size_t stage, std::size_t which,
                              const Slots& of_slot, std::vector<std::int32_t>& packed,
                              std::size_t& next) {
    const Share& share = step.shares[which];
    auto& cache = *share.cache;
    const auto& inputs = of_slot.at(&cache);
    const auto closed = std::bit_cast<std::int32_t>(-INFINITY);
    const auto heads = size(cache.heads_of_classes(stage) * share.slots);
    // A slot that waits writes where it will write next, and keeps it masked; one that is free
    // keeps seeing something. What a free slot holds is nobody's.
    const auto next_row = [](const DeviceCache::Class& about, std::int64_t at) {
        return about.count[size(at)] - (about.room(at) > 0 ? 0 : 1);
    };
    auto behind = next + 2 * heads;
    for (const auto layer : step.pieces[stage].patterns[which]) {
        for (const auto& group : cache.layer(layer).groups) {
            const auto& about = cache.row_class(group.row_class);
            for (std::int64_t slot = 0; slot < share.slots; ++slot) {
                for (std::int64_t i = 0; i < about.heads(); ++i) {
                    const auto row =
                        group.row(about, slot, i) + next_row(about, slot * about.heads() + i);
                    packed[behind + size(slot * shape_.heads.kv_heads + group.heads[size(i)])] =
                        static_cast<std::int32_t>(row);
                }
            }
        }
        behind += size(share.slots * shape_.heads.kv_heads);
    }
    for (std::size_t i = 0; i < cache.classes(); ++i) {
        auto& about = cache.row_class(i);
        if (about.stage != stage) continue;
        for (std::int64_t at = 0; at < about.heads() * share.slots; ++at, ++next) {
            const bool active = inputs[size(at / about.heads())] != nullptr;
            const auto row = next_row(about, at);
            packed[next] = static_cast<std::int32_t>(about.mask_row(at) + row);
            packed[next + heads] = active || row == 0 ? 0 : closed;
            if (active) ++about.count[size(at)];
        }
    }
    next = behind;
    if (!share.logs) return;
    const auto ring = cache.shape().observe;
    for (std::int64_t slot = 0; slot < share.slots; ++slot, ++next) {
        const auto* input = inputs[size(slot)];
        packed[next] = static_cast<std::int32_t>(
            input == nullptr ? cache.shape().slots * ring  // nobody's
                             : slot * ring + sequences_.at(input->sequence).logged % ring);
    }
}

std::int64_t DeviceEngine::step_nodes() const {
    std::int64_t nodes = 0;
    if (steps_.empty()) return nodes;
    for (const Step::Piece& piece : steps_.front().pieces) {
        for (int i = 0; i < ggml_graph_n_nodes(piece.graph); ++i) {
            const auto op = ggml_graph_node(piece.graph, i)->op;
            const bool free = op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE ||
                              op == GGML_OP_PERMUTE;
            if (!free) ++nodes;
        }
    }
    return nodes;
}

std::span<const float> DeviceEngine::logits(std::size_t input) const {
    const auto vocabulary = size(model_->info().vocabulary);
    return std::span(logits_).subspan(token_of_[input] * vocabulary, vocabulary);
}

// --- sequences

void DeviceEngine::leave(const Sequence& sequence) {
    sequence.cache->free_slot(sequence.slot);
    if (sequence.cache->span() > 0) return;
    // Nobody is left: its memory goes back.
    drop_graphs(*sequence.cache);
    std::erase_if(caches_, [&](const auto& pair) { return pair.second == sequence.cache; });
}

void DeviceEngine::release(SequenceId id) {
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) return;
    leave(found->second);
    sequences_.erase(found);
}

void DeviceEngine::drop_unused() {
    std::erase_if(caches_, [&](const auto& pair) {
        if (pair.second->span() > 0) return false;
        drop_graphs(*pair.second);
        return true;
    });
}

bool DeviceEngine::idle() const {
    return sequences_.empty() &&
           std::ranges::none_of(caches_, [](const auto& pair) { return pair.second->span() > 0; });
}

// All rows of a sequence into a slot of a cache of the same layout with at least its capacities.
Result<void> DeviceEngine::copy_rows(const Sequence& from, DeviceCache& to, std::int64_t slot) {
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        if (auto done = copy_stage(from, to, slot, stage); !done) return done;
    }
    return {};
}

Result<void> DeviceEngine::copy_stage(const Sequence& from, DeviceCache& to, std::int64_t slot,
                                      std::size_t stage) {
    const auto& part = pipeline_[stage];
    const auto& compute = pipeline_.compute(stage);
    // Of each head, keys and values: both sides' rows, a view of each, and the copy.
    const auto nodes = part.layers * shape_.heads.kv_heads * 2 * 3 + 16;
    const auto context = make_context(nodes);
    auto* c = context.get();
    auto* graph = compute.new_graph(c, nodes, compute.key_of_passing_graphs());
    for (auto layer = part.first; layer < part.end(); ++layer) {
        if (auto added = to.add_layer(layer, from.cache->rows_kept(layer)); !added) return added;
        const auto& mine = from.cache->layer(layer);
        const auto& theirs = to.layer(layer);
        for (std::size_t g = 0; g < mine.groups.size(); ++g) {
            const auto& about = from.cache->row_class(mine.groups[g].row_class);
            const auto& target = to.row_class(theirs.groups[g].row_class);
            const std::span counts(about.count.data() + from.slot * about.heads(),
                                   size(about.heads()));
            // As 16-bit numbers, whatever the rows are: they move as they are.
            const auto view = [&](ggml_tensor* all, std::int64_t first, std::int64_t count) {
                auto* rows =
                    ggml_view_2d(c, all, all->ne[0], count, all->nb[1], size(first) * all->nb[1]);
                rows->type = GGML_TYPE_F16;
                rows->ne[0] = static_cast<std::int64_t>(all->nb[1] / sizeof(std::uint16_t));
                rows->nb[0] = sizeof(std::uint16_t);
                return rows;
            };
            for (std::int64_t head = 0; head < about.heads(); ++head) {
                const auto count = std::max(1, counts[size(head)]);
                const auto source = mine.groups[g].row(about, from.slot, head);
                const auto place = theirs.groups[g].row(target, slot, head);
                const auto move = [&](ggml_tensor* one, ggml_tensor* other) {
                    auto* copied = ggml_cpy(c, view(one, source, count), view(other, place, count));
                    ggml_build_forward_expand(graph, copied);
                };
                move(mine.keys, theirs.keys);
                move(mine.values, theirs.values);
            }
            to.set_counts(theirs.groups[g].row_class, slot, counts);
        }
    }
    return compute.run(graph);
}

Result<void> DeviceEngine::copy_log(const Sequence& from, DeviceCache& to, std::int64_t slot) {
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        if (pipeline_[stage].layers == 0) continue;
        const auto& compute = pipeline_.compute(stage);
        const auto source = from.cache->log(stage), target = to.log(stage);
        if (!source) return tl::unexpected(source.error());
        if (!target) return tl::unexpected(target.error());
        const auto context = make_context(16);
        auto* c = context.get();
        auto* graph = compute.new_graph(c, 16, compute.key_of_passing_graphs());
        const auto ring = to.shape().observe;
        const auto part = [&](ggml_tensor* log, std::int64_t of) {
            return ggml_view_3d(c, log, log->ne[0], ring, log->ne[2], log->nb[1], log->nb[2],
                                size(of * ring) * log->nb[1]);
        };
        ggml_build_forward_expand(graph,
                                  ggml_cpy(c, part(*source, from.slot), part(*target, slot)));
        if (auto done = compute.run(graph); !done) return done;
    }
    return {};
}

Result<void> DeviceEngine::move(Sequence& sequence, std::int64_t reserve) {
    auto shape = sequence.cache->shape();
    shape.reserve += reserve;
    shape.slots = 1;
    auto wider = std::make_shared<DeviceCache>(pipeline_, shape);
    const auto slot = wider->take_slot();
    if (auto copied = copy_rows(sequence, *wider, slot); !copied) return copied;
    note_peak(wider.get());
    leave(sequence);
    sequence.cache = std::move(wider);
    sequence.slot = slot;
    sequence.logged = 0;  // the log stayed behind
    return {};
}

std::vector<std::vector<float>> DeviceEngine::attention(SequenceId id, std::int64_t layer) {
    const auto& sequence = sequences_.at(id);
    if (sequence.logged == 0) return {};
    if (attention_.sequence != id || attention_.tokens != sequence.tokens) {
        auto layers = observed(sequence, 1);
        if (!layers) return {};
        attention_ = {id, sequence.tokens, std::move(*layers)};
    }
    const auto group = shape_.heads.group();
    const float* values = attention_.layers[size(layer)].data();
    std::vector<std::vector<float>> result(size(shape_.heads.query_heads));
    for (const auto& one : sequence.cache->layer(layer).groups) {
        const auto& about = sequence.cache->row_class(one.row_class);
        for (std::int64_t g = 0; g < group; ++g) {
            for (std::int64_t i = 0; i < about.heads(); ++i, values += about.places.window) {
                const auto held = about.count[size(sequence.slot * about.heads() + i)];
                const auto* first = values + about.places.first[size(i)];
                result[size(one.heads[size(i)] * group + g)].assign(first, first + held);
            }
        }
    }
    return result;
}

Result<std::vector<std::vector<float>>> DeviceEngine::observed(const Sequence& sequence,
                                                               std::int64_t most) {
    const auto queries = std::min({sequence.cache->shape().observe, sequence.logged, most});
    std::vector<std::vector<float>> result;
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        if (pipeline_[stage].layers == 0) continue;
        if (auto done = observe_stage(sequence, stage, queries, result); !done) {
            return tl::unexpected(done.error());
        }
    }
    return result;
}

Result<void> DeviceEngine::observe_stage(const Sequence& sequence, std::size_t stage,
                                         std::int64_t queries,
                                         std::vector<std::vector<float>>& result) {
    auto& cache = *sequence.cache;
    const auto& part = pipeline_[stage];
    const auto& compute = pipeline_.compute(stage);
    const auto kv_heads = shape_.heads.kv_heads;
    const auto group = shape_.heads.group(), ring = cache.shape().observe;
    const auto width = shape_.dim_k * group;
    auto log = cache.log(stage);
    if (!log) return tl::unexpected(log.error());
    const auto nodes = part.layers * 2 * 20 + static_cast<std::int64_t>(cache.classes()) + 16;
    const auto context = make_context(nodes);
    auto* c = context.get();
    auto* graph = compute.new_graph(c, nodes, compute.key_of_passing_graphs());
    std::vector<std::pair<ggml_tensor*, std::vector<float>>> masks(cache.classes());
    std::map<std::vector<std::int32_t>, ggml_tensor*> gathers;
    const auto counts = query_weights(queries, sequence.method.query_decay());
    ggml_tensor* counted = nullptr;  // null: all count alike
    if (sequence.method.query_decay() != 1) {
        counted = ggml_new_tensor_1d(c, GGML_TYPE_F32, queries);
        ggml_set_input(counted);
    }
    // What a class's queries see: the last one everything, each one before it a row less.
    const auto mask_of = [&](std::size_t row_class) {
        auto& [tensor, values] = masks[row_class];
        if (tensor != nullptr) return tensor;
        const auto& about = cache.row_class(row_class);
        const auto window = about.places.window;
        tensor = ggml_new_tensor_3d(c, GGML_TYPE_F32, window, queries, about.heads());
        ggml_set_input(tensor);
        values.assign(size(ggml_nelements(tensor)), -INFINITY);
        for (std::int64_t head = 0; head < about.heads(); ++head) {
            const auto held = about.count[size(sequence.slot * about.heads() + head)];
            const auto first = about.places.first[size(head)];
            for (std::int64_t i = 0; i < queries; ++i) {
                std::fill_n(values.begin() + (head * queries + i) * window + first,
                            std::max<std::int64_t>(1, held - queries + i + 1), 0.0F);
            }
        }
        return tensor;
    };
    // The group's part of the newest queries, oldest first: rows of [width, kv_heads x ring].
    const auto gather_of = [&](const std::vector<std::int32_t>& heads) {
        std::vector<std::int32_t> rows;
        for (std::int64_t i = 0; i < queries; ++i) {
            const auto at = (sequence.logged - queries + i) % ring;
            for (const auto head : heads) {
                rows.push_back(static_cast<std::int32_t>(at * kv_heads) + head);
            }
        }
        auto& tensor = gathers[rows];
        if (tensor == nullptr) {
            tensor = ggml_new_tensor_1d(c, GGML_TYPE_I32, static_cast<std::int64_t>(rows.size()));
            ggml_set_input(tensor);
        }
        return tensor;
    };
    std::vector<std::vector<ggml_tensor*>> means;
    for (auto layer = part.first; layer < part.end(); ++layer) {
        auto& of_layer = means.emplace_back();
        auto* mine = ggml_view_2d(
            c, *log, width, kv_heads * ring, size(width) * (*log)->nb[0],
            size(layer - part.first) * (*log)->nb[2] + size(sequence.slot * ring) * (*log)->nb[1]);
        for (const auto& one : cache.layer(layer).groups) {
            const auto& about = cache.row_class(one.row_class);
            auto* taken = ggml_reshape_4d(c, ggml_get_rows(c, mine, gather_of(one.heads)),
                                          shape_.dim_k, group, about.heads(), queries);
            // [dim_k, queries, heads, group]
            auto* q = ggml_cont(c, ggml_permute(c, taken, 0, 3, 2, 1));
            // The third dimension by hand, as in DeviceCache::describe.
            auto* keys = ggml_view_3d(c, one.keys, shape_.dim_k, about.places.window, 1,
                                      one.keys->nb[1], one.keys->nb[3],
                                      size(sequence.slot * about.heads()) * one.keys->nb[3]);
            keys->ne[2] = about.heads();
            keys->nb[3] = keys->nb[2] * size(about.heads());
            auto* products = ggml_mul_mat(c, keys, q);
            ggml_mul_mat_set_prec(products, GGML_PREC_F32);
            auto* weights =
                ggml_soft_max_ext(c, products, mask_of(one.row_class), shape_.scale, 0.0F);
            // [queries, window, heads, group] -> sums over the queries
            auto* each = ggml_cont(c, ggml_permute(c, weights, 1, 0, 2, 3));
            if (counted != nullptr) each = ggml_mul(c, each, counted);
            auto* mean = ggml_scale(c, ggml_sum_rows(c, each), 1.0F / counts.sum);
            ggml_set_output(mean);
            ggml_build_forward_expand(graph, mean);
            of_layer.push_back(mean);
        }
    }
    WorkMemory work(compute.backend());
    if (!work.place(graph)) return failure("not enough memory to cut an answer's rows back");
    for (const auto& [tensor, values] : masks) {
        if (tensor == nullptr) continue;
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }
    for (const auto& [rows, tensor] : gathers) {
        ggml_backend_tensor_set(tensor, rows.data(), 0, ggml_nbytes(tensor));
    }
    if (counted != nullptr) {
        ggml_backend_tensor_set(counted, counts.each.data(), 0, ggml_nbytes(counted));
    }
    if (auto done = compute.run(graph); !done) return done;
    for (const auto& of_layer : means) {
        auto& values = result.emplace_back();
        for (auto* mean : of_layer) {
            const auto before = values.size();
            values.resize(before + size(ggml_nelements(mean)));
            ggml_backend_tensor_get(mean, values.data() + before, 0, ggml_nbytes(mean));
        }
    }
    return {};
}

Result<void> DeviceEngine::keep_rows(const Sequence& from, DeviceCache& to, std::int64_t slot,
                                     const std::vector<std::vector<std::int32_t>>& keep) {
    const auto layers = shape_.heads.layers, kv_heads = shape_.heads.kv_heads;
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        if (auto done = keep_stage(from, to, slot, keep, stage); !done) return done;
    }
    for (std::int64_t layer = 0; layer < layers; ++layer) {
        for (const auto& group : to.layer(layer).groups) {
            std::vector<std::int32_t> counts;
            counts.reserve(group.heads.size());
            for (const auto head : group.heads) {
                counts.push_back(
                    static_cast<std::int32_t>(keep[size(layer * kv_heads + head)].size()));
            }
            to.set_counts(group.row_class, slot, counts);
        }
    }
    return {};
}

Result<void> DeviceEngine::keep_stage(const Sequence& from, DeviceCache& to, std::int64_t slot,
                                      const std::vector<std::vector<std::int32_t>>& keep,
                                      std::size_t stage) {
    const auto& part = pipeline_[stage];
    const auto& compute = pipeline_.compute(stage);
    const auto kv_heads = shape_.heads.kv_heads;
    const auto nodes = part.layers * 16 + 16;
    const auto context = make_context(nodes);
    auto* c = context.get();
    auto* graph = compute.new_graph(c, nodes, compute.key_of_passing_graphs());
    std::vector<std::pair<ggml_tensor*, std::vector<std::int32_t>>> indices;
    for (auto layer = part.first; layer < part.end(); ++layer) {
        const auto& mine = from.cache->layer(layer);
        const auto& theirs = to.layer(layer);
        std::vector<std::int64_t> origin(size(kv_heads));
        for (const auto& group : mine.groups) {
            for (std::size_t i = 0; i < group.heads.size(); ++i) {
                origin[size(group.heads[i])] = group.row(from.cache->row_class(group.row_class),
                                                         from.slot, static_cast<std::int64_t>(i));
            }
        }
        std::vector<std::int32_t> rows_from, rows_to;
        for (const auto& group : theirs.groups) {
            for (std::size_t i = 0; i < group.heads.size(); ++i) {
                const auto& list = keep[size(layer * kv_heads + group.heads[i])];
                const auto start =
                    group.row(to.row_class(group.row_class), slot, static_cast<std::int64_t>(i));
                for (std::size_t row = 0; row < list.size(); ++row) {
                    const auto source = origin[size(group.heads[i])] + list[row];
                    const auto target = start + static_cast<std::int64_t>(row);
                    if (&to == from.cache.get() && source == target) continue;
                    rows_from.push_back(static_cast<std::int32_t>(source));
                    rows_to.push_back(static_cast<std::int32_t>(target));
                }
            }
        }
        if (rows_from.empty()) continue;
        const auto count = static_cast<std::int64_t>(rows_from.size());
        auto* index_from = ggml_new_tensor_1d(c, GGML_TYPE_I32, count);
        auto* index_to = ggml_new_tensor_1d(c, GGML_TYPE_I32, count);
        ggml_set_input(index_from);
        ggml_set_input(index_to);
        indices.emplace_back(index_from, std::move(rows_from));
        indices.emplace_back(index_to, std::move(rows_to));
        const auto move = [&](ggml_tensor* source, ggml_tensor* target) {
            auto* taken = ggml_get_rows(c, source, index_from);
            ggml_build_forward_expand(graph, ggml_set_rows(c, target, taken, index_to));
        };
        move(mine.keys, theirs.keys);
        move(mine.values, theirs.values);
    }
    WorkMemory work(compute.backend());
    if (!work.place(graph)) return failure("not enough memory to cut an answer's rows back");
    for (const auto& [tensor, values] : indices) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }
    return compute.run(graph);
}

Result<void> DeviceEngine::make_room(Sequence& sequence) {
    const auto grow = [&] { return move(sequence, std::max(kRowBlock, sequence.tokens / 8)); };
    const auto& method = sequence.method;
    const bool blind = method.observe_answer() > 0 && sequence.logged == 0;  // nothing to go by
    if (method.recipe().allocate == AllocateStep::all || blind) return grow();
    const auto layers = shape_.heads.layers, kv_heads = shape_.heads.kv_heads;
    std::vector<std::vector<float>> seen;
    if (method.observe_answer() > 0) {
        auto attention = observed(sequence, method.observe_answer());
        if (!attention) return tl::unexpected(attention.error());
        seen = std::move(*attention);
    }
    auto& cache = *sequence.cache;
    std::vector<std::vector<std::int32_t>> keep(sequence.kept.size());
    bool less = false;
    for (std::int64_t layer = 0; layer < layers; ++layer) {
        std::size_t before = 0;  // of the layer's observation
        for (const auto& group : cache.layer(layer).groups) {
            const auto& about = cache.row_class(group.row_class);
            for (std::int64_t i = 0; i < about.heads(); ++i) {
                const auto at = size(layer * kv_heads + group.heads[size(i)]);
                const auto held = about.count[size(sequence.slot * about.heads() + i)];
                const auto kept = static_cast<std::int64_t>(sequence.kept[at].size());
                const auto bound = method.bound(layer, group.heads[size(i)], kept);
                std::vector<float> flat;  // [group][held]
                for (std::int64_t g = 0; !seen.empty() && g < shape_.heads.group(); ++g) {
                    const auto* row = seen[size(layer)].data() + before +
                                      (g * about.heads() + i) * about.places.window +
                                      about.places.first[size(i)];
                    flat.insert(flat.end(), row, row + held);
                }
                keep[at] = method.keep_head(flat, held, bound, held_positions(sequence, at));
                less |= static_cast<std::int64_t>(keep[at].size()) < held;
            }
            before += size(about.places.read() * shape_.heads.group());
        }
    }
    // Heads below their bound (a short prompt) have dropped nothing: they get more memory instead.
    if (!less) return grow();
    // Layers of a class share its counts: where they part (a prompt below the budget), the sequence
    // gets groups of its own.
    if (cache.holds(keep, kv_heads)) {
        if (auto done = keep_rows(sequence, cache, sequence.slot, keep); !done) return done;
    } else {
        auto shape = cache.shape();
        shape.slots = 1;
        auto own = std::make_shared<DeviceCache>(pipeline_, shape);
        std::vector<std::int64_t> rows(keep.size());
        std::ranges::transform(keep, rows.begin(),
                               [](const auto& list) { return std::ssize(list); });
        if (auto added = own->add_layers(rows); !added) return added;
        const auto slot = own->take_slot();
        if (auto done = keep_rows(sequence, *own, slot, keep); !done) return done;
        note_peak(own.get());
        leave(sequence);
        sequence.cache = std::move(own);
        sequence.slot = slot;
    }
    for (std::size_t at = 0; at < keep.size(); ++at) {
        const auto held = held_positions(sequence, at);
        auto& list = sequence.kept[at];
        list.clear();
        for (const auto index : keep[at]) list.push_back(held[size(index)]);
    }
    sequence.selected = sequence.tokens;
    sequence.logged = 0;
    return {};
}

std::vector<std::int32_t> DeviceEngine::held_positions(const Sequence& sequence, std::size_t at) {
    auto list = sequence.kept[at];
    for (auto token = sequence.selected; token < sequence.tokens; ++token) {
        list.push_back(static_cast<std::int32_t>(token));
    }
    return list;
}

Result<SequenceId> DeviceEngine::copy(SequenceId id, SequenceId& next) {
    const auto& from = sequences_.at(id);
    auto cache = from.cache;
    auto slot = cache->take_slot();
    if (slot < 0) {
        auto shape = cache->shape();
        shape.slots = 1;
        cache = std::make_shared<DeviceCache>(pipeline_, shape);
        slot = cache->take_slot();
    }
    if (auto copied = copy_rows(from, *cache, slot); !copied) {
        cache->free_slot(slot);
        return tl::unexpected(copied.error());
    }
    Sequence twin = from;
    if (from.logged > 0) {
        if (auto copied = copy_log(from, *cache, slot); !copied) {
            cache->free_slot(slot);
            return tl::unexpected(copied.error());
        }
    }
    twin.cache = std::move(cache);
    twin.slot = slot;
    sequences_.emplace(next, std::move(twin));
    return next++;
}

std::int64_t DeviceEngine::bytes_in_use(std::size_t stage) const {
    std::set<const DeviceCache*> caches;
    for (const auto& [id, sequence] : sequences_) caches.insert(sequence.cache.get());
    for (const auto& [key, cache] : caches_) caches.insert(cache.get());
    auto bytes = model_->impl().stages[stage].bytes;
    for (const DeviceCache* cache : caches) bytes += cache->buffer_bytes(stage);
    std::size_t steps = 0;
    for (const Step& step : steps_) {
        const auto& piece = step.pieces[stage];
        steps += ggml_backend_buffer_get_size(piece.inputs_buffer.get()) +
                 ggml_gallocr_get_buffer_size(piece.allocator.get(), 0);
    }
    return bytes + static_cast<std::int64_t>(steps);
}

void DeviceEngine::note_peak(const DeviceCache* more) {
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        const auto bytes = bytes_in_use(stage) + (more != nullptr ? more->buffer_bytes(stage) : 0);
        peak_bytes_[stage] = std::max(peak_bytes_[stage], bytes);
    }
}

void DeviceEngine::reset_peak() {
    for (std::size_t stage = 0; stage < pipeline_.size(); ++stage) {
        peak_bytes_[stage] = bytes_in_use(stage);
    }
}

SequenceInfo DeviceEngine::info(SequenceId id) const {
    const auto& from = sequences_.at(id);
    const auto heads = shape_.heads.layers * shape_.heads.kv_heads;
    const auto row = from.cache->row_bytes();
    std::int64_t rows = 0;
    for (const auto& list : from.kept) rows += static_cast<std::int64_t>(list.size());
    SequenceInfo info;
    info.method = from.method.recipe().name;
    info.prompt_tokens = from.prompt_tokens;
    info.tokens = from.tokens;
    info.rows_budget = from.method.rows_budget();
    info.rows_kept_mean = static_cast<double>(from.prompt_rows) / static_cast<double>(heads);
    info.plan_bytes = from.plan_bytes;
    info.held_bytes = (rows + (from.tokens - from.selected) * heads) * row;
    info.allocated_bytes = from.cache->slot_bytes();
    info.full_bytes = from.prompt_tokens * heads * model_->info().row_bytes;
    info.store = from.method.config().store;
    info.runs_as_full = from.method.runs_as_full();
    return info;
}

std::vector<std::vector<std::vector<std::int32_t>>> DeviceEngine::positions(SequenceId id) const {
    const auto& from = sequences_.at(id);
    std::vector<std::vector<std::vector<std::int32_t>>> result(size(shape_.heads.layers));
    for (std::size_t i = 0; i < from.kept.size(); ++i) {
        result[i / size(shape_.heads.kv_heads)].push_back(held_positions(from, i));
    }
    return result;
}

}  // namespace headkv
