#include "engine/capacity.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <numeric>
#include <set>
#include <tuple>

#include "engine/device_engine.h"
#include "engine/head_places.h"

namespace headkv {

namespace {

constexpr std::int64_t kF32 = 4, kF16 = 2, kI32 = 4;
constexpr double kMicro = 1e-6;

double as_double(std::int64_t value) { return static_cast<double>(value); }

// Memory of the chunk that takes most, and of the observation and compaction behind a layer; ggml
// reuses it, see WorkMemory.
std::int64_t prefill_work_bytes(const ModelInfo& model, const DeviceLoad& load, std::int64_t chunk,
                                std::span<const SequenceUse> uses) {
    // The normed input, gate, up and their product, or the queries beside what they attend to.
    const auto forward = model.embedding + 3 * model.feed_forward;
    const auto attention =
        model.shape.query_heads * (model.head_dim_k + model.head_dim_v) + model.embedding;
    auto most = std::max(forward, attention) * std::min(chunk, load.prompt) * kF32;
    for (const SequenceUse& use : uses) {
        // Products of the last queries with all keys, and their transpose.
        most = std::max(most, 2 * use.observed * model.shape.query_heads * load.prompt * kF32);
        // The rows of a group's heads, gathered.
        most =
            std::max(most, use.largest_group * std::max(model.head_dim_k, model.head_dim_v) * kF32);
    }
    return most;
}

// Of a device that has the whole model.
ModelPart all_of(const ModelInfo& model) { return {0, model.shape.layers, true, true, false}; }

// What DevicePrefill allocates.
std::int64_t prefill_bytes(const ModelInfo& model, const DeviceLoad& load,
                           std::span<const SequenceUse> uses) {
    const auto tokens = load.prompt;
    if (load.part && load.part->layers == 0) {
        return std::min(load.chunk, tokens) * model.embedding * kF32;
    }
    const auto padded = whole_blocks(tokens);
    const auto chunk = std::min(whole_blocks(load.chunk), padded);
    const auto heads = model.shape.kv_heads;
    const auto hidden = tokens * model.embedding * kF32;
    const auto two_layers = 2 * padded * heads * (model.head_dim_k + model.head_dim_v) * kF16;
    const auto mask = (padded + chunk) * chunk * kF16;
    std::int64_t others = 2 * tokens * kI32 + 2 * heads * padded * kI32;  // ids, positions, chosen
    std::set<std::tuple<std::int64_t, std::int64_t, double>> observed;
    for (const SequenceUse& use : uses) {
        observed.emplace(use.observed, use.skipped, use.query_decay);
    }
    for (const auto& [queries, behind, decay] : observed) {
        if (queries == 0) continue;
        if (decay != 1) others += queries * kF32;
        others += tokens * (queries + model.shape.query_heads) * kF32;
    }
    return hidden + two_layers + mask + others + prefill_work_bytes(model, load, chunk, uses);
}

// What the graph of a step over so many sequences allocates.
std::int64_t step_bytes(const ModelInfo& model, const ModelPart& part, std::int64_t sequences) {
    const auto widest = std::max(3 * model.feed_forward, part.makes_logits ? model.vocabulary : 0);
    return sequences * (2 * model.embedding + widest) * kF32;
}

// The largest value in [low, high] that fits; low - 1 if none does.
std::int64_t largest(std::int64_t low, std::int64_t high,
                     const std::function<bool(std::int64_t)>& fits) {
    --low;
    while (low < high) {
        const auto middle = high - (high - low) / 2;
        if (fits(middle)) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

// Bytes that converting a row of `k` and `v` quantised values takes at once. Types that differ are
// converted by way of f32, keys first, whose f16 stays; equal ones by the attention itself.
std::int64_t converted_peak(std::int64_t k, std::int64_t v, bool mixed) {
    if (!mixed) return (k + v) * kF16;
    return std::max(k * (kF32 + kF16), k * kF16 + v * (kF32 + kF16));
}

std::string gib(std::int64_t bytes) {
    constexpr double kGib = 1 << 30, kMib = 1 << 20;
    const auto value = as_double(bytes);
    return value < kGib ? fmt::format("{:.1f} MiB", value / kMib)
                        : fmt::format("{:.1f} GiB", value / kGib);
}

std::string names_of(const DeviceLoad& load) {
    std::string names;
    for (const auto& config : load.methods) names += (names.empty() ? "" : ", ") + config.method;
    return names;
}

bool fits(const ModelInfo& model, const DeviceLoad& load, std::int64_t available) {
    const auto use = memory_use(model, load);
    return use && use->total() <= available;
}

bool in_rows(const MethodConfig& config) {
    return config.method != "full" && config.budget.unit == Budget::Unit::rows;
}

// The most rows a head, in whole blocks, that every method of the load can have; 0: none. Plans of
// many rows take long to make: few are tried, around where bytes in proportion to rows would end.
std::int64_t most_rows(const ModelInfo& model, const DeviceLoad& load, std::int64_t available) {
    double asked = 0;
    for (const auto& config : load.methods) {
        if (in_rows(config)) asked = std::max(asked, config.budget.value);
    }
    const auto use = memory_use(model, load);
    const auto room = available - (use->total() - use->caches);
    if (asked == 0 || room <= 0) return 0;
    const auto fit = [&](std::int64_t rows) {
        DeviceLoad other = load;
        for (auto& config : other.methods) {
            if (in_rows(config)) config.budget.value = std::min(asked, as_double(rows));
        }
        return rows > 0 && fits(model, other, available);
    };
    const auto share = std::min(1.0, as_double(room) / as_double(use->caches));
    auto rows = static_cast<std::int64_t>(asked * share) / kRowBlock * kRowBlock;
    constexpr int tries = 8;
    for (int i = 0; i < tries && rows > 0 && !fit(rows); ++i) rows -= kRowBlock;
    for (int i = 0; i < tries && as_double(rows + kRowBlock) < asked; ++i) {
        if (!fit(rows + kRowBlock)) break;
        rows += kRowBlock;
    }
    return fit(rows) ? rows : 0;
}

// The end of a refusal: the most sequences that fit, else the most rows, else the longest prompt.
std::string what_fits(const ModelInfo& model, const DeviceLoad& load, std::int64_t available,
                      std::span<const SequenceUse> uses) {
    DeviceLoad other = load;
    const auto sequences = largest(1, load.sequences - 1, [&](std::int64_t count) {
        other.sequences = count;
        return memory_use(model, other, uses).total() <= available;
    });
    if (sequences > 0) return fmt::format("{} at a time fit (--slots {})", sequences, sequences);
    other.sequences = 1;
    const auto rows = most_rows(model, other, available);
    if (rows > 0) return fmt::format("--rows {} fits", rows);
    const auto prompt = largest(1, load.prompt - 1, [&](std::int64_t count) {
        other.prompt = count;
        return fits(model, other, available);
    });
    if (prompt > 0) return fmt::format("a prompt of {} tokens fits", prompt);
    return "not even a prompt of one token fits; take a smaller model, or one with fewer bits a "
           "weight";
}

// The end of a refusal where a device was to hold all layers; empty where it cannot hold any.
std::string layers_that_fit(const ModelInfo& model, const DeviceLoad& load,
                            std::int64_t available) {
    if (load.part && !load.part->beside_cpu) return "";
    const auto layers = most_layers(model, load, available);
    return layers > 0 ? fmt::format("; with the rest on the CPU --gpu-layers {} fits", layers) : "";
}

Result<std::vector<SequenceUse>> uses_of(const ModelInfo& model, const DeviceLoad& load) {
    std::vector<SequenceUse> uses;
    for (const auto& config : load.methods) {
        auto use = sequence_use(model, config, load.prompt, load.new_tokens, load.sequences);
        if (!use) return tl::unexpected(use.error());
        uses.push_back(*use);
    }
    return uses;
}

constexpr std::int64_t kGiB = std::int64_t{1} << 30;
constexpr std::array kGpus = {MeasuredGpu{"h100", 80 * kGiB, {}},
                              MeasuredGpu{"h200",
                                          141 * kGiB,
                                          {.bandwidth = 4800e9,
                                           .weights_alone = 0.552,
                                           .weights_together = 0.372,
                                           .rows_alone = 0.78,
                                           .rows_together = 0.73,
                                           .product_flops = 185e12,
                                           .attention_flops = 222e12,
                                           .layer_us = 31,
                                           .group_us = 25}}};

}  // namespace

std::span<const MeasuredGpu> measured_gpus() { return kGpus; }

std::vector<ModelPart> parts_of(std::span<const Stage> stages) {
    std::vector<ModelPart> parts;
    std::int64_t first = 0;
    for (std::size_t i = 0; i < stages.size(); ++i) {
        const bool last = i + 1 == stages.size();
        const bool beside_cpu = i == 1 && last && stages[0].device == "cpu";
        parts.push_back({first, stages[i].layers, i == 0, last, beside_cpu});
        first += stages[i].layers;
    }
    return parts;
}

std::int64_t weight_bytes(const ModelInfo& model, const ModelPart& part) {
    if (part.embeds && part.makes_logits) return model.weight_bytes;
    const auto begin = model.layer_bytes.begin() + part.first;
    return std::accumulate(begin, begin + part.layers, std::int64_t{0}) +
           (part.embeds ? model.embedding_bytes : 0) + (part.makes_logits ? model.output_bytes : 0);
}

std::int64_t usable_bytes(const FreeMemory& memory) {
    if (memory.limit > 0) return memory.limit;
    if (memory.total == 0) return 0;
    return std::max<std::int64_t>(1, memory.loaded + memory.free - kPoolBytes);
}

Result<SequenceUse> sequence_use(const ModelInfo& model, const MethodConfig& config,
                                 std::int64_t prompt, std::int64_t new_tokens, std::int64_t slots) {
    const auto row = row_bytes(config.store, model.head_dim_k, model.head_dim_v);
    if (!row) return tl::unexpected(row.error());
    const auto bytes = *row;
    const auto method = DeviceEngine::method_for(config, model.shape, prompt, bytes, slots);
    if (!method) return tl::unexpected(method.error());
    const bool grows = method->recipe().allocate == AllocateStep::all;
    const auto reserve = std::max<std::int64_t>(1, grows ? new_tokens : config.options.reserve);
    const auto& plan = method->plan();
    SequenceUse use;
    use.mixed = config.store.keys != config.store.values;
    const auto k = config.store.keys == StoreStep::f16 ? 0 : model.head_dim_k;
    const auto v = config.store.values == StoreStep::f16 ? 0 : model.head_dim_v;
    use.converted_row = (k + v) * kF16;
    use.row_bytes = bytes;
    use.reserve = reserve;
    use.rows = plan.total();
    use.rows_mean = as_double(use.rows) / as_double(plan.layers * plan.heads);
    use.plan_bytes = use.rows * bytes;
    use.observed = method->needs().queries;
    use.skipped = method->needs().skip;
    use.query_decay = method->needs().query_decay;
    use.log_bytes = model.shape.layers * method->observe_answer() * model.shape.query_heads *
                    model.head_dim_k * kF16;
    use.shared = !method->rows_follow_prompt();
    const auto& layout = method->config().layout;
    std::set<std::vector<std::int64_t>> classes;  // rows kept by heads that share a mask
    for (std::int64_t layer = 0; layer < plan.layers; ++layer) {
        const auto rows = std::span(plan.rows).subspan(static_cast<std::size_t>(layer * plan.heads),
                                                       static_cast<std::size_t>(plan.heads));
        auto& layer_bytes = use.layer_bytes.emplace_back(use.log_bytes / plan.layers);
        use.layer_plan_bytes.push_back(std::accumulate(rows.begin(), rows.end(), std::int64_t{0}) *
                                       bytes);
        for (const auto& places : place_heads(rows, layout, reserve)) {
            use.allocated_bytes += places.rows(1) * bytes;
            layer_bytes += places.rows(1) * bytes;
            use.largest_group =
                std::max(use.largest_group,
                         std::accumulate(places.kept.begin(), places.kept.end(), std::int64_t{0}));
            use.converted_bytes =
                std::max(use.converted_bytes, places.read() * converted_peak(k, v, use.mixed));
            if (classes.insert(places.kept).second) {
                use.mask_bytes += places.read() * kF16;
                layer_bytes += places.read() * kF16;
            }
            ++use.groups;
        }
    }
    // The heads of a layer will differ, whatever the budget looks like.
    if (!use.shared && !method->runs_as_full() && layout.groups > 0)
        use.groups = std::min<std::int64_t>(2, plan.heads) * plan.layers;
    return use;
}

MemoryUse memory_use(const ModelInfo& model, const DeviceLoad& load,
                     std::span<const SequenceUse> uses) {
    MemoryUse result;
    const auto part = load.part.value_or(all_of(model));
    result.weights = weight_bytes(model, part);
    std::int64_t converted = 0;
    for (const SequenceUse& use : uses) {
        const auto begin = use.layer_bytes.begin() + part.first;
        result.caches +=
            load.sequences * std::accumulate(begin, begin + part.layers, std::int64_t{0});
        if (part.layers == 0) continue;
        converted = std::max(converted, load.sequences * use.converted_bytes);
    }
    result.prefill = prefill_bytes(model, load, uses);
    result.step = load.graphs * step_bytes(model, part, load.sequences) + converted;
    return result;
}

Result<MemoryUse> memory_use(const ModelInfo& model, const DeviceLoad& load) {
    const auto uses = uses_of(model, load);
    if (!uses) return tl::unexpected(uses.error());
    return memory_use(model, load, *uses);
}

std::int64_t most_sequences(const ModelInfo& model, const DeviceLoad& load, const SequenceUse& use,
                            std::int64_t available) {
    DeviceLoad other = load;
    other.sequences = 0;
    const auto free = available - memory_use(model, other, {&use, 1}).total();
    if (free < 0) return -1;
    other.sequences = 1;
    const auto each = memory_use(model, other, {&use, 1}).total() + free - available;
    return free / each;
}

StepCost step_cost(const ModelInfo& model, const SequenceUse& use, std::int64_t sequences,
                   std::int64_t new_tokens, const DeviceRates& rates) {
    const bool alone = sequences == 1;
    const auto heads = model.shape.layers * model.shape.kv_heads;
    const auto gained = std::min(new_tokens, use.reserve);
    const auto rows = as_double(sequences * (use.rows + gained * heads));
    double bytes = rows * as_double(use.row_bytes);
    // Read, written as f16 and read again; before that, where types differ, the same as f32.
    if (use.mixed) {
        bytes += 6 * rows * as_double(use.converted_row);
    } else if (!alone) {
        bytes += 2 * rows * as_double(use.converted_row);
    }
    // Caches of their own are computed one after the other.
    const auto calls = as_double(use.groups * (use.shared ? 1 : sequences));
    const auto layers = as_double(model.shape.layers);
    StepCost cost;
    cost.weights = as_double(model.step_bytes) /
                   (rates.bandwidth * (alone ? rates.weights_alone : rates.weights_together));
    cost.rows = bytes / (rates.bandwidth * (alone ? rates.rows_alone : rates.rows_together));
    // The arithmetic of a single column hides behind the reading.
    if (!alone) {
        cost.products = 2 * as_double(model.step_weights * sequences) / rates.product_flops;
    }
    cost.launches = (layers * rates.layer_us + (calls - layers) * rates.group_us) * kMicro;
    return cost;
}

double prefill_seconds(const ModelInfo& model, std::int64_t prompt, const DeviceRates& rates) {
    // Logits are computed of the last token alone.
    const auto weights = as_double(
        std::max<std::int64_t>(0, model.step_weights - model.embedding * model.vocabulary));
    const auto tokens = as_double(prompt);
    // A token attends to half of them on the mean.
    const auto attention = as_double(model.shape.layers * model.shape.query_heads *
                                     (model.head_dim_k + model.head_dim_v)) *
                           tokens * tokens;
    return 2 * weights * tokens / rates.product_flops + attention / rates.attention_flops;
}

std::int64_t most_layers(const ModelInfo& model, const DeviceLoad& load, std::int64_t available) {
    const auto uses = uses_of(model, load);
    if (!uses) return 0;
    auto other = load;
    return largest(1, model.shape.layers - 1, [&](std::int64_t count) {
        other.part = ModelPart{model.shape.layers - count, count, false, true, true};
        return memory_use(model, other, *uses).total() <= available;
    });
}

Result<void> check_fits(const ModelInfo& model, const DeviceLoad& load, std::int64_t available,
                        const std::string& device) {
    const auto uses = uses_of(model, load);
    if (!uses) return {};
    const auto use = memory_use(model, load, *uses);
    if (use.total() <= available) return {};
    if (use.weights > available || load.methods.empty()) {
        return bad_input(
            "not enough memory on {}: the weights take {} and {} are free; take a smaller model, "
            "or one with fewer bits a weight{}",
            device, gib(use.weights), gib(std::max<std::int64_t>(0, available)),
            layers_that_fit(model, load, available));
    }
    return bad_input(
        "not enough memory on {}: {} are needed (weights {}, caches of {} x {} tokens ({}) {}, "
        "reading {}, a step {}) and {} are free; {}{}",
        device, gib(use.total()), gib(use.weights), load.sequences, load.prompt, names_of(load),
        gib(use.caches), gib(use.prefill), gib(use.step), gib(available),
        what_fits(model, load, available, *uses), layers_that_fit(model, load, available));
}

}  // namespace headkv
