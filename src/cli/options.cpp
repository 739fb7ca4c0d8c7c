#include "cli/options.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <system_error>

#include "cli/numbers.h"
#include "engine/placement.h"
#include "headkv/session.h"
#include "model/cores.h"

namespace headkv::cli {

namespace {

constexpr const char* method_group = "Method";
constexpr const char* budget_group = "Budget (one of)";
constexpr const char* prompt_group = "Prompt";
constexpr const char* model_group = "Model";

std::filesystem::path executable_folder() {
    std::error_code error;
    const auto file = std::filesystem::read_symlink("/proc/self/exe", error);
    return error ? std::filesystem::path(".") : file.parent_path();
}

// Empty for a size in bytes; takes its argument as CLI11's validators do.
std::string size_error(const std::string& text) {
    const auto bytes = parse_bytes(text);
    return bytes ? std::string() : bytes.error().message;
}

Result<double> parse_rows(std::string_view text) {
    const auto value = number<double>(text);
    if (!value || !std::isfinite(*value) || *value <= 0) {
        return bad_input("--rows {} is no number of rows per head: give one above 0, such as 128",
                         text);
    }
    return *value;
}

// Several files may be given: each method takes the one measured for it, else the first.
Result<std::shared_ptr<const HeadScores>> given_scores(const MethodArguments& arguments,
                                                       const Recipe& recipe,
                                                       const ModelInfo& model) {
    std::shared_ptr<const HeadScores> chosen;
    std::string file;
    for (const std::string& path : arguments.heads) {
        auto scores = load_head_scores(path);
        if (!scores) return tl::unexpected(scores.error());
        const bool fits = scores->kind.empty() || scores->kind == recipe.score_kind;
        if (chosen && !fits) continue;
        chosen = std::make_shared<const HeadScores>(std::move(*scores));
        file = path;
        if (fits) break;
    }
    auto checked =
        check_head_scores(*chosen, model.shape, model.fingerprint, arguments.force_scores);
    if (!checked) return tl::unexpected(checked.error());
    // Method::create refuses the kind of another method; any other kind is the user's choice.
    const bool of_a_method = std::ranges::any_of(
        recipes(), [&](const Recipe& other) { return other.score_kind == chosen->kind; });
    if (!chosen->kind.empty() && !of_a_method) {
        note(fmt::format("{} holds scores of kind {}, {} was made for kind {}", file, chosen->kind,
                         recipe.name, recipe.score_kind));
    }
    return chosen;
}

Result<std::shared_ptr<const HeadScores>> scores_of(const MethodArguments& arguments,
                                                    const Recipe& recipe, const ModelInfo& model) {
    if (recipe.score_kind.empty()) return nullptr;
    if (!arguments.heads.empty()) return given_scores(arguments, recipe, model);
    auto found =
        find_head_scores(score_folders(), model.fingerprint, std::string(recipe.score_kind));
    if (!found) return tl::unexpected(found.error());
    auto checked = check_head_scores(*found, model.shape, model.fingerprint, false);
    if (!checked) return tl::unexpected(checked.error());
    return std::make_shared<const HeadScores>(std::move(*found));
}

Result<std::int64_t> queries_to_observe(std::string_view text) {
    const auto value = number<std::int64_t>(text);
    if (!value || *value < 0) {
        return bad_input("--observe {} is unknown: give 0 or more queries, or question", text);
    }
    return *value;
}

Result<double> share_or_auto(std::string_view text) {
    if (text == "auto") return kByBudget;
    const auto value = number<double>(text);
    if (!value || !(*value >= 0 && *value <= 1)) {
        return bad_input("--shrink {} is unknown: give 0 to 1, or auto", text);
    }
    return *value;
}

// The map of layers that share rows: the model's own, --share, or for methods that need one by
// fingerprint.
Result<std::shared_ptr<const LayerMap>> share_of(const MethodArguments& arguments,
                                                 const Recipe& recipe, const ModelInfo& model) {
    if (model.share && arguments.share) {
        return bad_input(
            "the layers of {} share rows as it was trained, and cannot otherwise: leave --share "
            "out",
            model.name);
    }
    if (model.share) return model.share;
    if (auto latent = check_latent(recipe, nullptr); !latent) {
        return tl::unexpected(latent.error());
    }
    if (!arguments.share && !recipe.shares) return nullptr;
    auto map = arguments.share ? load_layer_map(*arguments.share)
                               : find_layer_map(score_folders(), model.fingerprint);
    if (!map) return tl::unexpected(map.error());
    auto fits = check_layer_map(*map, model.shape, model.fingerprint, arguments.force_scores);
    if (!fits) return tl::unexpected(fits.error());
    return std::make_shared<const LayerMap>(std::move(*map));
}

Result<Pool> parse_pool(const std::string& name) {
    if (name == "max") return Pool::max;
    if (name == "avg" || name == "mean") return Pool::avg;
    return bad_input("--pool {} is unknown: give max or avg", name);
}

Result<GroupReduce> parse_group_reduce(const std::string& name) {
    if (name == "mean") return GroupReduce::mean;
    if (name == "max") return GroupReduce::max;
    return bad_input("--group-reduce {} is unknown: give mean or max", name);
}

}  // namespace

void add_model_options(CLI::App& command, ModelArguments& arguments) {
    command.add_option("-m,--model", arguments.path, "model file (GGUF)")
        ->required()
        ->type_name("FILE")
        ->group(model_group);
    command.add_option("-t,--threads", arguments.load.threads, "CPU threads; 0: one per core")
        ->capture_default_str()
        ->check(CLI::Range(0, 1024))
        ->type_name("N")
        ->group(model_group);
    command
        .add_option("--device", arguments.load.device,
                    "auto, cpu, cuda (the first GPU), or GPUs that share the layers: cuda0,cuda1")
        ->capture_default_str()
        ->type_name("NAME")
        ->group(model_group);
    command
        .add_option("--gpu-layers", arguments.gpu_layers,
                    "the last N layers and the output on the GPU, the rest on the CPU (all)")
        ->check(CLI::Range(0, 1 << 20))
        ->type_name("N")
        ->group(model_group);
    command
        .add_option("--gpu-split", arguments.gpu_split,
                    "shares of the weights, one a GPU, such as 3,1 (by free memory)")
        ->delimiter(',')
        ->allow_extra_args(false)
        ->type_name("X,...")
        ->group(model_group);
    command
        .add_option_function<std::string>(
            "--precision",
            [&arguments](const std::string& name) {
                arguments.engine.precision = name == "fast" ? Precision::fast : Precision::exact;
            },
            "products of long prompts: exact (f32) or fast (bf16 where the CPU has AMX)")
        ->default_str("exact")
        ->check(CLI::IsMember({"exact", "fast"}))
        ->type_name("NAME")
        ->group(model_group);
    command
        .add_flag("--stock-ops", arguments.engine.stock_operations,
                  "compute with ggml's own operations alone, as on a GPU")
        ->group(model_group);
    command
        .add_option_function<std::string>(
            "--device-memory",
            [&arguments](const std::string& size) {
                arguments.engine.device_memory = parse_bytes(size).value_or(0);
            },
            "most of the GPU's memory to take, such as 40GiB (what is free); what cannot fit is "
            "refused before it begins")
        ->check(CLI::Validator(size_error, "", "size"))
        ->type_name("SIZE")
        ->group(model_group);
}

namespace {

bool on_cpu(const ModelArguments& arguments) {
    return arguments.load.device == "auto" || arguments.load.device == "cpu";
}

// The devices of --device; with --gpu-split so many of the first GPUs.
Result<std::vector<DeviceMemory>> named_devices(const ModelArguments& arguments) {
    std::vector<DeviceMemory> devices;
    std::string_view rest = arguments.load.device;
    const auto shares = arguments.gpu_split.size();
    if (rest == "cuda" && shares > 1) {
        devices = gpus();
        if (devices.size() >= shares) {
            devices.resize(shares);
            return devices;
        }
        return bad_input("--gpu-split has {} shares, here are {} GPUs", shares, devices.size());
    }
    while (true) {
        const auto comma = rest.find(',');
        auto device = device_memory(std::string(rest.substr(0, comma)));
        if (!device) return tl::unexpected(device.error());
        devices.push_back(std::move(*device));
        if (comma == std::string_view::npos) return devices;
        rest.remove_prefix(comma + 1);
    }
}

bool in_stages(const ModelArguments& arguments) {
    return arguments.gpu_layers || !arguments.gpu_split.empty() ||
           arguments.load.device.find(',') != std::string::npos;
}

// Where the layers go; nothing: all on --device.
Result<std::vector<Stage>> stages_of(const ModelArguments& arguments, const ModelInfo& model,
                                     std::span<const DeviceMemory> devices) {
    if (!in_stages(arguments)) return std::vector<Stage>();
    if (on_cpu(arguments) && !arguments.engine.stock_operations) {
        return bad_input("{} is for GPUs: give --device cuda as well",
                         arguments.gpu_layers ? "--gpu-layers" : "--gpu-split");
    }
    std::vector<DeviceMemory> free(devices.begin(), devices.end());
    for (auto& device : free) {
        const auto limit = arguments.engine.device_memory;
        if (limit > 0) device.free = limit;
    }
    return place_layers(model, free, arguments.gpu_split, arguments.gpu_layers);
}

// Weights that do not fit are said before they are read: the rest can wait until the prompt is
// known.
Result<void> check_weights(const ModelArguments& arguments, const ModelInfo& model) {
    const auto limited = limited_devices(arguments, model);
    if (!limited) return tl::unexpected(limited.error());
    for (const auto& device : *limited) {
        auto fits = check_fits(model, {.methods = {}, .prompt = 1, .part = device.part},
                               device.available, device.name);
        if (fits) continue;
        const auto count = gpus().size();
        if (in_stages(arguments) || count < 2) return fits;
        return bad_input("{}; here are {} GPUs: --device cuda0,cuda1", fits.error().message, count);
    }
    return {};
}

}  // namespace

Result<std::vector<LimitedDevice>> limited_devices(const ModelArguments& arguments,
                                                   const ModelInfo& model) {
    std::vector<LimitedDevice> limited;
    const auto limit = arguments.engine.device_memory;
    if (on_cpu(arguments) && !in_stages(arguments) &&
        (limit == 0 || !arguments.engine.stock_operations)) {
        return limited;
    }
    const auto devices = named_devices(arguments);
    if (!devices) return tl::unexpected(devices.error());
    const auto stages = stages_of(arguments, model, *devices);
    if (!stages) return tl::unexpected(stages.error());
    const auto parts = parts_of(*stages);
    const auto before = parts.size() > devices->size() ? 1U : 0U;  // the CPU's stage
    for (std::size_t i = 0; i < devices->size(); ++i) {
        const auto& device = (*devices)[i];
        const auto bytes = usable_bytes({.limit = limit,
                                         .free = device.own ? device.free : 0,
                                         .total = device.own ? device.total : 0});
        if (bytes == 0) continue;  // where the driver does not say, nothing is refused beforehand
        auto& made = limited.emplace_back(LimitedDevice{device.device, bytes, {}});
        if (before + i < parts.size() && parts.size() > 1) made.part = parts[before + i];
    }
    return limited;
}

Result<std::shared_ptr<const Model>> load_model(const ModelArguments& arguments) {
    if (arguments.engine.device_memory > 0 && on_cpu(arguments) &&
        !arguments.engine.stock_operations) {
        note("--device-memory is for --device cuda: nothing limits the CPU's memory");
    }
    auto load = arguments.load;
    if (!on_cpu(arguments) || in_stages(arguments) || arguments.engine.device_memory > 0) {
        const auto devices = named_devices(arguments);
        if (!devices) return tl::unexpected(devices.error());
        const auto info = read_model_info(arguments.path);
        if (!info) return tl::unexpected(info.error());
        auto stages = stages_of(arguments, *info, *devices);
        if (!stages) return tl::unexpected(stages.error());
        if (auto fits = check_weights(arguments, *info); !fits) {
            return tl::unexpected(fits.error());
        }
        if (!stages->empty()) {
            load.stages = std::move(*stages);
            load.device = load.stages.back().device;
        }
    }
    const int cores = usable_cores();
    if (arguments.load.threads > cores) {
        note(fmt::format("{} threads on {} cores: they will wait for each other; -t {} is faster",
                         arguments.load.threads, cores, cores));
    }
    auto model = Model::load(arguments.path, load);
    if (!model) return model;
    const auto& stages = (*model)->info().stages;
    if (stages.size() > std::max<std::size_t>(1, load.stages.size())) {
        note(fmt::format("{} does not take single rows of this embedding: it lies on the CPU",
                         stages[1].device));
    }
    return model;
}

std::string model_title(const ModelInfo& info) {
    return info.name.empty() ? std::filesystem::path(info.path).stem().string() : info.name;
}

namespace {

void add_budget_options(CLI::App& command, MethodArguments& arguments) {
    // Repeats are collected, so that method_budget() can name what was given twice.
    const auto repeats = CLI::MultiOptionPolicy::TakeAll;
    command
        .add_option("--rows", arguments.rows,
                    "rows per KV head, averaged over all heads, window included (default 128)")
        ->allow_extra_args(false)
        ->multi_option_policy(repeats)
        ->type_name("N")
        ->group(budget_group);
    command.add_option("--kv-bytes", arguments.bytes, "bytes of the cache; K, M, G suffixes")
        ->allow_extra_args(false)
        ->multi_option_policy(repeats)
        ->type_name("SIZE")
        ->group(budget_group);
    command.add_option("--keep", arguments.keep, "share of the prompt, such as 5% or 0.05")
        ->allow_extra_args(false)
        ->multi_option_policy(repeats)
        ->type_name("SHARE")
        ->group(budget_group);
}

void add_score_options(CLI::App& command, MethodArguments& arguments) {
    command
        .add_option(
            "--heads", arguments.heads,
            "head scores (repeatable, one a kind); default: found by the model's fingerprint")
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->type_name("FILE")
        ->group(method_group);
    command
        .add_flag("--force-scores", arguments.force_scores,
                  "take head scores of another model of the same shape")
        ->group(method_group);
}

void add_step_options(CLI::App& command, MethodArguments& a) {
    const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
        command.add_option(name, value, help)->type_name(type)->group(method_group);
    };
    const MethodOptions d, h = default_options(**find_recipe("headkv-r2"));
    command.add_option("--preset", a.preset, "paper: window 8, kernel 7, max pooling, beta 1.2")
        ->check(CLI::IsMember({"paper"}))
        ->type_name("NAME")
        ->group(method_group);
    add("--allocate", a.allocate,
        "how rows are shared, instead of the method's own way: uniform, pyramid, adaptive, "
        "head-importance or global",
        "HOW");
    add("--window", a.window,
        fmt::format("last prompt rows, always kept ({}; headkv {})", d.window, h.window).c_str(),
        "N");
    add("--protect", a.protect,
        fmt::format("first prompt rows, always kept, besides the window ({}; headkv {})", d.protect,
                    h.protect)
            .c_str(),
        "N");
    add("--observe", a.observe,
        fmt::format("last prompt queries that score (as many as the window; headkv {}); question: "
                    "those of the question",
                    h.observe)
            .c_str(),
        "N|question");
    add("--query-decay", a.query_decay,
        fmt::format("above 0, at most 1: what a query that scores counts beside the next one ({}: "
                    "all alike)",
                    d.query_decay)
            .c_str(),
        "D");
    add("--skip-tail", a.skip_tail,
        fmt::format("last prompt tokens whose queries do not score, such as a template's end ({})",
                    d.skip_tail)
            .c_str(),
        "N");
    add("--draft", a.draft,
        fmt::format("tokens of a drafted answer whose queries score, too; the prompt is read twice "
                    "({})",
                    d.draft)
            .c_str(),
        "N");
    add("--kernel", a.kernel, fmt::format("odd width of the pooling ({})", d.kernel).c_str(), "N");
    add("--pool", a.pool, "pooling over positions: avg (default) or max", "NAME");
    add("--group-reduce", a.group_reduce,
        "query heads of a KV head: mean (default) or max (headkv)", "NAME");
    add("--beta", a.beta,
        fmt::format("rows that follow the allocation are (rows - window) / beta "
                    "(by the budget and the scores, 1.2 to 5; pyramidkv {})",
                    d.pyramid_beta)
            .c_str(),
        "B");
    add("--pyramid-beta", a.pyramid_beta, "beta of pyramidkv alone", "B");
    add("--floor", a.floor,
        fmt::format("ada-kv: share of the rows that is uniform ({})", d.floor).c_str(), "F");
    add("--normalize", a.normalize,
        "ada-kv: scale a head's scores by the mass its best rows hold: yes (default) or no",
        "YES|NO");
    add("--temperature", a.temperature,
        fmt::format("head scores are taken to this power ({})", d.temperature).c_str(), "T");
    add("--shrink", a.shrink,
        fmt::format("0 to 1: moves head scores towards equal ones ({}); auto: 1 - 64 / rows",
                    d.shrink)
            .c_str(),
        "S|auto");
    add("--mix", a.mix,
        fmt::format("0 to 1: part of a layer's rows that its heads compete for, besides their "
                    "scores ({})",
                    d.mix)
            .c_str(),
        "M");
    add("--chunk-size", a.chunk, "positions that stay or go together (chunkkv 10, others 1)", "N");
    add("--unit", a.unit, "what stays or goes as a whole: row (default) or sentence", "NAME");
    add("--cluster-size", a.cluster_size,
        fmt::format("clusterkv: rows a cluster of keys, on average ({})", d.cluster_size).c_str(),
        "N");
    add("--choice", a.seed, fmt::format("random: another choice of rows ({})", d.seed).c_str(),
        "N");
    add("--sinks", a.sinks, fmt::format("streaming-llm: first rows kept ({})", d.sinks).c_str(),
        "N");
    add("--positions", a.positions,
        "streaming-llm and others by position: text (default), or in-cache: keys are turned to "
        "where they lie among the rows kept (CPU)",
        "HOW");
    add("--merge", a.merge,
        "rows next in rank that join the kept row most like them: a number, or a share of the rows "
        "kept (0; ems 100%; CPU)",
        "N|SHARE");
    add("--similarity", a.similarity,
        fmt::format("least cosine of keys of rows that merge ({})", d.similarity).c_str(), "C");
    add("--frequent", a.frequent,
        fmt::format("fastgen: share of the prompt that is frequent ({})", d.frequent).c_str(), "F");
    add("--local", a.local,
        fmt::format("fastgen: share of the prompt that is recent ({})", d.local).c_str(), "F");
    add("--class-rows", a.class_rows,
        "fastgen: most frequent, and most recent rows of a head (as many as the budget)", "N");
    add("--recovery", a.recovery,
        "fastgen: share of a head's attention that is enough (1: what the budget pays for)", "T");
    add("--reserve", a.reserve,
        fmt::format("rows that a head may gain while decoding ({})", d.reserve).c_str(), "N");
    add("--kv-type", a.kv_type,
        "how rows are stored: f16 (default), q8_0 or q4_0; keys and values apart: q8_0:q4_0",
        "TYPE");
    add("--recall", a.recall,
        "keep every row in host memory, as f16, q8_0 or q4_0: each further turn selects from all "
        "of them again (off; CPU)",
        "TYPE");
    add("--share", a.share,
        "map of layers that read the rows of earlier ones and own none (calibrate --kind share); "
        "kvsharer finds it by the model's fingerprint (CPU)",
        "FILE");
    add("--layout", a.layout,
        "blocks of rows x groups of heads a layer that plans are made for (CUDA: 256x2, CPU: any "
        "rows in every head)",
        "RxG");
}

}  // namespace

void add_method_options(CLI::App& command, MethodArguments& arguments, bool name) {
    if (name) {
        command
            .add_option("--method", arguments.method,
                        "what decides which rows stay (see `headkv methods`); may bring options "
                        "of its own: snapkv:kernel=7; auto: by measured curves")
            ->capture_default_str()
            ->type_name("NAME")
            ->group(method_group);
        command
            .add_option("--curves", arguments.curves,
                        "what --method auto chooses by: results.json of `headkv eval`, or of `eval "
                        "curves`; default: found by the model's fingerprint")
            ->type_name("FILE")
            ->group(method_group);
    }
    add_score_options(command, arguments);
    add_step_options(command, arguments);
    add_budget_options(command, arguments);
}

Result<Budget> method_budget(const MethodArguments& arguments) {
    std::vector<std::string> given;
    for (std::size_t i = 0; i < arguments.rows.size(); ++i) given.emplace_back("--rows");
    for (std::size_t i = 0; i < arguments.bytes.size(); ++i) given.emplace_back("--kv-bytes");
    for (std::size_t i = 0; i < arguments.keep.size(); ++i) given.emplace_back("--keep");
    if (given.size() > 1) {
        return bad_input(
            "the budget is given twice ({} and {}): give one of --rows, --kv-bytes, --keep",
            given[0], given[1]);
    }
    Budget budget;
    if (!arguments.rows.empty()) {
        const auto rows = parse_rows(arguments.rows[0]);
        if (!rows) return tl::unexpected(rows.error());
        budget = {Budget::Unit::rows, *rows};
    } else if (!arguments.bytes.empty()) {
        const auto bytes = parse_bytes(arguments.bytes[0]);
        if (!bytes) return tl::unexpected(bytes.error());
        budget = {Budget::Unit::bytes, static_cast<double>(*bytes)};
    } else if (!arguments.keep.empty()) {
        const auto share = parse_share(arguments.keep[0]);
        if (!share) return tl::unexpected(share.error());
        budget = {Budget::Unit::share, *share};
    }
    return budget;
}

Result<Recipe> method_recipe(const MethodArguments& arguments) {
    const auto found = find_recipe(arguments.method);
    if (!found) return tl::unexpected(found.error());
    if (!arguments.allocate || (*found)->allocate == AllocateStep::all) return **found;
    const auto allocate = parse_allocator(*arguments.allocate);
    if (!allocate) return tl::unexpected(allocate.error());
    return with_allocator(**found, *allocate);
}

Result<MethodOptions> method_options(const MethodArguments& arguments, const Recipe& recipe) {
    MethodOptions options = arguments.preset == "paper" ? preset_paper() : default_options(recipe);
    const auto take = [](const auto& from, auto& to) {
        if (from) to = *from;
    };
    // As far as it makes a difference, so that the method's own way, said or not, is one thing.
    const auto own = find_recipe(recipe.name);
    if (own && (*own)->allocate != recipe.allocate) options.allocate = recipe.allocate;
    take(arguments.draft, options.draft);
    // What asks for another way to keep neighbours together is not asked twice.
    if (arguments.kernel || arguments.chunk) options.sentences = false;
    const bool drafts = arguments.draft && *arguments.draft > 0;
    if (drafts) {
        // A draft knows what is asked for, to the word: it looks almost alone, at few neighbours.
        options.observe = 1;
        options.kernel = 7;
        options.sentences = false;
    }
    take(arguments.window, options.window);
    if (arguments.window && !drafts)
        options.observe = 0;  // as many as the window, if nobody says otherwise
    take(arguments.protect, options.protect);
    if (arguments.observe) {
        options.observe_question = *arguments.observe == "question";
        if (!options.observe_question) {
            const auto queries = queries_to_observe(*arguments.observe);
            if (!queries) return tl::unexpected(queries.error());
            options.observe = *queries;
        }
    }
    take(arguments.query_decay, options.query_decay);
    take(arguments.skip_tail, options.skip_tail);
    take(arguments.kernel, options.kernel);
    take(arguments.sinks, options.sinks);
    take(arguments.reserve, options.reserve);
    take(arguments.floor, options.floor);
    take(arguments.temperature, options.temperature);
    if (arguments.shrink) {
        const auto shrink = share_or_auto(*arguments.shrink);
        if (!shrink) return tl::unexpected(shrink.error());
        options.shrink = *shrink;
    }
    take(arguments.mix, options.mix);
    take(arguments.chunk, options.chunk);
    take(arguments.cluster_size, options.cluster_size);
    take(arguments.seed, options.seed);
    take(arguments.similarity, options.similarity);
    take(arguments.frequent, options.frequent);
    take(arguments.local, options.local);
    take(arguments.class_rows, options.class_rows);
    take(arguments.recovery, options.recovery);
    if (arguments.merge) {
        const auto merge = parse_merge_rows(*arguments.merge);
        if (!merge) return bad_input("--{}", merge.error().message);
        options.merge = *merge;
    }
    if (arguments.positions) {
        if (*arguments.positions != "text" && *arguments.positions != "in-cache") {
            return bad_input("--positions {}: give text or in-cache", *arguments.positions);
        }
        options.in_cache_positions = *arguments.positions == "in-cache";
    }
    // The two betas divide different things; --beta means that of the method at hand.
    take(arguments.beta,
         recipe.allocate == AllocateStep::pyramid ? options.pyramid_beta : options.beta);
    take(arguments.pyramid_beta, options.pyramid_beta);
    if (arguments.pool) {
        const auto pool = parse_pool(*arguments.pool);
        if (!pool) return tl::unexpected(pool.error());
        options.pool = *pool;
    }
    if (arguments.group_reduce) {
        const auto reduce = parse_group_reduce(*arguments.group_reduce);
        if (!reduce) return tl::unexpected(reduce.error());
        options.group_reduce = *reduce;
    }
    if (arguments.unit) {
        if (*arguments.unit != "row" && *arguments.unit != "sentence") {
            return bad_input("--unit {} is unknown: give row or sentence", *arguments.unit);
        }
        options.sentences = *arguments.unit == "sentence";
    }
    if (arguments.normalize) {
        if (*arguments.normalize != "yes" && *arguments.normalize != "no") {
            return bad_input("--normalize {}: give yes or no", *arguments.normalize);
        }
        options.normalize = *arguments.normalize == "yes";
    }
    return options;
}

Result<StoreTypes> method_store(const MethodArguments& arguments, const Recipe& recipe) {
    if (!arguments.kv_type) return StoreTypes{recipe.store, recipe.store};
    auto types = parse_store_types(*arguments.kv_type);
    if (!types) types.error().message = "--kv-type: " + types.error().message;
    return types;
}

Result<std::optional<StoreStep>> method_recall(const MethodArguments& arguments,
                                               const Recipe& recipe) {
    if (recipe.recall && arguments.recall == "off") {
        return bad_input(
            "{} chooses from all rows for every token: it does not go without --recall",
            recipe.name);
    }
    if (!arguments.recall || *arguments.recall == "off") return std::nullopt;
    for (const StoreStep step : {StoreStep::f16, StoreStep::q8_0, StoreStep::q4_0}) {
        if (name_of(step) == *arguments.recall) return step;
    }
    return bad_input("--recall {} is unknown: give f16, q8_0, q4_0 or off", *arguments.recall);
}

Result<RowLayout> method_layout(const MethodArguments& arguments) {
    if (!arguments.layout) return RowLayout();
    auto layout = parse_row_layout(*arguments.layout);
    if (!layout) layout.error().message = "--layout: " + layout.error().message;
    return layout;
}

Result<void> check_method(const MethodArguments& arguments, std::string_view written) {
    const auto own = written_method(arguments, written);
    if (!own) return tl::unexpected(own.error());
    if (own->method == "auto") {
        return bad_input(
            "auto chooses a method for one prompt: it stands alone, in `run` and `inspect`; name "
            "methods here (see `headkv methods`)");
    }
    const auto recipe = method_recipe(*own);
    if (!recipe) return tl::unexpected(recipe.error());
    if (const auto options = method_options(*own, *recipe); !options) {
        return tl::unexpected(options.error());
    }
    if (const auto layout = method_layout(*own); !layout) return tl::unexpected(layout.error());
    if (const auto recall = method_recall(*own, *recipe); !recall) {
        return tl::unexpected(recall.error());
    }
    if (own->share) {
        if (const auto map = load_layer_map(*own->share); !map) return tl::unexpected(map.error());
    }
    const auto store = method_store(*own, *recipe);
    return store ? Result<void>() : tl::unexpected(store.error());
}

Result<MethodConfig> method_config(const MethodArguments& arguments, std::string_view written,
                                   const ModelInfo& model) {
    const auto own = written_method(arguments, written);
    if (!own) return tl::unexpected(own.error());
    const auto recipe = method_recipe(*own);
    if (!recipe) return tl::unexpected(recipe.error());
    const auto budget = method_budget(*own);
    if (!budget) return tl::unexpected(budget.error());
    auto options = method_options(*own, *recipe);
    if (!options) return tl::unexpected(options.error());
    // before the type of its rows, which another model may not be able to have
    auto share = share_of(*own, *recipe, model);
    if (!share) return tl::unexpected(share.error());
    const auto store = method_store(*own, *recipe);
    if (!store) return tl::unexpected(store.error());
    // said here, too, as the engine would say it only when the prompt is read
    if (const auto bytes = row_bytes(*store, model.head_dim_k, model.head_dim_v); !bytes) {
        return tl::unexpected(bytes.error());
    }
    const auto layout = method_layout(*own);
    if (!layout) return tl::unexpected(layout.error());
    const auto recall = method_recall(*own, *recipe);
    if (!recall) return tl::unexpected(recall.error());
    auto scores = scores_of(*own, *recipe, model);
    if (!scores) return tl::unexpected(scores.error());
    return MethodConfig{
        std::string(recipe->name), *budget, *options, std::move(*scores), *store, *layout, *recall,
        std::move(*share)};
}

std::vector<std::filesystem::path> score_folders() {
    std::vector<std::filesystem::path> folders;
    if (const char* named = std::getenv("HEADKV_SCORES"); named != nullptr && *named != '\0') {
        folders.emplace_back(named);
    }
    const auto beside = executable_folder();
    folders.emplace_back("scores");
    folders.push_back(beside / ".." / "scores");
    folders.push_back(beside / ".." / ".." / "scores");
    folders.push_back(beside / ".." / "share" / "headkv" / "scores");
    for (auto& folder : folders) folder = folder.lexically_normal();
    return folders;
}

void add_prompt_options(CLI::App& command, PromptArguments& arguments) {
    const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
        return command.add_option(name, value, help)->type_name(type)->group(prompt_group);
    };
    auto* document =
        add("-f,--file", arguments.document, "document (UTF-8 text; - is stdin)", "FILE");
    auto* question = add("-q,--question", arguments.question, "question about it", "TEXT");
    add("-p,--prompt", arguments.text, "the whole prompt, instead of a document and a question",
        "TEXT")
        ->excludes(document)
        ->excludes(question);
    auto* raw = command.add_flag("--raw", arguments.raw, "no chat template around the prompt")
                    ->group(prompt_group);
    command
        .add_flag("--special", arguments.special,
                  "with --raw: texts of control tokens in the prompt become those tokens")
        ->needs(raw)
        ->group(prompt_group);
    add("--system", arguments.system, "system message (default: the model's own)", "TEXT")
        ->excludes(raw);
    std::string names;
    for (const auto name : chat_template_names()) {
        names += (names.empty() ? "" : ", ") + std::string(name);
    }
    const std::string help = "instead of the model's own: " + names;
    add("--chat-template", arguments.chat_template, help.c_str(), "NAME")->excludes(raw);
    command
        .add_flag("--keep-marks", arguments.keep.marks,
                  "every head keeps what stands between <keep> and </keep> in the prompt")
        ->group(prompt_group);
    command
        .add_flag("--keep-system", arguments.keep.system,
                  "every head keeps what the chat template puts before the prompt")
        ->excludes(raw)
        ->group(prompt_group);
    add("--truncate", arguments.truncate,
        "middle: take out the middle of a prompt that is longer than the context", "HOW")
        ->check(CLI::IsMember({"middle"}));
}

Result<PromptText> read_prompt(const PromptArguments& arguments) {
    PromptText text{.document = arguments.text, .question = arguments.question};
    if (!arguments.document.empty()) {
        auto document = read_document(arguments.document);
        if (!document) return tl::unexpected(document.error());
        text.document = std::move(*document);
    }
    const std::pair<std::string_view, std::string_view> parts[] = {
        {arguments.text, "the prompt (-p)"},
        {arguments.question, "the question (-q)"},
        {arguments.system, "the system message (--system)"}};
    for (const auto& [part, what] : parts) {
        if (auto checked = check_text(part, what); !checked) {
            return tl::unexpected(checked.error());
        }
    }
    if (arguments.special && !text.question.empty()) {
        return bad_input("--special takes the prompt as it is written: put it into -p, without -q");
    }
    if (text.document.empty() && text.question.empty()) {
        return bad_input("there is no prompt: give -f DOCUMENT and -q QUESTION, or -p TEXT");
    }
    return text;
}

Result<std::optional<ChatTemplate>> prompt_template(const PromptArguments& arguments,
                                                    const Model& model) {
    if (arguments.raw) return std::nullopt;
    auto found = arguments.chat_template.empty()
                     ? chat_template_detect(model.tokenizer().chat_template())
                     : chat_template_by_name(arguments.chat_template);
    if (found) return *found;
    if (arguments.chat_template.empty()) {
        found.error().message += "; --raw goes without a template";
    }
    return tl::unexpected(found.error());
}

QuestionPart prompt_question(const PromptArguments& arguments, const PromptText& text,
                             const Model& model) {
    const auto chat = prompt_template(arguments, model);
    if (!chat || (arguments.raw && arguments.special)) return {};
    return question_part(model, text.document, text.question, *chat, arguments.system);
}

Result<MarkedPrompt> prompt_tokens(const PromptArguments& arguments, const PromptText& text,
                                   const Model& model, std::int64_t reserve) {
    const auto chat = prompt_template(arguments, model);
    if (!chat) return tl::unexpected(chat.error());
    const bool plain = arguments.raw && arguments.special && text.question.empty();
    auto prompt = marked_prompt(model, text.document, text.question, *chat, arguments.system,
                                arguments.keep, plain);
    if (!prompt) return prompt;
    const auto size = static_cast<std::int64_t>(prompt->tokens.size());
    const std::int64_t context = model.info().context;
    if (context <= 0 || size <= context) return prompt;
    if (arguments.truncate.empty()) {
        return bad_input(
            "the prompt has {} tokens, {} more than the model's context of {}: shorten it, add "
            "--truncate middle, or use a GGUF whose metadata enlarges the context (rope scaling)",
            size, size - context, context);
    }
    const std::int64_t limit = std::max<std::int64_t>(context - reserve, context / 2);
    note(fmt::format("{} tokens from the middle of the prompt are left out", size - limit));
    return truncate_middle(*prompt, limit);
}

}  // namespace headkv::cli
