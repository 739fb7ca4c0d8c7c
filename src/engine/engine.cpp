#include "headkv/engine.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <cmath>
#include <list>
#include <map>
#include <new>
#include <numeric>
#include <optional>
#include <utility>

#include "engine/capacity.h"
#include "engine/device_engine.h"
#include "engine/pipeline.h"
#include "engine/prefill.h"
#include "engine/readings.h"
#include "engine/recall.h"
#include "engine/reconstruction.h"
#include "engine/step_recall.h"
#include "engine/text_probabilities.h"
#include "engine/token_kinds.h"
#include "engine/turn_keys.h"
#include "headkv/sampler.h"

namespace headkv {

namespace {

std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

kernels::RowType row_type(StoreStep step) {
    switch (step) {
        case StoreStep::f16:
            break;
        case StoreStep::q8_0:
            return kernels::RowType::q8_0;
        case StoreStep::q4_0:
            return kernels::RowType::q4_0;
    }
    return kernels::RowType::f16;
}

struct Sequence {
    PrefillTarget state;
    std::int64_t prompt_tokens = 0;
    std::int64_t tokens = 0;
    std::int64_t plan_bytes = 0;
    std::vector<std::int64_t> kept;  // [layers][heads] rows kept of the prompt
    std::int64_t since = 0;          // tokens since rows were last selected from the archive
};

// [layers][heads]; 0 in layers that own none.
std::vector<std::int64_t> rows_held(const SequenceCache& cache) {
    std::vector<std::int64_t> rows;
    for (std::int64_t layer = 0; layer < cache.shape().layers; ++layer) {
        for (std::int64_t head = 0; head < cache.shape().heads; ++head) {
            rows.push_back(cache.owns(layer) ? cache.head(layer, head).count : 0);
        }
    }
    return rows;
}

// The graph of a step with a given number of tokens and wanted logits; built once, run many times.
struct StepGraph {
    std::int64_t tokens = 0, outputs = 0;
    bool recalls = false;             // has nodes for a selection from archives
    std::vector<std::int64_t> owner;  // of layers that no sequence of the step owns; empty: none
    ggml_context_ptr inputs_context, context;
    ggml_backend_buffer_ptr inputs_buffer;
    ggml_gallocr_ptr allocator;
    LinearOps products{LinearOps::Use::answers};
    ggml_cgraph* graph = nullptr;
    ggml_tensor* ids = nullptr;        // i32 [tokens]
    ggml_tensor* positions = nullptr;  // i32 [tokens]
    ggml_tensor* rows = nullptr;       // i32 [outputs], null if every token has logits
    ggml_tensor* logits = nullptr;     // f32 [vocabulary, outputs], null if none is wanted
};

constexpr std::int64_t kNodesPerLayer = 48;

// What a stage's device has for weights, caches and work; 0 where nothing limits them. Asked once:
// what ggml keeps for itself later is used again.
std::int64_t bytes_for_stage(const Model& model, std::size_t index, const EngineOptions& options) {
    const auto& stages = model.impl().stages;
    const auto on_gpu = [](const StageWeights& stage) {
        return ggml_backend_dev_type(stage.device) == GGML_BACKEND_DEVICE_TYPE_GPU;
    };
    const auto& stage = stages[index];
    // Beside GPUs the CPU's memory is not what a limit is for.
    if (!on_gpu(stage) && std::ranges::any_of(stages, on_gpu)) return 0;
    std::size_t free = 0, total = 0;
    if (on_gpu(stage)) ggml_backend_dev_memory(stage.device, &free, &total);
    return usable_bytes({.limit = options.device_memory,
                         .free = static_cast<std::int64_t>(free),
                         .total = static_cast<std::int64_t>(total),
                         .loaded = stage.bytes});
}

}  // namespace

struct Engine::Impl {
    std::shared_ptr<const Model> model;
    EngineOptions options;
    Pipeline pipeline;
    std::unique_ptr<DeviceEngine> device;  // null: this CPU's own kernels, and what follows
    // [stages] of a device's memory, weights included; 0: not limited.
    std::vector<std::int64_t> device_bytes;
    AttentionShape shape;
    DecodeAttention attention{{}};
    StepRecall step_recall{{}};
    std::map<SequenceId, Sequence> sequences;
    SequenceId next_id = 1;
    std::list<StepGraph> graphs;         // most recently used first
    std::vector<float> logits;           // [outputs][vocabulary] of the last decode
    std::vector<std::int64_t> logit_of;  // [inputs] row in `logits`, -1 if not wanted
    std::vector<Token> best;             // [inputs] of a step on a device that wanted no logits

    const Model::Impl& weights() const { return model->impl(); }
    Prefill::Options prefill_options(bool all_tokens) const {
        Prefill::Options chosen{options.chunk, all_tokens, nullptr};
        chosen.share = model->info().share;
        if (options.precision != Precision::fast) return chosen;
        chosen.unit = kernels::matrix_unit();
        if (chosen.unit == nullptr && options.bf16_anywhere) {
            chosen.unit = &kernels::imitated_unit();
        }
        return chosen;
    }
    Result<void> check_tokens(std::span<const Token> tokens) const;
    Result<void> check_prompt(std::span<const Token> prompt) const;
    Result<void> check_recall(const MethodConfig& config) const;
    Result<MethodConfig> shared(MethodConfig config) const;
    std::vector<SequenceId> take(Prefill& prefill);
    Result<PrefillTarget> target(const MethodConfig& config, std::int64_t prompt_tokens,
                                 std::int64_t expected_new_tokens) const;
    Result<void> check_memory(std::int64_t prompt, std::span<const MethodConfig> configs,
                              std::int64_t expected_new_tokens) const;
    Result<StepGraph*> step_graph(std::int64_t tokens, std::int64_t outputs, bool recalls,
                                  const std::vector<std::int64_t>& owner);
    Result<void> make_room(Sequence& sequence);
    bool selects_now(const Sequence& sequence) const;
    std::vector<std::int64_t> rows_recalled(const Sequence& sequence) const;
    std::optional<StepSelection> begin_selection(Sequence& sequence) const;
    Result<std::vector<float>> recall(SequenceId id, std::span<const Token> turn);
    Result<void> reselect(Sequence& sequence);
    void join_readers(const Sequence& sequence, std::int64_t layer,
                      std::vector<std::vector<float>>& attention_of) const;
    std::vector<std::vector<float>> observed(const Sequence& sequence, std::int64_t layer,
                                             std::int64_t queries) const;
    struct Item {
        std::size_t input;
        Sequence* sequence;
    };
    Result<void> run_step(std::span<const DecodeInput> inputs, std::span<const Item> items,
                          std::vector<StepSelection> selections);
    Result<void> decode_on_device(std::span<const DecodeInput> inputs,
                                  const std::map<SequenceId, std::vector<std::size_t>>& queue);
    bool holds(SequenceId id) const { return device ? device->holds(id) : sequences.contains(id); }
};

Engine::Engine(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Engine::~Engine() = default;

Result<std::unique_ptr<Engine>> Engine::create(std::shared_ptr<const Model> model,
                                               const EngineOptions& options) {
    if (options.chunk < 1) return bad_input("a chunk of {} tokens: give 1 or more", options.chunk);
    auto pipeline = Pipeline::create(*model);
    if (!pipeline) return tl::unexpected(pipeline.error());
    if (model->info().share &&
        (model->info().device != "cpu" || pipeline->size() > 1 || options.stock_operations)) {
        return bad_input(
            "layers of this model read the rows of others, which works with the CPU's own kernels "
            "only: use --device cpu");
    }
    auto impl = std::make_unique<Impl>();
    const auto& hyper = model->impl().hyper;
    impl->shape = {hyper.shape, hyper.head_dim_k, hyper.head_dim_v,
                   1.0F / std::sqrt(static_cast<float>(hyper.head_dim_k))};
    impl->attention = DecodeAttention(impl->shape);
    impl->step_recall = StepRecall(impl->shape);
    impl->model = std::move(model);
    impl->options = options;
    impl->pipeline = std::move(*pipeline);
    if (impl->model->info().device != "cpu" || impl->pipeline.size() > 1 ||
        options.stock_operations) {
        impl->device = std::make_unique<DeviceEngine>(impl->pipeline, impl->model, options);
        for (std::size_t stage = 0; stage < impl->pipeline.size(); ++stage) {
            impl->device_bytes.push_back(bytes_for_stage(*impl->model, stage, options));
        }
    }
    return std::unique_ptr<Engine>(new Engine(std::move(impl)));
}

const Model& Engine::model() const { return *impl_->model; }

std::int64_t Engine::device_peak_bytes() const {
    std::int64_t own = 0, all = 0;
    for (const Placement& place : placement(-1)) {
        all += place.peak_bytes;
        if (place.device != "cpu") own += place.peak_bytes;
    }
    return own > 0 ? own : all;
}

std::vector<Placement> Engine::placement(SequenceId sequence) const {
    const auto& stages = model().info().stages;
    const bool holds = impl_->holds(sequence);
    std::vector<Placement> result;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < stages.size(); ++i) {
        const Stage& stage = stages[i];
        auto& place = result.emplace_back();
        place.device = stage.device;
        place.first_layer = first;
        place.layers = stage.layers;
        place.weight_bytes = stage.weight_bytes;
        if (impl_->device) {
            if (holds) place.kv_bytes = impl_->device->plan_bytes(sequence, i);
            place.peak_bytes = impl_->device->peak_bytes(i);
        } else if (holds) {
            place.kv_bytes = info(sequence).plan_bytes;
        }
        first += stage.layers;
    }
    return result;
}

void Engine::reset_device_peak() {
    if (impl_->device) impl_->device->reset_peak();
}

// --- prefill
// ---------------------------------------------------------------------------------------

Result<void> Engine::Impl::check_tokens(std::span<const Token> tokens) const {
    const auto vocabulary = model->info().vocabulary;
    for (const auto token : tokens) {
        if (token < 0 || token >= vocabulary) {
            return bad_input("token {} is outside the vocabulary of {}", token, vocabulary);
        }
    }
    return {};
}

Result<void> Engine::Impl::check_prompt(std::span<const Token> prompt) const {
    const auto length = static_cast<std::int64_t>(prompt.size());
    const auto context = model->info().context;
    if (length == 0) return bad_input("the prompt is empty");
    if (length > context) {
        return bad_input(
            "the prompt has {} tokens, {} more than the model's context of {}; shorten it with "
            "--truncate middle, or use a model with rope scaling (YaRN) in its metadata",
            length, length - context, context);
    }
    return check_tokens(prompt);
}

// Rows for recall lie in this CPU's memory, where its own kernels read them.
Result<void> Engine::Impl::check_recall(const MethodConfig& config) const {
    const auto recipe = find_recipe(config.method);
    const auto kept = recipe ? recall_of(config, **recipe) : config.recall;
    if (!kept) return {};
    if (device) {
        if (!config.recall) {
            return bad_input(
                "{} chooses from all rows in host memory, which works with the CPU's own kernels "
                "only: use --device cpu",
                config.method);
        }
        return bad_input(
            "--recall works with the CPU's own kernels only: use --device cpu, or leave it out");
    }
    const auto& info = model->info();
    const auto bytes = row_bytes({*kept, *kept}, info.head_dim_k, info.head_dim_v);
    return bytes ? Result<void>() : tl::unexpected(bytes.error());
}

// With the map of a model that was trained with one. Layers that share rows are read by this CPU's
// own kernels.
Result<MethodConfig> Engine::Impl::shared(MethodConfig config) const {
    if (const auto& own = model->info().share) {
        if (config.share && owner_of(config.share) != own->owner) {
            return bad_input(
                "the layers of this model share rows as it was trained, and cannot otherwise: "
                "leave --share out");
        }
        config.share = own;
    }
    if (!config.share || !device) return config;
    return bad_input(
        "{} shares rows between layers, which works with the CPU's own kernels only: use --device "
        "cpu",
        config.method);
}

// What cannot fit beside the weights is refused before it begins. Where the device holds sequences
// already, their caches may have room for this one: then its own allocations decide.
Result<void> Engine::Impl::check_memory(std::int64_t prompt, std::span<const MethodConfig> configs,
                                        std::int64_t expected_new_tokens) const {
    if (!device->idle()) return {};
    const auto& info = model->info();
    DeviceLoad load{.methods = {configs.begin(), configs.end()},
                    .prompt = prompt,
                    .sequences = std::max<std::int64_t>(1, options.slots),
                    .new_tokens = expected_new_tokens};
    if (options.chunk != EngineOptions().chunk) load.chunk = options.chunk;
    const auto parts = parts_of(info.stages);
    for (std::size_t stage = 0; stage < parts.size(); ++stage) {
        if (device_bytes[stage] == 0) continue;
        if (parts.size() > 1) load.part = parts[stage];
        auto fits = check_fits(info, load, device_bytes[stage], info.stages[stage].device);
        if (!fits) return fits;
    }
    return {};
}

struct PrefillJob::Impl {
    Engine* owner = nullptr;
    std::vector<Token> prompt;
    std::vector<MethodConfig> configs;
    std::int64_t expected_new_tokens = 0;
    std::deque<Reading> readings;      // the first is under way
    std::unique_ptr<Prefill> prefill;  // one of the two, null while answers are drafted
    std::unique_ptr<DevicePrefill> device;
    // Answers that are being drafted, [readings[0].drafting].
    struct Draft {
        SequenceId sequence = 0;
        std::vector<Token> tokens;
        std::size_t most = 0;
        bool ended = false;
    };
    std::vector<Draft> drafts;
    std::int64_t layers_read = 0, done = 0;  // tokens x layers; of the readings before
    PrefillResult result;
    std::vector<SequenceId> filled;  // [configs], 0: not yet
    double spent_ms = 0;

    Engine::Impl& engine() const { return *owner->impl_; }
    ~Impl() {
        for (const auto& draft : drafts) owner->release(draft.sequence);
        for (const auto id : filled) owner->release(id);
    }
    bool reads() const { return prefill || device; }
    // Readings that are still to come: at least, as long as there are drafts to be written.
    std::int64_t expected_readings() const {
        std::int64_t count = 0;
        for (std::size_t i = 0; i < readings.size(); ++i) {
            count += (i > 0 ? 1 : 0) + (readings[i].drafting.empty() ? 0 : 1);
        }
        return count;
    }
    Result<void> begin_reading();
    Result<void> end_reading();
    Result<void> draft_token();
    Result<bool> step(std::int64_t most_tokens);
};

PrefillJob::PrefillJob(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
PrefillJob::PrefillJob(PrefillJob&&) noexcept = default;
PrefillJob& PrefillJob::operator=(PrefillJob&&) noexcept = default;
PrefillJob::~PrefillJob() = default;

Result<void> Engine::check(std::span<const Token> prompt, const MethodConfig& asked) const {
    if (auto checked = impl_->check_prompt(prompt); !checked) return checked;
    if (auto checked = impl_->check_recall(asked); !checked) return checked;
    const auto shared = impl_->shared(asked);
    if (!shared) return tl::unexpected(shared.error());
    const MethodConfig& config = *shared;
    const auto& info = model().info();
    const auto bytes = row_bytes(config.store, info.head_dim_k, info.head_dim_v);
    if (!bytes) return tl::unexpected(bytes.error());
    const auto method =
        Method::create(config, info.shape, static_cast<std::int64_t>(prompt.size()), *bytes);
    if (!method) return tl::unexpected(method.error());
    if (!method->needs().reconstruction || impl_->device) return {};
    const auto pieces = repeat_pieces(model().tokenizer(), prompt, info.context);
    return pieces ? Result<void>() : tl::unexpected(pieces.error());
}

Result<PrefillJob> Engine::start_prefill(std::span<const Token> prompt,
                                         std::span<const MethodConfig> asked,
                                         std::int64_t expected_new_tokens) {
    const auto start = now_ms();
    auto& self = *impl_;
    if (auto checked = self.check_prompt(prompt); !checked) return tl::unexpected(checked.error());
    if (asked.empty()) return bad_input("a prefill needs at least one method");
    std::vector<MethodConfig> configs;
    configs.reserve(asked.size());
    for (const auto& config : asked) {
        if (auto checked = self.check_recall(config); !checked) {
            return tl::unexpected(checked.error());
        }
        auto shared = self.shared(config);
        if (!shared) return tl::unexpected(shared.error());
        configs.push_back(std::move(*shared));
    }
    const auto& hyper = self.weights().hyper;
    auto readings =
        plan_readings(configs, hyper.shape, std::ssize(prompt), hyper.head_dim_k, hyper.head_dim_v);
    if (!readings) return tl::unexpected(readings.error());
    if (self.device) {
        std::vector<MethodConfig> all = configs;
        for (const auto& reading : *readings) {
            for (const auto& drafting : reading.drafting) all.push_back(drafting.config);
        }
        auto fits = self.check_memory(std::ssize(prompt), all, expected_new_tokens);
        if (!fits) return tl::unexpected(fits.error());
    }
    auto job = std::make_unique<PrefillJob::Impl>();
    job->owner = this;
    job->prompt.assign(prompt.begin(), prompt.end());
    job->configs = std::move(configs);
    job->expected_new_tokens = expected_new_tokens;
    job->readings = std::move(*readings);
    job->filled.resize(job->configs.size());
    if (auto begun = job->begin_reading(); !begun) return tl::unexpected(begun.error());
    job->spent_ms = now_ms() - start;
    return PrefillJob(std::move(job));
}

Result<PrefillTarget> Engine::Impl::target(const MethodConfig& config, std::int64_t prompt_tokens,
                                           std::int64_t expected_new_tokens) const {
    const auto& hyper = weights().hyper;
    const auto bytes = row_bytes(config.store, hyper.head_dim_k, hyper.head_dim_v);
    if (!bytes) return tl::unexpected(bytes.error());
    const CacheShape cache_shape{
        hyper.shape.layers, hyper.shape.kv_heads,        hyper.head_dim_k,
        hyper.head_dim_v,   row_type(config.store.keys), row_type(config.store.values)};
    assert(*bytes == cache_shape.row_bytes());
    auto method = Method::create(config, hyper.shape, prompt_tokens, *bytes);
    if (!method) return tl::unexpected(method.error());
    const bool grows = method->recipe().allocate == AllocateStep::all;
    const auto reserve = grows ? std::max<std::int64_t>(1, expected_new_tokens)
                               : std::max<std::int64_t>(1, config.options.reserve);
    std::optional<SequenceCache> archive;
    std::int64_t logged = 1;
    std::vector<KeyClusters> clusters;
    if (const auto kept = recall_of(config, method->recipe()); kept && recalls(*method)) {
        auto archive_shape = cache_shape;
        archive_shape.type_k = archive_shape.type_v = row_type(*kept);
        archive.emplace(archive_shape);
        // What a selection while answering looks at, besides the token that makes it.
        logged = std::max(logged, std::min(reserve, method->observe_answer()) - 1);
        if (const auto wanted = method->clusters(); wanted.size > 0) {
            clusters.assign(size(cache_shape.layers * cache_shape.heads), KeyClusters(wanted));
        }
    }
    return PrefillTarget{
        std::move(*method),
        reserve,
        SequenceCache(cache_shape, owner_of(config.share)),
        QueryLog(hyper.shape.layers, hyper.head_dim_k * hyper.shape.query_heads, logged),
        std::move(archive),
        std::move(clusters)};
}

Result<void> PrefillJob::Impl::begin_reading() {
    const auto& self = engine();
    const auto& reading = readings.front();
    std::vector<MethodConfig> wanted;
    wanted.reserve(reading.configs.size() + reading.drafting.size());
    for (const auto i : reading.configs) wanted.push_back(configs[i]);
    for (const auto& drafting : reading.drafting) wanted.push_back(drafting.config);
    if (self.device) {
        auto made = self.device->start_prefill(prompt, wanted, reading.draft, expected_new_tokens);
        if (!made) return tl::unexpected(made.error());
        device = std::move(*made);
        return {};
    }
    std::vector<PrefillTarget> targets;
    for (const auto& config : wanted) {
        auto made = self.target(config, std::ssize(prompt), expected_new_tokens);
        if (!made) return tl::unexpected(made.error());
        targets.push_back(std::move(*made));
    }
    auto chosen = self.prefill_options(false);
    if (std::ranges::any_of(
            targets, [](const auto& target) { return target.method.needs().reconstruction; })) {
        auto pieces = repeat_pieces(self.model->tokenizer(), prompt, self.model->info().context);
        if (!pieces) return tl::unexpected(pieces.error());
        chosen.repeats = std::move(*pieces);
    }
    chosen.draft = reading.draft;
    chosen.share = reading.share;
    auto made =
        Prefill::create(self.pipeline.compute(0), *self.model, prompt, std::move(targets), chosen);
    if (!made) return tl::unexpected(made.error());
    prefill = std::move(*made);
    return {};
}

// The sequences that a reading of this CPU's own kernels has filled, in the order of its targets.
std::vector<SequenceId> Engine::Impl::take(Prefill& prefill) {
    std::vector<SequenceId> ids;
    const auto length = prefill.tokens();
    for (auto& target : prefill.targets()) {
        Sequence sequence{std::move(target), length, length, 0, {}, 0};
        sequence.plan_bytes = sequence.state.cache.held_bytes();
        sequence.kept = rows_held(sequence.state.cache);
        ids.push_back(next_id);
        sequences.emplace(next_id++, std::move(sequence));
    }
    return ids;
}

// Takes what the reading under way has filled; begins the next one, or the drafts that it is for.
Result<void> PrefillJob::Impl::end_reading() {
    auto& self = engine();
    const auto& reading = readings.front();
    const auto length = std::ssize(prompt);
    std::vector<float> after;
    if (reading.draft.empty()) {  // else the one that it was written in has given them
        auto made = device ? device->logits(length - 1, 1) : prefill->logits(length - 1, 1);
        if (!made) return tl::unexpected(made.error());
        after = std::move(*made);
    }
    result.compress_ms += device ? device->compress_ms() : prefill->compress_ms();
    result.scratch_bytes =
        std::max(result.scratch_bytes, device ? device->scratch_bytes() : prefill->scratch_bytes());
    const auto ids = device ? self.device->take(*device, self.next_id) : self.take(*prefill);
    layers_read += self.shape.heads.layers;
    done += device ? device->total() : prefill->total();
    prefill.reset();
    device.reset();
    auto next = ids.begin();
    for (const auto i : reading.configs) filled[i] = *next++;
    const auto room = self.model->info().context - length;
    for (const auto& drafting : reading.drafting) {
        const auto most = std::min(configs[drafting.wanted_by[0]].options.draft, room);
        drafts.push_back({*next++, {}, size(most), most < 1});
        if (most > 0) drafts.back().tokens.push_back(best_token(after));
    }
    for (std::size_t i = 0; i < configs.size() && !after.empty(); ++i) {
        const auto owners = owner_of(configs[i].share);
        if (owners != owner_of(reading.share)) continue;
        (owners == owner_of(configs[0].share) ? result.logits : result.other_logits[i]) = after;
    }
    if (!drafts.empty()) return {};
    readings.pop_front();
    return readings.empty() ? Result<void>() : begin_reading();
}

// The next token of every draft; behind the last one, the readings that they are for come next.
Result<void> PrefillJob::Impl::draft_token() {
    const auto& tokenizer = owner->model().tokenizer();
    std::vector<DecodeInput> inputs;
    std::vector<Draft*> writing;
    for (auto& draft : drafts) {
        if (!draft.ended && tokenizer.is_end(draft.tokens.back())) {
            draft.tokens.pop_back();
            draft.ended = true;
        }
        draft.ended = draft.ended || draft.tokens.size() >= draft.most;
        if (draft.ended) continue;
        inputs.push_back({.sequence = draft.sequence, .token = draft.tokens.back()});
        writing.push_back(&draft);
    }
    if (!inputs.empty()) {
        if (auto decoded = owner->decode(inputs); !decoded) return decoded;
        for (std::size_t i = 0; i < writing.size(); ++i) {
            writing[i]->tokens.push_back(owner->best(i));
        }
        return {};
    }
    std::vector<std::vector<Token>> written;
    for (auto& draft : drafts) {
        owner->release(draft.sequence);
        written.push_back(std::move(draft.tokens));
    }
    drafts.clear();
    auto next = readings_of_drafts(readings.front(), written);
    readings.pop_front();
    readings.insert(readings.begin(), std::make_move_iterator(next.begin()),
                    std::make_move_iterator(next.end()));
    return begin_reading();
}

Result<bool> PrefillJob::Impl::step(std::int64_t most_tokens) {
    if (readings.empty()) return true;
    if (!reads()) {
        if (auto drafted = draft_token(); !drafted) return tl::unexpected(drafted.error());
        return false;
    }
    auto read = device ? device->step(most_tokens) : prefill->step(most_tokens);
    if (!read || !*read) return read;
    if (auto ended = end_reading(); !ended) return tl::unexpected(ended.error());
    return readings.empty();
}

Result<bool> PrefillJob::step(std::int64_t most_tokens) {
    const auto start = now_ms();
    auto done = impl_->step(most_tokens);
    impl_->spent_ms += now_ms() - start;
    return done;
}

std::int64_t PrefillJob::done() const {
    if (!impl_->reads()) return impl_->done;
    return impl_->done + (impl_->device ? impl_->device->done() : impl_->prefill->done());
}
std::int64_t PrefillJob::total() const {
    const auto expected =
        impl_->expected_readings() * std::ssize(impl_->prompt) * impl_->engine().shape.heads.layers;
    if (!impl_->reads()) return impl_->done + expected;
    return impl_->done + expected +
           (impl_->device ? impl_->device->total() : impl_->prefill->total());
}
std::int64_t PrefillJob::layers_done() const {
    if (!impl_->reads()) return impl_->layers_read;
    return impl_->layers_read + (impl_->device ? impl_->device->layer() : impl_->prefill->layer());
}
std::int64_t PrefillJob::layers() const {
    return impl_->layers_read + (impl_->expected_readings() + (impl_->reads() ? 1 : 0)) *
                                    impl_->engine().shape.heads.layers;
}

Result<PrefillResult> PrefillJob::finish() {
    assert(done() == total());
    auto result = std::move(impl_->result);
    result.sequences = std::exchange(impl_->filled, {});
    result.readings = impl_->layers_read / impl_->engine().shape.heads.layers;
    result.prefill_ms = impl_->spent_ms;
    return result;
}

Result<PrefillResult> Engine::prefill(std::span<const Token> prompt,
                                      std::span<const MethodConfig> configs,
                                      const PrefillOptions& options) {
    auto job = start_prefill(prompt, configs, options.expected_new_tokens);
    if (!job) return tl::unexpected(job.error());
    for (bool done = false; !done;) {
        const auto layers = job->layers_done();
        auto step = job->step();
        if (!step) return tl::unexpected(step.error());
        done = *step;
        if (options.progress && job->layers_done() != layers &&
            !options.progress(job->layers_done(), job->layers())) {
            return tl::unexpected(
                Error{ErrorKind::interrupted, "interrupted while reading the prompt"});
        }
    }
    return job->finish();
}

Result<std::vector<float>> Engine::log_probabilities(std::span<const Token> text,
                                                     const Progress& progress) {
    auto& self = *impl_;
    if (auto checked = self.check_prompt(text); !checked) return tl::unexpected(checked.error());
    if (self.device) return self.device->log_probabilities(text, progress);
    auto prefill = Prefill::create(self.pipeline.compute(0), *self.model, text, {},
                                   self.prefill_options(true));
    if (!prefill) return tl::unexpected(prefill.error());
    return text_log_probabilities(**prefill, text, self.weights().hyper.shape.layers,
                                  self.model->info().vocabulary, progress);
}

Result<std::vector<double>> Engine::value_cosines(std::span<const Token> text,
                                                  const Progress& progress) {
    auto& self = *impl_;
    if (auto checked = self.check_prompt(text); !checked) return tl::unexpected(checked.error());
    if (self.device) {
        return bad_input(
            "what attention makes of values is seen by the CPU's own kernels only: use --device "
            "cpu");
    }
    if (self.model->info().share) {
        return bad_input(
            "what attention makes of values is a layer's own, and layers of this model read those "
            "of others");
    }
    ValueCosines cosines(self.shape);
    auto options = self.prefill_options(true);
    options.cosines = &cosines;
    auto prefill = Prefill::create(self.pipeline.compute(0), *self.model, text, {}, options);
    if (!prefill) return tl::unexpected(prefill.error());
    if (auto read = read_text(**prefill, self.shape.heads.layers, progress); !read) {
        return tl::unexpected(read.error());
    }
    return cosines.means();
}

Result<TextStates> Engine::states(std::span<const Token> text,
                                  std::shared_ptr<const LayerMap> share) {
    auto& self = *impl_;
    if (auto checked = self.check_prompt(text); !checked) return tl::unexpected(checked.error());
    if (self.device) return bad_input("states of layers are read on the CPU: use --device cpu");
    const auto& own = self.model->info().share;
    if (own && share && share->owner != own->owner) {
        return bad_input(
            "the layers of this model share rows as it was trained, and not otherwise");
    }
    const auto& hyper = self.weights().hyper;
    TextStates states;
    const auto heads = hyper.shape.kv_heads, tokens = std::ssize(text);
    const auto all = [&](std::int64_t dim) {
        return size(hyper.shape.layers * heads * tokens * dim);
    };
    states.keys.resize(all(hyper.head_dim_k));
    states.values.resize(all(hyper.head_dim_v));
    auto options = self.prefill_options(true);
    if (share) options.share = std::move(share);
    options.visit = [&](std::int64_t layer, const LayerRows& rows) {
        const auto take = [&](std::span<const Half> from, std::int64_t dim,
                              std::vector<float>& to) {
            for (std::int64_t head = 0; head < heads; ++head) {
                kernels::best().to_float(from.data() + head * rows.head_rows() * dim,
                                         to.data() + (layer * heads + head) * tokens * dim,
                                         tokens * dim);
            }
        };
        take(rows.keys, hyper.head_dim_k, states.keys);
        take(rows.values, hyper.head_dim_v, states.values);
    };
    auto prefill = Prefill::create(self.pipeline.compute(0), *self.model, text, {}, options);
    if (!prefill) return tl::unexpected(prefill.error());
    if (auto read = read_text(**prefill, hyper.shape.layers, {}); !read) {
        return tl::unexpected(read.error());
    }
    auto final = (*prefill)->final_states();
    if (!final) return tl::unexpected(final.error());
    states.final = std::move(*final);
    return states;
}

// --- decode
// ----------------------------------------------------------------------------------------

Result<StepGraph*> Engine::Impl::step_graph(std::int64_t tokens, std::int64_t outputs, bool recalls,
                                            const std::vector<std::int64_t>& owner) {
    for (auto it = graphs.begin(); it != graphs.end(); ++it) {
        if (it->tokens == tokens && it->outputs == outputs && it->recalls == recalls &&
            it->owner == owner) {
            graphs.splice(graphs.begin(), graphs, it);
            return &graphs.front();
        }
    }
    const auto& hyper = weights().hyper;
    StepGraph step;
    step.tokens = tokens;
    step.outputs = outputs;
    step.recalls = recalls;
    step.owner = owner;
    step.inputs_context = make_context(4);
    auto* inputs = step.inputs_context.get();
    step.ids = ggml_new_tensor_1d(inputs, GGML_TYPE_I32, tokens);
    step.positions = ggml_new_tensor_1d(inputs, GGML_TYPE_I32, tokens);
    if (outputs > 0 && outputs < tokens)
        step.rows = ggml_new_tensor_1d(inputs, GGML_TYPE_I32, outputs);
    step.inputs_buffer.reset(ggml_backend_alloc_ctx_tensors(inputs, pipeline.compute(0).backend()));

    const auto nodes = kNodesPerLayer * (hyper.shape.layers + 1);
    step.context = make_context(nodes);
    auto* c = step.context.get();
    const GraphBuilder build{c, hyper, weights().weights, &step.products};
    step.graph = ggml_new_graph_custom(c, size(nodes), false);
    auto* x = build.embed(step.ids);
    for (std::int64_t layer = 0; layer < hyper.shape.layers; ++layer) {
        const auto& layer_weights = weights().weights.layers[size(layer)];
        const bool owned = owner.empty() || owner[size(layer)] == layer;
        const auto part = build.project(layer_weights, x, step.positions, owned);
        auto* selected = recalls ? step_recall.select(c, part.q, part.k, layer) : nullptr;
        x = build.finish_layer(layer_weights, x,
                               attention.attend(c, part.q, part.k, part.v, layer, selected));
    }
    if (step.rows != nullptr) x = ggml_get_rows(c, x, step.rows);
    if (outputs > 0) x = step.logits = build.logits(x);
    ggml_build_forward_expand(step.graph, x);
    step.allocator.reset(
        ggml_gallocr_new(ggml_backend_get_default_buffer_type(pipeline.compute(0).backend())));
    if (!step.inputs_buffer || !ggml_gallocr_alloc_graph(step.allocator.get(), step.graph)) {
        return failure("not enough memory to decode {} tokens at once", tokens);
    }
    graphs.push_front(std::move(step));
    if (std::ssize(graphs) > kMostGraphs) graphs.pop_back();
    return &graphs.front();
}

// Attention of the last recorded queries over the rows held, per query head; softmax per query,
// causal among the newest rows, mean over the queries as the method weighs them. [query_heads][rows
// of its head]
std::vector<std::vector<float>> Engine::Impl::observed(const Sequence& sequence, std::int64_t layer,
                                                       std::int64_t queries) const {
    const auto& kernel = kernels::best();
    const auto& cache = sequence.state.cache;
    const auto& log = sequence.state.log;
    std::vector<std::vector<float>> result;
    std::vector<float> q(size(shape.dim_k)), scores;
    for (std::int64_t head = 0; head < shape.heads.query_heads; ++head) {
        const auto kv_head = head / shape.heads.group();
        const auto held = cache.head(layer, kv_head).count;
        const auto count = std::min({queries, log.recorded(), held});
        const auto counts = query_weights(count, sequence.state.method.query_decay());
        std::vector<float> mean(size(held), 0.0F);
        scores.resize(size(held));
        for (std::int64_t i = 0; i < count; ++i) {
            const float* from = log.at(log.written - count + i, layer) + head * shape.dim_k;
            for (std::int64_t d = 0; d < shape.dim_k; ++d) q[size(d)] = from[d] * shape.scale;
            if (kernels::rotated(cache.shape().type_k)) kernels::rotate(q.data(), shape.dim_k);
            const auto seen = held - count + i + 1;
            kernel.dot_keys(q.data(), 1, cache.rows(layer, kv_head, 0, seen), shape.dim_k,
                            scores.data(), seen);
            kernel.softmax(scores.data(), seen);
            const float counted = counts.each[size(i)];
            for (std::int64_t j = 0; j < seen; ++j) mean[size(j)] += counted * scores[size(j)];
        }
        for (auto& value : mean) value /= std::max(1.0F, counts.sum);
        result.push_back(std::move(mean));
    }
    return result;
}

// What other layers that read these rows look at, too: the larger value of each.
void Engine::Impl::join_readers(const Sequence& sequence, std::int64_t layer,
                                std::vector<std::vector<float>>& attention_of) const {
    const auto& map = sequence.state.method.config().share;
    for (auto reader = layer + 1; map && reader < shape.heads.layers; ++reader) {
        if (map->owner_of(reader) != layer) continue;
        const auto other = observed(sequence, reader, sequence.state.method.observe_answer());
        for (std::size_t head = 0; head < other.size(); ++head) {
            std::transform(other[head].begin(), other[head].end(), attention_of[head].begin(),
                           attention_of[head].begin(),
                           [](float a, float b) { return std::max(a, b); });
        }
    }
}

// Cuts every head back to what the method allows it, by the same score and selection as the prompt.
Result<void> Engine::Impl::reselect(Sequence& sequence) {
    auto& state = sequence.state;
    std::vector<KeyTurn> turns;
    const auto heads = shape.heads.kv_heads;
    const auto group = shape.heads.group();
    for (std::int64_t layer = 0; layer < shape.heads.layers; ++layer) {
        if (!state.cache.owns(layer)) continue;
        std::vector<std::vector<float>> attention_of;
        if (state.method.observe_answer() > 0) {
            attention_of = observed(sequence, layer, state.method.observe_answer());
            join_readers(sequence, layer, attention_of);
        }
        for (std::int64_t head = 0; head < heads; ++head) {
            const auto count = state.cache.head(layer, head).count;
            const auto bound =
                state.method.bound(layer, head, sequence.kept[size(layer * heads + head)]);
            if (count <= bound) continue;
            std::vector<float> flat;  // [group][count]
            if (!attention_of.empty()) {
                for (std::int64_t g = 0; g < group; ++g) {
                    const auto& part = attention_of[size(head * group + g)];
                    flat.insert(flat.end(), part.begin(), part.end());
                }
            }
            const auto positions = state.cache.positions(layer, head);
            const auto keep =
                state.classes.empty()
                    ? state.method.keep_head(flat, count, bound, positions)
                    : state.method.keep_classed(state.classes[size(layer * heads + head)], flat,
                                                positions, state.kinds, bound);
            state.cache.keep(layer, head, keep);
            if (state.method.in_cache_positions()) close_gaps(head, keep, count, turns);
        }
        auto turned = turn_keys(pipeline.compute(0), model->impl(), layer, turns, state.cache);
        if (!turned) return turned;
        turns.clear();
    }
    return {};
}

// Whether the next token of a sequence selects its rows from the archive before it attends: with it
// the reserve would be full.
bool Engine::Impl::selects_now(const Sequence& sequence) const {
    const auto& state = sequence.state;
    if (!state.archive) return false;
    return state.cache.room() == 0 || sequence.since + 1 >= state.reserve;
}

// Rows that each head holds after such a token, as StepSelection has them; 0: the head has dropped
// nothing and need not. None where that is so for all, or where nothing is to be selected.
std::vector<std::int64_t> Engine::Impl::rows_recalled(const Sequence& sequence) const {
    std::vector<std::int64_t> rows;
    if (!selects_now(sequence)) return rows;
    bool any = false;
    for (std::int64_t layer = 0; layer < shape.heads.layers; ++layer) {
        for (std::int64_t head = 0; head < shape.heads.kv_heads; ++head) {
            const auto kept = sequence.kept[rows.size()];
            const auto bound = sequence.state.method.bound(layer, head, kept);
            rows.push_back(sequence.tokens < bound ? 0 : bound);
            any = any || rows.back() > 0;
        }
    }
    return any ? rows : std::vector<std::int64_t>();
}

// What the next token of a sequence selects, if anything; the cache has room for it then.
std::optional<StepSelection> Engine::Impl::begin_selection(Sequence& sequence) const {
    auto& state = sequence.state;
    auto rows = rows_recalled(sequence);
    if (rows.empty()) return std::nullopt;
    // Queries since the last selection score this one, as many as the method observes.
    const auto queries = std::min(state.reserve, state.method.observe_answer());
    StepSelection selection{.method = &state.method,
                            .archive = &*state.archive,
                            .cache = &state.cache,
                            .log = &state.log,
                            .clusters = state.clusters.empty() ? nullptr : &state.clusters,
                            .queries = queries,
                            .rows = std::move(rows)};
    StepRecall::drop_rows(selection);
    sequence.since = -1;  // the step's first token is part of this selection
    return selection;
}

Result<void> Engine::Impl::make_room(Sequence& sequence) {
    auto& state = sequence.state;
    if (state.method.recipe().allocate == AllocateStep::all) {
        // A full cache grows by an eighth: few copies, little waste.
        return state.cache.grow(std::max<std::int64_t>(256, sequence.tokens / 8));
    }
    if (auto done = reselect(sequence); !done) return done;
    if (!state.archive) state.log.resize(1);
    // Heads below their bound (a short prompt) have dropped nothing: they get more memory instead.
    return state.cache.room() > 0 ? Result<void>{} : state.cache.grow(state.reserve);
}

Result<void> Engine::Impl::run_step(std::span<const DecodeInput> inputs,
                                    std::span<const Item> items,
                                    std::vector<StepSelection> selections) {
    std::vector<std::int32_t> ids, positions, rows;
    std::vector<DecodeAttention::Slot> slots;
    std::int64_t outputs = 0;
    for (const auto& item : items) {
        auto& sequence = *item.sequence;
        if (slots.empty() || slots.back().cache != &sequence.state.cache) {
            slots.push_back({&sequence.state.cache, &sequence.state.log,
                             static_cast<std::int64_t>(ids.size()), 0});
            for (auto& selection : selections) {
                if (selection.cache == slots.back().cache) selection.first = slots.back().first;
            }
        }
        positions.push_back(static_cast<std::int32_t>(sequence.tokens + slots.back().count));
        ++slots.back().count;
        if (inputs[item.input].want_logits) {
            rows.push_back(static_cast<std::int32_t>(ids.size()));
            logit_of[item.input] =
                static_cast<std::int64_t>(logits.size()) / model->info().vocabulary + outputs;
            ++outputs;
        }
        ids.push_back(inputs[item.input].token);
    }
    const bool recalls = !selections.empty();
    // Rows that no sequence of the step stores are not computed.
    const auto& first = items[0].sequence->state.method.config();
    auto owner = owner_of(first.share);
    for (const auto& item : items) {
        const auto& other = item.sequence->state.method.config();
        if (other.share != first.share && owner_of(other.share) != owner) owner.clear();
    }
    const auto graph = step_graph(static_cast<std::int64_t>(ids.size()), outputs, recalls, owner);
    if (!graph) return tl::unexpected(graph.error());
    auto& step = **graph;
    ggml_backend_tensor_set(step.ids, ids.data(), 0, ggml_nbytes(step.ids));
    ggml_backend_tensor_set(step.positions, positions.data(), 0, ggml_nbytes(step.positions));
    if (step.rows != nullptr)
        ggml_backend_tensor_set(step.rows, rows.data(), 0, ggml_nbytes(step.rows));
    step_recall.prepare(std::move(selections));
    attention.prepare(slots, shape.heads.layers);
    step.products.restart();
    if (auto done = pipeline.compute(0).run(step.graph); !done) return done;
    for (std::size_t i = 0, slot = 0; i < items.size(); i += size(slots[slot++].count)) {
        auto& sequence = *items[i].sequence;
        const auto count = slots[slot].count;
        sequence.state.cache.append(sequence.tokens, count);
        sequence.state.log.written += count;
        sequence.tokens += count;
        sequence.since += count;
        if (!sequence.state.classes.empty()) {
            const auto now =
                std::span<const Token>(ids).subspan(size(slots[slot].first), size(count));
            const auto kinds = token_kinds(*weights().tokenizer, now);
            auto& all = sequence.state.kinds;
            all.insert(all.end(), kinds.begin(), kinds.end());
        }
        if (!sequence.state.archive) continue;
        if (auto kept = archive_newest(sequence.state, count); !kept) return kept;
    }
    if (outputs > 0) {
        const auto before = logits.size();
        logits.resize(before + size(outputs * model->info().vocabulary));
        ggml_backend_tensor_get(step.logits, logits.data() + before, 0, ggml_nbytes(step.logits));
    }
    return {};
}

// One token of every sequence at a time.
Result<void> Engine::Impl::decode_on_device(
    std::span<const DecodeInput> inputs,
    const std::map<SequenceId, std::vector<std::size_t>>& queue) {
    best.assign(inputs.size(), -1);
    for (std::size_t round = 0;; ++round) {
        std::vector<DecodeInput> now;
        std::vector<std::size_t> from;
        bool want_logits = false;
        for (const auto& [id, waiting] : queue) {
            if (round >= waiting.size()) continue;
            from.push_back(waiting[round]);
            now.push_back(inputs[waiting[round]]);
            want_logits = want_logits || now.back().want_logits;
        }
        if (now.empty()) return {};
        if (auto done = device->step(now, want_logits); !done) return done;
        for (std::size_t i = 0; i < now.size(); ++i) {
            if (!want_logits) best[from[i]] = device->best(i);
            if (!now[i].want_logits) continue;
            const auto row = device->logits(i);
            logit_of[from[i]] = static_cast<std::int64_t>(logits.size()) / model->info().vocabulary;
            logits.insert(logits.end(), row.begin(), row.end());
        }
    }
}

Result<void> Engine::decode(std::span<const DecodeInput> inputs) {
    auto& self = *impl_;
    const auto context = self.model->info().context;
    std::map<SequenceId, std::vector<std::size_t>> queue;  // inputs of each sequence, in order
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        if (!self.holds(inputs[i].sequence)) {
            return bad_input("no sequence {}", inputs[i].sequence);
        }
        const Token token = inputs[i].token;
        if (auto checked = self.check_tokens({&token, 1}); !checked) return checked;
        queue[inputs[i].sequence].push_back(i);
    }
    for (const auto& [id, waiting] : queue) {
        const auto before = self.device ? self.device->tokens(id) : self.sequences.at(id).tokens;
        const auto total = before + static_cast<std::int64_t>(waiting.size());
        if (total > context) {
            return bad_input(
                "the conversation would have {} tokens, {} more than the model's context of {}",
                total, total - context, context);
        }
    }
    self.logits.clear();
    self.logit_of.assign(inputs.size(), -1);
    if (self.device) return self.decode_on_device(inputs, queue);
    std::map<SequenceId, std::size_t> done;
    while (true) {
        std::vector<Impl::Item> items;
        std::vector<StepSelection> selections;
        for (const auto& [id, waiting] : queue) {
            auto& sequence = self.sequences.at(id);
            auto& next = done[id];
            if (next == waiting.size()) continue;
            auto& state = sequence.state;
            auto most = self.options.chunk;
            if (auto selection = self.begin_selection(sequence)) {
                selections.push_back(std::move(*selection));
            }
            if (state.archive) {
                const auto before_next = state.reserve - 1 - sequence.since;
                most = std::clamp<std::int64_t>(before_next, 1, most);
            }
            if (state.cache.room() == 0) {
                if (auto made = self.make_room(sequence); !made) return made;
            }
            auto room = state.cache.room();
            // The last queries before the reserve is full do the next selection.
            const auto observe = state.method.observe_answer();
            if (observe > state.log.capacity &&
                state.method.recipe().allocate != AllocateStep::all) {
                if (room <= observe) {
                    state.log.resize(observe);
                } else {
                    room -= observe;
                }
            }
            const auto some = std::min(waiting.size() - next, size(std::min(room, most)));
            for (std::size_t i = 0; i < some; ++i) items.push_back({waiting[next + i], &sequence});
            next += some;
        }
        if (items.empty()) return {};
        auto ran = self.run_step(inputs, items, std::move(selections));
        if (!ran) return ran;
    }
}

std::span<const float> Engine::logits(std::size_t input) const {
    const auto row = impl_->logit_of.at(input);
    assert(row >= 0 && "logits were not asked for");
    const auto vocabulary = impl_->model->info().vocabulary;
    return {impl_->logits.data() + row * vocabulary, size(vocabulary)};
}

Token Engine::best(std::size_t input) const {
    if (impl_->logit_of.at(input) >= 0) {
        const auto row = logits(input);
        return best_token(row);
    }
    return input < impl_->best.size() ? impl_->best[input] : -1;
}

// The logits after a piece of a turn that selects anew; empty where there is nothing to select: no
// archive, or all rows are within the budget.
Result<std::vector<float>> Engine::Impl::recall(SequenceId id, std::span<const Token> turn) {
    const auto found = sequences.find(id);
    if (found == sequences.end() || !found->second.state.archive) return std::vector<float>();
    auto& sequence = found->second;
    auto& state = sequence.state;
    if (auto checked = check_tokens(turn); !checked) return tl::unexpected(checked.error());
    const auto total = sequence.tokens + static_cast<std::int64_t>(turn.size());
    if (total > model->info().context) return std::vector<float>();  // decode() says so
    const auto method =
        method_of_turn(state.method, shape.heads, total, state.cache.shape().row_bytes());
    if (!method) return tl::unexpected(method.error());
    if (method->runs_as_full()) return std::vector<float>();
    auto result = recall_turn(pipeline.compute(0), *model, *method, state, sequence.tokens, turn);
    if (!result) return result;
    sequence.tokens = total;
    sequence.kept = rows_held(state.cache);
    sequence.since = 0;
    state.method = *method;  // its bounds are the rows held now
    return result;
}

Result<std::vector<float>> Engine::extend(SequenceId sequence, std::span<const Token> tokens) {
    if (tokens.empty()) return bad_input("no tokens to extend the sequence with");
    for (std::size_t first = 0; first < tokens.size();) {
        const auto some = std::min(tokens.size() - first, size(impl_->options.chunk));
        auto recalled = impl_->recall(sequence, tokens.subspan(first, some));
        if (!recalled) return tl::unexpected(recalled.error());
        if (!recalled->empty()) {
            first += some;
            if (first == tokens.size()) return std::move(*recalled);
            continue;
        }
        std::vector<DecodeInput> inputs;
        for (std::size_t i = 0; i < some; ++i) {
            inputs.push_back({sequence, tokens[first + i], first + i + 1 == tokens.size()});
        }
        if (auto done = decode(inputs); !done) return tl::unexpected(done.error());
        first += some;
    }
    const auto last = logits(impl_->logit_of.size() - 1);
    return std::vector<float>(last.begin(), last.end());
}

// --- sequences
// -------------------------------------------------------------------------------------

void Engine::release(SequenceId sequence) {
    if (impl_->device) return impl_->device->release(sequence);
    impl_->sequences.erase(sequence);
}

Result<SequenceId> Engine::copy(SequenceId sequence) {
    if (!impl_->holds(sequence)) return bad_input("no sequence {}", sequence);
    if (impl_->device) return impl_->device->copy(sequence, impl_->next_id);
    const auto found = impl_->sequences.find(sequence);
    const auto& from = found->second;
    try {
        Sequence twin{
            {from.state.method, from.state.reserve, from.state.cache.copy(), from.state.log, {}},
            from.prompt_tokens,
            from.tokens,
            from.plan_bytes,
            from.kept,
            from.since};
        if (from.state.archive) twin.state.archive = from.state.archive->copy();
        twin.state.clusters = from.state.clusters;
        twin.state.classes = from.state.classes;
        twin.state.kinds = from.state.kinds;
        const auto id = impl_->next_id++;
        impl_->sequences.emplace(id, std::move(twin));
        return id;
    } catch (const std::bad_alloc&) {
        return failure("not enough memory to copy sequence {}", sequence);
    }
}

SequenceInfo Engine::info(SequenceId sequence) const {
    if (!impl_->holds(sequence)) return {};
    if (impl_->device) return impl_->device->info(sequence);
    const auto found = impl_->sequences.find(sequence);
    const auto& from = found->second;
    const auto& shape = from.state.cache.shape();
    SequenceInfo info;
    info.method = from.state.method.recipe().name;
    info.prompt_tokens = from.prompt_tokens;
    info.tokens = from.tokens;
    info.rows_budget = from.state.method.rows_budget();
    info.rows_kept_mean =
        static_cast<double>(std::accumulate(from.kept.begin(), from.kept.end(), std::int64_t{0})) /
        static_cast<double>(from.kept.size());
    info.plan_bytes = from.plan_bytes;
    info.held_bytes = from.state.cache.held_bytes();
    info.allocated_bytes = from.state.cache.allocated_bytes();
    info.archive_bytes = from.state.archive ? from.state.archive->held_bytes() : 0;
    const auto& model = impl_->model->info();
    info.full_bytes = from.prompt_tokens * shape.heads * model.row_bytes *
                      (model.share ? model.share->owners() : shape.layers);
    info.store = from.state.method.config().store;
    info.runs_as_full = from.state.method.runs_as_full();
    return info;
}

std::vector<std::vector<std::vector<std::int32_t>>> Engine::positions(SequenceId sequence) const {
    std::vector<std::vector<std::vector<std::int32_t>>> result;
    if (!impl_->holds(sequence)) return result;
    if (impl_->device) return impl_->device->positions(sequence);
    const auto found = impl_->sequences.find(sequence);
    const auto& cache = found->second.state.cache;
    for (std::int64_t layer = 0; layer < cache.shape().layers; ++layer) {
        result.emplace_back();
        for (std::int64_t head = 0; head < cache.shape().heads; ++head) {
            result.back().emplace_back();
            if (!cache.owns(layer)) continue;
            const auto held = cache.positions(layer, head);
            result.back().back().assign(held.begin(), held.end());
        }
    }
    return result;
}

std::vector<std::vector<float>> Engine::attention(SequenceId sequence, std::int64_t layer) const {
    if (impl_->device) {
        return impl_->device->holds(sequence) ? impl_->device->attention(sequence, layer)
                                              : std::vector<std::vector<float>>();
    }
    const auto found = impl_->sequences.find(sequence);
    if (found == impl_->sequences.end()) return {};
    return impl_->observed(found->second, layer, 1);
}

}  // namespace headkv
