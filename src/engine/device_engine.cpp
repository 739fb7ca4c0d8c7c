#include "engine/device_engine.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cmath>
#include <numeric>

#include "engine/graph.h"
#include "engine/text_probabilities.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

constexpr std::size_t kMostGraphs = 8;

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

// The graph of a step over some slots of some caches; built once, run many times.
struct DeviceEngine::Step {
    std::vector<Share> shares;
    bool want_logits = false;
    std::int64_t tokens = 0;
    ggml_context_ptr inputs_context, context;
    ggml_backend_buffer_ptr inputs_buffer;
    ggml_gallocr_ptr allocator;
    ggml_cgraph* graph = nullptr;
    ggml_tensor* key = nullptr;  // its first node
    // i32: token ids [tokens], positions [tokens], then per share and class: row indices [heads x
    // slots] and, as f32, what their masks become [heads x slots]. One copy a step.
    ggml_tensor* packed = nullptr;
    ggml_tensor* result = nullptr;  // f32 [vocabulary, tokens], or i32 [tokens] best tokens
};

// Builds the attention of one layer over all shares.
struct DeviceEngine::Attention {
    ggml_context* c;
    ggml_cgraph* graph;
    const AttentionShape& shape;
    std::span<const Share> shares;
    std::span<const std::vector<ggml_tensor*>> rows;  // [shares][classes] i32 [heads x slots]
    // Per share and group: where its heads' columns are in q, k, v; and back, per share.
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

    // [dim_v * query_heads, slots] of one share; its tokens begin at `first`.
    ggml_tensor* of(std::size_t which, std::int64_t layer, std::int64_t first,
                    const GraphBuilder::Projections& part) const {
        const auto& share = shares[which];
        auto& cache = *share.cache;
        const auto slots = share.slots;
        const auto kv_heads = shape.heads.kv_heads;
        const auto group = shape.heads.group();
        const auto& groups = cache.layer(layer);
        std::vector<ggml_tensor*> parts;
        std::vector<std::int32_t> back(size(kv_heads * slots));
        std::int32_t done = 0;
        for (const auto& one : groups) {
            const auto& about = cache.row_class(one.row_class);
            const auto columns = about.heads * slots;
            const bool whole = about.heads == kv_heads;
            std::vector<std::int32_t> gather;
            for (std::int64_t slot = 0; slot < slots; ++slot) {
                for (const auto head : one.heads) {
                    gather.push_back(static_cast<std::int32_t>((first + slot) * kv_heads) + head);
                    back[size(slot * kv_heads + head)] = done++;
                }
            }
            // [n * kv_heads' tensors, tokens] -> [n, columns], slot by slot
            const auto take = [&](ggml_tensor* from, std::int64_t width) {
                if (!whole) {
                    auto* flat = ggml_reshape_2d(c, from, width, ggml_nelements(from) / width);
                    return ggml_get_rows(c, flat, constant(gather));
                }
                return ggml_view_2d(c, from, width, columns, size(width) * sizeof(float),
                                    size(first * kv_heads * width) * sizeof(float));
            };
            auto* index = rows[which][one.row_class];
            const auto store = [&](ggml_tensor* from, ggml_tensor* to) {
                auto* flat = ggml_reshape_2d(c, to, to->ne[0], to->ne[1] * to->ne[3]);
                ggml_build_forward_expand(graph,
                                          ggml_set_rows(c, flat, take(from, to->ne[0]), index));
            };
            store(part.k, one.keys);
            store(part.v, one.values);
            const auto held = [&](ggml_tensor* all) {
                return ggml_view_4d(c, all, all->ne[0], all->ne[1], 1, columns, all->nb[1],
                                    all->nb[2], all->nb[3], 0);
            };
            auto* q = take(part.q, shape.dim_k * group);
            auto* attended = ggml_flash_attn_ext(
                c, ggml_reshape_4d(c, q, shape.dim_k, 1, group, columns), held(one.keys),
                held(one.values), held(about.mask), shape.scale, 0.0F, 0.0F);
            ggml_flash_attn_ext_set_prec(attended, GGML_PREC_F32);
            parts.push_back(ggml_reshape_2d(c, attended, shape.dim_v * group, columns));
        }
        auto* all = parts[0];
        for (std::size_t i = 1; i < parts.size(); ++i) all = ggml_concat(c, all, parts[i], 1);
        if (parts.size() > 1) all = ggml_get_rows(c, all, constant(back));
        return ggml_reshape_2d(c, all, shape.dim_v * shape.heads.query_heads, slots);
    }
};

DeviceEngine::DeviceEngine(Compute& compute, std::shared_ptr<const Model> model,
                           const EngineOptions& options)
    : compute_(compute), model_(std::move(model)), options_(options) {
    const auto& hyper = model_->impl().hyper;
    shape_ = {hyper.shape, hyper.head_dim_k, hyper.head_dim_v,
              1.0F / std::sqrt(static_cast<float>(hyper.head_dim_k))};
}

DeviceEngine::~DeviceEngine() = default;

// --- prefill

DeviceEngine::Place DeviceEngine::place_for(const Method& method,
                                            std::int64_t expected_new_tokens) {
    const auto& config = method.config();
    const bool grows = method.recipe().allocate == AllocateStep::all;
    const auto reserve =
        std::max<std::int64_t>(1, grows ? expected_new_tokens : config.options.reserve);
    std::string key;
    if (method.recipe().allocate != AllocateStep::adaptive) {
        key = fmt::format("{} {} {}", ggml_type_name(ggml_type_of(config.store.keys)),
                          ggml_type_name(ggml_type_of(config.store.values)), whole_blocks(reserve));
        for (const auto rows : method.plan().rows) key += fmt::format(" {}", rows);
        // A cache whose slots are all taken stays with its sequences; the next ones get another.
        const auto found = caches_.find(key);
        const auto slot = found == caches_.end() ? -1 : found->second->take_slot();
        if (slot >= 0) return {found->second, slot};
    }
    const DeviceCache::Shape shape{shape_, ggml_type_of(config.store.keys),
                                   ggml_type_of(config.store.values), reserve,
                                   key.empty() ? 1 : std::max<std::int64_t>(1, options_.slots)};
    auto cache = std::make_shared<DeviceCache>(compute_.backend(), shape);
    if (!key.empty()) caches_[key] = cache;
    return {cache, cache->take_slot()};
}

Result<std::unique_ptr<DevicePrefill>> DeviceEngine::start_prefill(
    std::span<const Token> prompt, std::span<const MethodConfig> configs,
    std::int64_t expected_new_tokens) {
    const auto& hyper = model_->impl().hyper;
    // All that may fail comes before the first slot is taken.
    std::vector<Method> methods;
    for (MethodConfig config : configs) {
        if (config.layout == RowLayout()) config.layout = layout();
        const auto bytes = row_bytes(config.store, hyper.head_dim_k, hyper.head_dim_v);
        if (!bytes) return tl::unexpected(bytes.error());
        auto method =
            Method::create(config, hyper.shape, static_cast<std::int64_t>(prompt.size()), *bytes);
        if (!method) return tl::unexpected(method.error());
        methods.push_back(std::move(*method));
    }
    std::vector<DeviceTarget> targets;
    for (Method& method : methods) {
        auto [cache, slot] = place_for(method, expected_new_tokens);
        targets.push_back({std::move(method), std::move(cache), slot});
    }
    DevicePrefill::Options chosen;
    if (options_.chunk != EngineOptions().chunk) chosen.chunk = options_.chunk;
    return DevicePrefill::create(compute_, *model_, prompt, std::move(targets), chosen);
}

std::vector<SequenceId> DeviceEngine::take(DevicePrefill& prefill, SequenceId& next) {
    std::vector<SequenceId> ids;
    for (auto& target : prefill.targets()) {
        std::int64_t rows = 0;
        for (const auto& list : target.kept) rows += static_cast<std::int64_t>(list.size());
        const auto bytes = rows * target.cache->row_bytes();
        ids.push_back(next);
        sequences_.emplace(
            next++, Sequence{std::move(target.method), std::move(target.cache), target.slot,
                             prefill.tokens(), prefill.tokens(), bytes, std::move(target.kept)});
    }
    prefill.targets().clear();
    return ids;
}

Result<std::vector<float>> DeviceEngine::log_probabilities(std::span<const Token> text,
                                                           const Progress& progress) {
    DevicePrefill::Options chosen;
    chosen.all_tokens = true;
    auto prefill = DevicePrefill::create(compute_, *model_, text, {}, chosen);
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
    const auto& impl = model_->impl();
    const auto layers = shape_.heads.layers;
    Step step;
    step.shares.assign(shares.begin(), shares.end());
    step.want_logits = want_logits;
    std::int64_t entries = 0, classes = 0;
    for (const Share& share : shares) {
        step.tokens += share.slots;
        for (std::size_t i = 0; i < share.cache->classes(); ++i) {
            entries += 2 * share.cache->row_class(i).heads * share.slots;
            ++classes;
        }
    }
    entries += 2 * step.tokens;
    step.inputs_context = make_context(1);
    step.packed = ggml_new_tensor_1d(step.inputs_context.get(), GGML_TYPE_I32, entries);
    step.inputs_buffer.reset(
        ggml_backend_alloc_ctx_tensors(step.inputs_context.get(), compute_.backend()));

    const auto nodes =
        layers * (48 + 64 * static_cast<std::int64_t>(shares.size())) + 4 * classes + 64;
    step.context = make_context(nodes);
    auto* c = step.context.get();
    step.key = compute_.new_key();
    step.graph = compute_.new_graph(c, nodes, step.key);
    std::int64_t offset = 0;
    const auto next = [&](std::int64_t count) {
        auto* view = ggml_view_1d(c, step.packed, count, size(offset) * sizeof(std::int32_t));
        offset += count;
        return view;
    };
    auto* ids = next(step.tokens);
    auto* positions = next(step.tokens);
    std::vector<std::vector<ggml_tensor*>> rows;
    for (const Share& share : shares) {
        auto& of_share = rows.emplace_back();
        for (std::size_t i = 0; i < share.cache->classes(); ++i) {
            const auto& about = share.cache->row_class(i);
            const auto count = about.heads * share.slots;
            of_share.push_back(next(count));
            auto* values = next(count);
            values->type = GGML_TYPE_F32;  // the same bytes
            auto* mask = ggml_reshape_2d(c, about.mask, 1, ggml_nelements(about.mask));
            ggml_build_forward_expand(
                step.graph,
                ggml_set_rows(c, mask, ggml_reshape_2d(c, values, 1, count), of_share.back()));
        }
    }
    std::map<std::vector<std::int32_t>, ggml_tensor*> gathers;
    std::vector<std::pair<ggml_tensor*, std::vector<std::int32_t>>> constants;
    const Attention attention{c, step.graph, shape_, shares, rows, gathers, constants};
    const GraphBuilder build{c, impl.hyper, impl.weights, nullptr};
    auto* x = build.embed(ids);
    for (std::int64_t layer = 0; layer < layers; ++layer) {
        const auto& weights = impl.weights.layers[size(layer)];
        const auto part = build.project(weights, x, positions);
        ggml_tensor* all = nullptr;
        std::int64_t first = 0;
        for (std::size_t i = 0; i < shares.size(); ++i) {
            auto* one = attention.of(i, layer, first, part);
            all = all == nullptr ? one : ggml_concat(c, all, one, 1);
            first += shares[i].slots;
        }
        x = build.finish_layer(weights, x, all);
    }
    step.result = build.logits(x);
    if (!want_logits) step.result = ggml_argmax(c, step.result);
    ggml_set_output(step.result);
    ggml_build_forward_expand(step.graph, step.result);
    for (int i = 0; i < ggml_graph_n_nodes(step.graph); ++i) {
        const auto* node = ggml_graph_node(step.graph, i);
        if (ggml_backend_supports_op(compute_.backend(), node)) continue;
        return failure(
            "{} cannot compute {} here (rows stored as {} and {}); use --kv-type f16 or "
            "--device cpu",
            ggml_backend_name(compute_.backend()), ggml_op_desc(node),
            ggml_type_name(shares[0].cache->shape().type_k),
            ggml_type_name(shares[0].cache->shape().type_v));
    }
    step.allocator.reset(
        ggml_gallocr_new(ggml_backend_get_default_buffer_type(compute_.backend())));
    if (!step.inputs_buffer || !ggml_gallocr_alloc_graph(step.allocator.get(), step.graph)) {
        return failure("not enough memory to decode {} tokens at once", step.tokens);
    }
    for (const auto& [tensor, values] : constants) {
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }
    steps_.push_front(std::move(step));
    if (steps_.size() > kMostGraphs) steps_.pop_back();
    return &steps_.front();
}

Result<void> DeviceEngine::step(std::span<const DecodeInput> inputs, bool want_logits) {
    std::vector<Share> shares;
    std::map<const DeviceCache*, std::vector<const DecodeInput*>> of_slot;
    std::vector<const DeviceCache*> touched;
    for (const auto& input : inputs) touched.push_back(sequences_.at(input.sequence).cache.get());
    // Sequences that wait beside them need room as well: their slots are written to, see below.
    for (auto& [id, sequence] : sequences_) {
        if (std::find(touched.begin(), touched.end(), sequence.cache.get()) == touched.end() ||
            sequence.cache->room(sequence.slot) > 0) {
            continue;
        }
        const auto more = std::max(kRowBlock, sequence.tokens / 8);
        if (auto moved = move(sequence, more); !moved) return moved;
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
    for (auto& share : shares) share.slots = share.cache->span();
    const auto graph = step_graph(shares, want_logits);
    if (!graph) return tl::unexpected(graph.error());
    Step& step = **graph;

    std::vector<std::int32_t> packed(size(ggml_nelements(step.packed)), 0);
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
    next = size(2 * step.tokens);
    const auto closed = std::bit_cast<std::int32_t>(-INFINITY);
    for (const Share& share : shares) {
        const auto& slots = of_slot[share.cache.get()];
        for (std::size_t i = 0; i < share.cache->classes(); ++i) {
            auto& about = share.cache->row_class(i);
            const auto count = size(about.heads * share.slots);
            for (std::size_t at = 0; at < count; ++at) {
                const bool active = slots[at / size(about.heads)] != nullptr;
                // A slot that waits writes where it will write next, and keeps it masked; one that
                // is free keeps seeing something. What a free slot holds is nobody's.
                const auto row = std::min<std::int64_t>(about.count[at], about.capacity - 1);
                packed[next + at] =
                    static_cast<std::int32_t>(static_cast<std::int64_t>(at) * about.capacity + row);
                packed[next + count + at] = active || row == 0 ? 0 : closed;
                if (active) ++about.count[at];
            }
            next += 2 * count;
        }
    }
    auto* backend = compute_.backend();
    ggml_backend_tensor_set_async(backend, step.packed, packed.data(), 0, ggml_nbytes(step.packed));
    // A recorded graph over several caches gave wrong values for some of them (ggml 0.20.2 on an
    // H100; computed node by node it is right): a key that changes keeps such graphs from being
    // recorded.
    if (step.shares.size() > 1)
        ++step.key->op_params[GGML_MAX_OP_PARAMS / sizeof(std::int32_t) - 1];
    if (auto done = compute_.start(step.graph); !done) return done;
    token_of_.clear();
    best_.clear();
    if (want_logits) {
        logits_.resize(size(ggml_nelements(step.result)));
        ggml_backend_tensor_get_async(backend, step.result, logits_.data(), 0,
                                      ggml_nbytes(step.result));
        ggml_backend_synchronize(backend);
        for (const auto& input : inputs) token_of_.push_back(column.at(input.sequence));
    } else {
        std::vector<std::int32_t> best(size(step.tokens));
        ggml_backend_tensor_get_async(backend, step.result, best.data(), 0,
                                      ggml_nbytes(step.result));
        ggml_backend_synchronize(backend);
        for (const auto& input : inputs) best_.push_back(best[column.at(input.sequence)]);
    }
    for (const auto& input : inputs) ++sequences_.at(input.sequence).tokens;
    return {};
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

// All rows of a sequence into a slot of a cache with the same groups and at least its capacities.
Result<void> DeviceEngine::copy_rows(const Sequence& from, DeviceCache& to, std::int64_t slot) {
    const auto layers = shape_.heads.layers;
    const auto context = make_context(layers * 16 + 16);
    auto* c = context.get();
    auto* graph = compute_.new_graph(c, layers * 16 + 16, compute_.key_of_passing_graphs());
    for (std::int64_t layer = 0; layer < layers; ++layer) {
        std::vector<HeadGroup> groups;
        for (const auto& group : from.cache->layer(layer)) {
            const auto& about = from.cache->row_class(group.row_class);
            groups.push_back({about.kept, group.heads, about.even});
        }
        if (auto added = to.add_layer(layer, groups); !added) return added;
        for (std::size_t g = 0; g < groups.size(); ++g) {
            const auto& mine = from.cache->layer(layer)[g];
            const auto& theirs = to.layer(layer)[g];
            const auto& about = from.cache->row_class(mine.row_class);
            const auto heads = about.heads;
            const std::span counts(about.count.data() + from.slot * heads, size(heads));
            const auto move = [&](ggml_tensor* source, ggml_tensor* target) {
                // As 16-bit numbers, whatever the rows are: they move as they are.
                const auto view = [&](ggml_tensor* all, std::int64_t at) {
                    auto* rows_of =
                        ggml_view_3d(c, all, all->ne[0], about.capacity, heads, all->nb[1],
                                     all->nb[3], size(at * heads) * all->nb[3]);
                    rows_of->type = GGML_TYPE_F16;
                    rows_of->ne[0] = static_cast<std::int64_t>(all->nb[1] / sizeof(std::uint16_t));
                    rows_of->nb[0] = sizeof(std::uint16_t);
                    return rows_of;
                };
                ggml_build_forward_expand(graph,
                                          ggml_cpy(c, view(source, from.slot), view(target, slot)));
            };
            move(mine.keys, theirs.keys);
            move(mine.values, theirs.values);
            to.set_counts(theirs.row_class, slot, counts);
        }
    }
    return compute_.run(graph);
}

Result<void> DeviceEngine::move(Sequence& sequence, std::int64_t reserve) {
    auto shape = sequence.cache->shape();
    shape.reserve += reserve;
    shape.slots = 1;
    auto wider = std::make_shared<DeviceCache>(compute_.backend(), shape);
    const auto slot = wider->take_slot();
    if (auto copied = copy_rows(sequence, *wider, slot); !copied) return copied;
    leave(sequence);
    sequence.cache = std::move(wider);
    sequence.slot = slot;
    return {};
}

Result<SequenceId> DeviceEngine::copy(SequenceId id, SequenceId& next) {
    const auto& from = sequences_.at(id);
    auto cache = from.cache;
    auto slot = cache->take_slot();
    if (slot < 0) {
        auto shape = cache->shape();
        shape.slots = 1;
        cache = std::make_shared<DeviceCache>(compute_.backend(), shape);
        slot = cache->take_slot();
    }
    if (auto copied = copy_rows(from, *cache, slot); !copied) {
        cache->free_slot(slot);
        return tl::unexpected(copied.error());
    }
    Sequence twin = from;
    twin.cache = std::move(cache);
    twin.slot = slot;
    sequences_.emplace(next, std::move(twin));
    return next++;
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
    info.rows_kept_mean = static_cast<double>(rows) / static_cast<double>(heads);
    info.plan_bytes = from.plan_bytes;
    info.held_bytes = (rows + (from.tokens - from.prompt_tokens) * heads) * row;
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
        auto list = from.kept[i];
        for (auto at = from.prompt_tokens; at < from.tokens; ++at) {
            list.push_back(static_cast<std::int32_t>(at));
        }
        result[i / size(shape_.heads.kv_heads)].push_back(std::move(list));
    }
    return result;
}

}  // namespace headkv
