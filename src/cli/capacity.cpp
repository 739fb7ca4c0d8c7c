#include "cli/capacity.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <utility>

#include "cli/run_report.h"
#include "engine/placement.h"

namespace headkv::cli {

namespace {

using Json = nlohmann::ordered_json;

constexpr const char* capacity_group = "What a GPU holds (with --model)";

// So many sequences at once.
struct Point {
    std::int64_t sequences = 0;
    std::int64_t bytes = 0;  // in use at the worst moment
    StepCost step;
    double tokens_per_second = 0;  // in total
};

struct MethodFigures {
    std::string title;
    std::string missing;  // why there are no figures; empty: they follow
    MethodConfig config = {};
    SequenceUse use = {};            // where a device has several slots
    SequenceUse alone = {};          // and where it has one
    std::int64_t most = 0;           // sequences that fit; -1: not even the model
    std::int64_t layers = 0;         // where none fits: --gpu-layers that would
    std::vector<Point> points = {};  // one, the most, and --slots where it is given; ascending
    MemoryUse memory = {};           // with the most, or with one where none fits
};

struct Figures {
    ModelInfo model;
    DeviceRates rates;
    std::int64_t memory = 0, prompt = 0, new_tokens = 0, gpus = 1;
    double prefill_seconds = 0;
    std::vector<MethodFigures> methods;
    std::vector<Stage> stages;  // where the layers lie; empty: all on one GPU

    bool on_cpu() const { return !stages.empty() && stages[0].device == "cpu"; }
    // Of the stages on GPUs; nothing: the whole model on one.
    std::vector<std::optional<ModelPart>> gpu_parts() const {
        std::vector<std::optional<ModelPart>> parts;
        const auto all = parts_of(stages);
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (stages[i].device != "cpu") parts.emplace_back(all[i]);
        }
        if (stages.empty()) parts.emplace_back();
        return parts;
    }
};

// Of the GPU that needs most.
MemoryUse largest_use(const Figures& figures, const SequenceUse& sequence, DeviceLoad load) {
    MemoryUse most;
    for (const auto& part : figures.gpu_parts()) {
        load.part = part;
        const auto use = memory_use(figures.model, load, {&sequence, 1});
        if (use.total() > most.total()) most = use;
    }
    return most;
}

// Seconds that a GPU spends on a whole answer where `point` run at once.
double answer_seconds(const Figures& figures, const Point& point) {
    return static_cast<double>(figures.new_tokens) * point.step.seconds() /
           static_cast<double>(point.sequences);
}

Point point_of(const Figures& figures, const MethodFigures& method, DeviceLoad load,
               std::int64_t sequences) {
    load.sequences = sequences;
    const auto& use = sequences == 1 ? method.alone : method.use;
    Point point;
    point.sequences = sequences;
    point.bytes = figures.rates.context_bytes + largest_use(figures, use, load).total();
    // An answer is half done on the mean.
    point.step = step_cost(figures.model, use, sequences, figures.new_tokens / 2, figures.rates);
    point.tokens_per_second = static_cast<double>(sequences) / point.step.seconds();
    return point;
}

Result<MethodFigures> figures_of(const CapacityArguments& arguments, const Figures& figures,
                                 const std::string& written) {
    MethodFigures method;
    auto config = method_config(arguments.method, written, figures.model);
    if (!config) return tl::unexpected(config.error());
    method.config = std::move(*config);
    method.title = method_title(written, method.config.store);
    for (const bool alone : {false, true}) {
        const auto use = sequence_use(figures.model, method.config, figures.prompt,
                                      figures.new_tokens, alone ? 1 : 2);
        if (!use) return tl::unexpected(use.error());
        (alone ? method.alone : method.use) = *use;
    }
    const DeviceLoad load{.methods = {method.config},
                          .prompt = figures.prompt,
                          .new_tokens = figures.new_tokens,
                          .graphs = kMostGraphs};
    const auto available = figures.memory - figures.rates.context_bytes;
    method.most = std::numeric_limits<std::int64_t>::max();
    for (const auto& part : figures.gpu_parts()) {
        DeviceLoad one = load;
        one.part = part;
        method.most =
            std::min(method.most, most_sequences(figures.model, one, method.use, available));
    }
    // One alone may have room where the first of several slots has not.
    if (method.most < 1 && largest_use(figures, method.alone, load).total() <= available) {
        method.most = 1;
    }
    if (method.most < 1 && figures.stages.empty()) {
        method.layers = most_layers(figures.model, load, available);
    }
    DeviceLoad held = load;
    held.sequences = std::max<std::int64_t>(1, method.most);
    const auto& holds = held.sequences == 1 ? method.alone : method.use;
    method.memory = largest_use(figures, holds, held);
    for (const auto sequences : std::set{std::int64_t{1}, arguments.slots, method.most}) {
        if (sequences < 1) continue;
        method.points.push_back(point_of(figures, method, load, sequences));
    }
    return method;
}

// The sum over a part's layers.
std::int64_t of_part(const std::vector<std::int64_t>& layers, const ModelPart& part) {
    const auto begin = layers.begin() + part.first;
    return std::accumulate(begin, begin + part.layers, std::int64_t{0});
}

// --- as JSON

Json point_json(const Figures& figures, const Point& point) {
    const double answer = answer_seconds(figures, point);
    if (figures.on_cpu()) {
        return {{"sequences", point.sequences},
                {"memory_bytes", point.bytes},
                {"fits", point.bytes <= figures.memory}};
    }
    return {{"sequences", point.sequences},
            {"memory_bytes", point.bytes},
            {"fits", point.bytes <= figures.memory},
            {"step_ms", point.step.seconds() * 1e3},
            {"step_ms_weights", point.step.weights * 1e3},
            {"step_ms_rows", point.step.rows * 1e3},
            {"step_ms_products", point.step.products * 1e3},
            {"step_ms_launches", point.step.launches * 1e3},
            {"decode_tok_s", point.tokens_per_second},
            {"answers_per_s", 1 / answer},
            {"readers_per_answerer", figures.prefill_seconds / answer},
            {"questions_per_s",
             static_cast<double>(figures.gpus) / (figures.prefill_seconds + answer)}};
}

Json method_json(const Figures& figures, const MethodFigures& method) {
    if (!method.missing.empty()) return {{"title", method.title}, {"missing", method.missing}};
    const SequenceUse& use = method.use;
    Json json = {{"method", method.config.method},
                 {"title", method.title},
                 {"rows_mean", number(use.rows_mean)},
                 {"type_k", name_of(method.config.store.keys)},
                 {"type_v", name_of(method.config.store.values)},
                 {"kv_bytes", use.plan_bytes},
                 {"kv_bytes_allocated", use.allocated_bytes},
                 {"mask_bytes", use.mask_bytes},
                 {"log_bytes", use.log_bytes},
                 {"groups", use.groups},
                 {"sequences", std::max<std::int64_t>(0, method.most)},
                 {"gpu_layers_that_fit", method.layers},
                 {"memory",
                  {{"weights", method.memory.weights},
                   {"caches", method.memory.caches},
                   {"prefill", method.memory.prefill},
                   {"step", method.memory.step},
                   {"context", figures.rates.context_bytes}}}};
    json["points"] = Json::array();
    for (const Point& point : method.points) json["points"].push_back(point_json(figures, point));
    const auto parts = parts_of(figures.stages);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        json["placement"].push_back({{"device", figures.stages[i].device},
                                     {"first_layer", parts[i].first},
                                     {"layers", parts[i].layers},
                                     {"weight_bytes", weight_bytes(figures.model, parts[i])},
                                     {"kv_bytes", of_part(use.layer_plan_bytes, parts[i])},
                                     {"allocated_bytes", of_part(use.layer_bytes, parts[i])}});
    }
    return json;
}

Json figures_json(const Figures& figures) {
    const DeviceRates& rates = figures.rates;
    Json json = {{"model", model_title(figures.model)},
                 {"fingerprint", figures.model.fingerprint},
                 {"version", version()},
                 {"prompt_tokens", figures.prompt},
                 {"new_tokens", figures.new_tokens},
                 {"gpus", figures.gpus},
                 {"prefill_ms", figures.prefill_seconds * 1e3},
                 {"prefill_tok_s",
                  per_second(static_cast<double>(figures.prompt), figures.prefill_seconds * 1e3)},
                 {"device",
                  {{"memory_bytes", figures.memory},
                   {"bandwidth", rates.bandwidth},
                   {"weights_alone", rates.weights_alone},
                   {"weights_together", rates.weights_together},
                   {"rows_alone", rates.rows_alone},
                   {"rows_together", rates.rows_together},
                   {"product_flops", rates.product_flops},
                   {"attention_flops", rates.attention_flops},
                   {"layer_us", rates.layer_us},
                   {"group_us", rates.group_us},
                   {"context_bytes", rates.context_bytes}}}};
    json["methods"] = Json::array();
    for (const auto& method : figures.methods) {
        json["methods"].push_back(method_json(figures, method));
    }
    return json;
}

// --- as text

std::string size_text(std::int64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

std::string memory_table(const Figures& figures) {
    std::vector<std::vector<std::string>> rows = {{"method", "rows/head", "KV", "allocated", "fit",
                                                   "caches", "weights", "reading", "steps",
                                                   "driver"}};
    for (const auto& method : figures.methods) {
        if (!method.missing.empty()) continue;
        const MemoryUse& memory = method.memory;
        rows.push_back({method.title, fmt::format("{:.1f}", method.use.rows_mean),
                        size_text(method.use.plan_bytes), size_text(method.use.bytes()),
                        fmt::format("{}", std::max<std::int64_t>(0, method.most)),
                        size_text(memory.caches), size_text(memory.weights),
                        size_text(memory.prefill), size_text(memory.step),
                        size_text(figures.rates.context_bytes)});
    }
    return rows.size() > 1 ? render_table(rows, false) : std::string();
}

// What lies where: the weights, and one sequence of each method.
std::string placement_table(const Figures& figures) {
    std::vector<std::vector<std::string>> rows = {{"device", "layers", "weights"}};
    for (const auto& method : figures.methods) {
        if (method.missing.empty()) rows[0].push_back("a cache of " + method.title);
    }
    const auto parts = parts_of(figures.stages);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const ModelPart& part = parts[i];
        auto& row = rows.emplace_back();
        row = {figures.stages[i].device,
               fmt::format("{} to {}", part.first, part.first + part.layers - 1),
               size_text(weight_bytes(figures.model, part))};
        for (const auto& method : figures.methods) {
            if (!method.missing.empty()) continue;
            row.push_back(size_text(of_part(method.use.layer_bytes, part)));
        }
    }
    return rows.size() > 1 ? render_table(rows, false) : std::string();
}

std::string speed_table(const Figures& figures) {
    if (figures.on_cpu()) return {};  // what its CPU reaches is not known
    std::vector<std::vector<std::string>> rows = {{"method", "sequences", "memory", "step",
                                                   "weights", "rows", "products", "launches",
                                                   "tok/s in total", "readers/answerer"}};
    const auto ms = [](double seconds) { return fmt::format("{:.2f}", seconds * 1e3); };
    for (const auto& method : figures.methods) {
        for (const Point& point : method.points) {
            const bool fits = point.bytes <= figures.memory;
            rows.push_back(
                {method.title, fmt::format("{}", point.sequences),
                 size_text(point.bytes) + (fits ? "" : " (too much)"),
                 ms(point.step.seconds()) + " ms", ms(point.step.weights), ms(point.step.rows),
                 ms(point.step.products), ms(point.step.launches),
                 fmt::format("{:.0f}", point.tokens_per_second),
                 fmt::format("{:.2f}", figures.prefill_seconds / answer_seconds(figures, point))});
        }
    }
    return rows.size() > 1 ? render_table(rows, false) : std::string();
}

// All of the GPUs answering from what they hold; or every question with a document of its own, and
// then so many GPUs' time goes into reading and into answering, however the two are spread.
std::string fleet_table(const Figures& figures) {
    std::vector<std::vector<std::string>> rows = {
        {"method", "held", "tok/s, all answering", "documents/s", "GPUs reading", "answering"}};
    const auto gpus = static_cast<double>(figures.gpus);
    for (const auto& method : figures.methods) {
        if (!method.missing.empty() || method.most < 1) continue;
        const Point& point = *std::ranges::find(method.points, method.most, &Point::sequences);
        const double answer = answer_seconds(figures, point);
        const double share = figures.prefill_seconds / (figures.prefill_seconds + answer);
        rows.push_back({method.title, fmt::format("{}", point.sequences * figures.gpus),
                        fmt::format("{:.0f}", point.tokens_per_second * gpus),
                        fmt::format("{:.2f}", gpus / (figures.prefill_seconds + answer)),
                        fmt::format("{:.1f}", gpus * share),
                        fmt::format("{:.1f}", gpus * (1 - share))});
    }
    return rows.size() > 1 ? render_table(rows, false) : std::string();
}

std::string figures_text(const Figures& figures) {
    const ModelInfo& model = figures.model;
    std::string text = fmt::format(
        "{}: {} layers x {} KV heads, weights {}; a GPU of {} that reads {:.0f} GB/s\n"
        "a prompt of {} tokens is read in {} ({:.0f} tok/s); answers of {} tokens\n",
        model_title(model), model.shape.layers, model.shape.kv_heads, size_text(model.weight_bytes),
        size_text(figures.memory), figures.rates.bandwidth / 1e9, figures.prompt,
        human_ms(figures.prefill_seconds * 1e3),
        static_cast<double>(figures.prompt) / figures.prefill_seconds, figures.new_tokens);
    for (const std::string& table :
         {placement_table(figures), memory_table(figures), speed_table(figures)}) {
        if (!table.empty()) text += "\n" + table;
    }
    if (figures.gpus > 1 && !figures.on_cpu()) {
        text += fmt::format(
            "\n{} such GPUs: what they hold and answer, or a document for each question\n{}",
            figures.gpus, fleet_table(figures));
    }
    for (const auto& method : figures.methods) {
        if (!method.missing.empty()) {
            text += fmt::format("\n{}: no figures: {}\n", method.title, method.missing);
        } else if (method.most < 1) {
            text += fmt::format(
                "\n{}: nothing fits: {} are needed for one sequence{}\n", method.title,
                size_text(method.points[0].bytes),
                method.layers > 0 ? fmt::format("; --gpu-layers {} fits", method.layers) : "");
        }
    }
    return text;
}

// --- the command

Result<MeasuredGpu> gpu_of(const std::string& name) {
    const auto gpus = measured_gpus();
    if (name.empty()) return gpus[0];
    const auto found = std::ranges::find(gpus, std::string_view(name), &MeasuredGpu::name);
    if (found != gpus.end()) return *found;
    std::string known;
    for (const auto& gpu : gpus) known += fmt::format("{}{}", known.empty() ? "" : ", ", gpu.name);
    return bad_input(
        "--gpu {}: not measured; there are {}: take the nearest, with --bandwidth and "
        "--device-memory of yours",
        name, known);
}

Result<std::int64_t> memory_of(const CapacityArguments& arguments, const MeasuredGpu& gpu) {
    if (arguments.memory.empty()) return gpu.memory;
    const auto bytes = parse_bytes(arguments.memory);
    if (!bytes) return bad_input("--device-memory: {}", bytes.error().message);
    constexpr std::int64_t least = 64 << 20, most = std::int64_t{1} << 50;
    if (*bytes < least || *bytes > most) {
        return bad_input("--device-memory {}: no GPU has so much; give 64MiB to 1024TiB",
                         arguments.memory);
    }
    return *bytes;
}

Result<Figures> figures_for(const CapacityArguments& arguments) {
    Figures figures;
    const auto gpu = gpu_of(arguments.gpu);
    if (!gpu) return tl::unexpected(gpu.error());
    figures.rates = gpu->rates;
    const auto memory = memory_of(arguments, *gpu);
    if (!memory) return tl::unexpected(memory.error());
    figures.memory = *memory;
    if (!arguments.bandwidth.empty()) {
        const auto bandwidth = parse_bandwidth(arguments.bandwidth);
        if (!bandwidth) return bad_input("--bandwidth: {}", bandwidth.error().message);
        figures.rates.bandwidth = *bandwidth;
    }
    if (arguments.prompt.empty()) {
        return bad_input("how long are the prompts? Give --prompt TOKENS, such as --prompt 32k");
    }
    const auto prompt = parse_count(arguments.prompt);
    if (!prompt) return bad_input("--prompt: {}", prompt.error().message);
    figures.prompt = *prompt;
    figures.new_tokens = arguments.new_tokens;
    figures.gpus = arguments.gpus;
    // What needs no file is said first.
    const auto budget = method_budget(arguments.method);
    if (!budget) return tl::unexpected(budget.error());
    constexpr double most_rows = 1 << 17;  // planning for blocks of rows takes the square of it
    if (budget->value > most_rows) {
        return bad_input("--rows {}: the planner takes at most {} rows a head; `full` keeps all",
                         budget->value, most_rows);
    }
    for (const auto& written : arguments.methods) {
        if (auto checked = check_method(arguments.method, written); !checked) {
            return tl::unexpected(checked.error());
        }
    }
    auto model = read_model_info(arguments.model);
    if (!model) return tl::unexpected(model.error());
    figures.model = std::move(*model);
    if (arguments.gpu_layers || !arguments.gpu_split.empty()) {
        std::vector<DeviceMemory> gpus(std::max<std::size_t>(1, arguments.gpu_split.size()));
        for (std::size_t i = 0; i < gpus.size(); ++i) gpus[i].device = fmt::format("gpu{}", i);
        auto stages = place_layers(figures.model, gpus, arguments.gpu_split, arguments.gpu_layers);
        if (!stages) return tl::unexpected(stages.error());
        figures.stages = std::move(*stages);
        if (figures.gpu_parts().empty()) {
            return bad_input("--gpu-layers 0: nothing lies on a GPU then; give 1 or more");
        }
    }
    figures.prefill_seconds = prefill_seconds(figures.model, figures.prompt, figures.rates);
    return figures;
}

}  // namespace

void add_capacity_options(CLI::App& command, CapacityArguments& arguments) {
    const auto add = [&](const char* flag, auto& target, const std::string& help,
                         const char* type) {
        return command.add_option(flag, target, help)->type_name(type)->group(capacity_group);
    };
    add("-m,--model", arguments.model, "model file (GGUF); only its header is read", "FILE");
    add("--gpu", arguments.gpu, "h100 or h200: whose measured speeds the figures follow (h100)",
        "NAME");
    add("--device-memory", arguments.memory, "memory of the GPU (80GiB; h200: 141GiB)", "SIZE");
    add("--prompt", arguments.prompt, "tokens of a prompt, such as 32k", "N");
    add("--methods", arguments.methods,
        "see `headkv methods`; options of one: snapkv:kv-type=q8_0 (all)", "NAME,...")
        ->delimiter(',')
        ->allow_extra_args(false);
    add("--slots", arguments.slots, "sequences at once, besides one and the most that fit", "N")
        ->check(CLI::Range(1, 1 << 20));
    add("--bandwidth", arguments.bandwidth,
        "memory bandwidth of the GPU (3350GB/s; h200: 4800GB/s)", "RATE");
    add("--kv-type", arguments.kv_type, "how rows are stored: f16, q8_0, q4_0, or q8_0:q4_0",
        "TYPE");
    add("-n,--new-tokens", arguments.new_tokens, "tokens of an answer", "N")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20));
    add("--gpu-layers", arguments.gpu_layers,
        "the last N layers and the output on the GPU, the rest on the CPU (all)", "N")
        ->check(CLI::Range(0, 1 << 20));
    add("--gpu-split", arguments.gpu_split,
        "GPUs that share one model's layers, by shares of its weights, such as 3,1", "X,...")
        ->delimiter(',')
        ->allow_extra_args(false);
    add("--gpus", arguments.gpus, "GPUs that share the work, each with the whole model", "N")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20));
}

Result<void> capacity_plan(const CapacityArguments& given) {
    CapacityArguments arguments = given;
    if (!arguments.kv_type.empty()) arguments.method.kv_type = arguments.kv_type;
    auto figures = figures_for(arguments);
    if (!figures) return tl::unexpected(figures.error());
    const bool all = arguments.methods.empty();
    if (all) {
        for (const Recipe& recipe : recipes()) arguments.methods.emplace_back(recipe.name);
    }
    // Of all methods, some may want what is not there: head scores, or what a device does not
    // compute. What was named must be possible, and something with a budget besides.
    std::optional<Error> first;
    bool any = false;
    for (const auto& written : arguments.methods) {
        auto method = figures_of(arguments, *figures, written);
        if (!method) {
            if (!all) return tl::unexpected(method.error());
            if (!first) first = method.error();
            method = MethodFigures{.title = written, .missing = method.error().message};
        } else {
            const auto recipe = find_recipe(written);
            any = any || !recipe || (*recipe)->allocate != AllocateStep::all;
        }
        figures->methods.push_back(std::move(*method));
    }
    if (all && !any && first) return tl::unexpected(*first);
    const auto context = figures->model.context;
    if (figures->prompt + figures->new_tokens > context) {
        note(fmt::format(
            "{} tokens of prompt and answer are more than the model's context of {}: the figures "
            "are those of a model that could",
            figures->prompt + figures->new_tokens, context));
    }
    if (arguments.json != "-") {
        if (auto printed = print(figures_text(*figures)); !printed) return printed;
    }
    if (arguments.json.empty()) return {};
    return write_output(arguments.json, dump(figures_json(*figures)));
}

}  // namespace headkv::cli
