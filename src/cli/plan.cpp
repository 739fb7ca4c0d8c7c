// `headkv plan`: the allocation alone, no model needed; with one, what a GPU holds and how fast.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>

#include "cli/capacity.h"
#include "cli/common.h"
#include "headkv/method.h"

namespace headkv::cli {

namespace {

struct PlanArguments {
    std::string heads, method, grain = "kv", json;
    double rows = Budget{}.value;
    std::optional<std::int64_t> window, prompt_tokens, layers, kv_heads;
    std::optional<double> beta;
    bool as_published = false;
    CapacityArguments capacity;  // with --model
};

// The rows of every head and what they were made of.
struct Allocation {
    std::string method;
    HeadShape shape;  // kv_heads are the heads of `plan`
    Plan plan;
    std::int64_t window = 0;
    std::optional<double> beta;  // none: the allocation has no such setting
    std::int64_t protect = 0;    // first rows that every head keeps
};

bool needs_scores(const PlanArguments& arguments) {
    return arguments.as_published || arguments.method.empty() ||
           arguments.method.starts_with("headkv-");
}

// The recipe whose allocation is meant; "uniform" and "pyramid" are the allocators' own names.
Result<const Recipe*> recipe_of(const PlanArguments& arguments, const HeadScores& scores) {
    std::string name = arguments.method;
    if (name.empty()) name = scores.kind == "r" ? "headkv-r" : "headkv-r2";
    if (name == "uniform") name = "snapkv";
    if (name == "pyramid") name = "pyramidkv";
    auto recipe = find_recipe(name);
    if (recipe && ((*recipe)->allocate == AllocateStep::all ||
                   (*recipe)->allocate == AllocateStep::adaptive ||
                   (*recipe)->allocate == AllocateStep::global)) {
        return bad_input(
            "the rows of {} depend on the prompt, there is no plan without one: see `headkv "
            "inspect`",
            name);
    }
    return recipe;
}

// Shape of the heads that get rows: KV heads, or query heads taken one by one.
Result<HeadShape> shape_of(const PlanArguments& arguments, const HeadScores& scores) {
    const std::string& file = arguments.heads;
    HeadShape shape = scores.shape;
    if (file.empty()) {
        if (!arguments.layers || !arguments.kv_heads) {
            return bad_input(
                "without --heads FILE the model's shape is needed: give --layers and "
                "--kv-heads");
        }
        shape = {*arguments.layers, *arguments.kv_heads, *arguments.kv_heads};
    }
    if (arguments.layers && *arguments.layers != shape.layers) {
        return bad_input("--layers {}: {} has {} layers", *arguments.layers, file, shape.layers);
    }
    if (arguments.kv_heads) {
        const bool differs = shape.kv_heads != 0 && shape.kv_heads != *arguments.kv_heads;
        if (differs && arguments.grain == "kv") {
            return bad_input("--kv-heads {}: {} has {} KV heads", *arguments.kv_heads, file,
                             shape.kv_heads);
        }
        shape.kv_heads = *arguments.kv_heads;
    }
    if (arguments.grain == "query") shape.kv_heads = shape.query_heads;
    if (shape.kv_heads == 0) {
        return bad_input(
            "{} does not say how many KV heads the model has: give --kv-heads, or "
            "plan query heads with --grain query",
            file);
    }
    if (shape.kv_heads < 1 || shape.query_heads % shape.kv_heads != 0) {
        return bad_input("--kv-heads {} does not divide {} query heads", shape.kv_heads,
                         shape.query_heads);
    }
    constexpr std::int64_t kMost = 65536;
    if (shape.layers < 1 || shape.layers > kMost || shape.kv_heads > kMost) {
        return bad_input("no model has {} layers of {} heads", shape.layers, shape.kv_heads);
    }
    return shape;
}

Result<Allocation> published(const PlanArguments& arguments, const HeadScores& scores) {
    const MethodOptions paper = preset_paper();
    if (arguments.grain != "query") {
        return bad_input("the published allocation is made of query heads: give --grain query");
    }
    if (!arguments.method.empty() && !arguments.method.starts_with("headkv-")) {
        return bad_input("--as-published is HeadKV's allocation, not {}'s", arguments.method);
    }
    if (arguments.prompt_tokens) {
        return bad_input(
            "the published allocation knows no prompt length: leave out "
            "--prompt-tokens or --as-published");
    }
    const std::int64_t window = arguments.window.value_or(paper.window);
    const double beta = arguments.beta.value_or(paper.beta);
    constexpr double kMostRows = 1e9;
    if (!(arguments.rows >= 1 && arguments.rows <= kMostRows) ||
        arguments.rows != std::floor(arguments.rows)) {
        return bad_input("--rows {}: the published allocation takes a whole number of rows",
                         arguments.rows);
    }
    const auto rows = static_cast<std::int64_t>(arguments.rows);
    if (window < 0 || rows < window) {
        return bad_input("a budget of {} rows is below the window: give at least {} rows", rows,
                         window);
    }
    if (!(beta > 0) || !std::isfinite(beta))
        return bad_input("beta is {}: it must be above 0", beta);

    const HeadShape& found = scores.shape;
    const HeadShape shape{found.layers, found.query_heads, found.query_heads};
    Plan plan{shape.layers, shape.kv_heads, allocate_as_published(scores, rows, window, beta)};
    return Allocation{"headkv as published", shape, std::move(plan), window, beta};
}

Result<Allocation> ours(const PlanArguments& arguments, HeadScores scores) {
    const auto recipe = recipe_of(arguments, scores);
    if (!recipe) return tl::unexpected(recipe.error());
    const auto shape = shape_of(arguments, scores);
    if (!shape) return tl::unexpected(shape.error());

    MethodConfig config;
    config.method = (*recipe)->name;
    config.options = default_options(**recipe);
    config.budget.value = arguments.rows;
    if (arguments.window) {  // the paper's plan of that window, nothing besides it
        config.options.window = *arguments.window;
        config.options.protect = 0;
    }
    std::optional<double> beta;
    if ((*recipe)->allocate == AllocateStep::pyramid) {
        beta = config.options.pyramid_beta = arguments.beta.value_or(config.options.pyramid_beta);
    } else if ((*recipe)->allocate == AllocateStep::head_importance) {
        config.options.beta = arguments.beta.value_or(config.options.beta);
        beta = importance_beta(config.options, arguments.rows, &scores);
    }
    scores.shape.kv_heads = 0;  // what the heads are here was settled with the shape
    config.scores = std::make_shared<const HeadScores>(std::move(scores));

    constexpr std::int64_t kLongest = std::numeric_limits<std::int32_t>::max();
    const std::int64_t prompt = arguments.prompt_tokens.value_or(kLongest);
    if (!arguments.prompt_tokens && arguments.rows >= static_cast<double>(kLongest)) {
        return bad_input("--rows {}: no prompt has so many", arguments.rows);
    }
    const auto method = Method::create(config, *shape, prompt, 1);
    if (!method) return tl::unexpected(method.error());
    return Allocation{config.method,         *shape, method->plan(),
                      config.options.window, beta,   config.options.protect};
}

nlohmann::ordered_json json_of(const PlanArguments& arguments, const Allocation& made) {
    auto capacity = nlohmann::ordered_json::array();
    for (std::int64_t layer = 0; layer < made.plan.layers; ++layer) {
        const auto first = made.plan.rows.begin() + layer * made.plan.heads;
        capacity.push_back(std::vector<std::int64_t>(first, first + made.plan.heads));
    }
    nlohmann::ordered_json json;
    const bool whole = arguments.rows == std::floor(arguments.rows);
    json["method"] = made.method;
    if (whole && arguments.rows < 1e15) {
        json["rows"] = static_cast<std::int64_t>(arguments.rows);
    } else {
        json["rows"] = arguments.rows;
    }
    json["window"] = made.window;
    json["protect"] = made.protect;
    json["beta"] = nullptr;
    if (made.beta) json["beta"] = *made.beta;
    json["grain"] = arguments.grain;
    json["as_published"] = arguments.as_published;
    if (arguments.prompt_tokens) json["prompt_tokens"] = *arguments.prompt_tokens;
    json["layers"] = made.plan.layers;
    json["heads"] = made.plan.heads;
    json["total_rows"] = made.plan.total();
    json["capacity"] = std::move(capacity);
    return json;
}

std::string text_of(const PlanArguments& arguments, const Allocation& made) {
    const Plan& plan = made.plan;
    const auto [least, most] = std::minmax_element(plan.rows.begin(), plan.rows.end());
    const std::int64_t total = plan.total();
    std::string text = fmt::format("{}: {} rows a {} head, window {}{}{}\n", made.method,
                                   arguments.rows, arguments.grain, made.window,
                                   arguments.as_published ? " (not counted below)" : "",
                                   made.beta ? fmt::format(", beta {}", *made.beta) : "");
    if (made.protect > 0)
        text += fmt::format("every head keeps the first {} besides the window\n", made.protect);
    text += fmt::format("{} layers x {} heads hold {} rows: mean {:.2f}, smallest {}, largest {}\n",
                        plan.layers, plan.heads, total,
                        static_cast<double>(total) / static_cast<double>(plan.layers * plan.heads),
                        *least, *most);
    const auto width = static_cast<int>(
        std::max(fmt::formatted_size("{}", *most), fmt::formatted_size("{}", *least)));
    for (std::int64_t layer = 0; layer < plan.layers; ++layer) {
        text += fmt::format("layer {:>3} ", layer);
        for (std::int64_t head = 0; head < plan.heads; ++head) {
            text += fmt::format(" {:>{}}", plan.at(layer, head), width);
        }
        text += '\n';
    }
    return text;
}

// The figures of a GPU, from those options of the allocation that they share.
Result<void> plan_capacity(const PlanArguments& arguments) {
    const bool given = arguments.as_published || arguments.grain != "kv" || arguments.layers ||
                       arguments.kv_heads || !arguments.method.empty();
    if (given) {
        return bad_input(
            "with --model the shape is the model's and --methods names the methods: leave out "
            "--method, --grain, --as-published, --layers and --kv-heads");
    }
    if (arguments.prompt_tokens && !arguments.capacity.prompt.empty()) {
        return bad_input("the prompt's length is given twice (--prompt and --prompt-tokens)");
    }
    CapacityArguments capacity = arguments.capacity;
    if (arguments.prompt_tokens) capacity.prompt = fmt::format("{}", *arguments.prompt_tokens);
    capacity.method.rows = {fmt::format("{}", arguments.rows)};
    if (!arguments.heads.empty()) capacity.method.heads = {arguments.heads};
    capacity.method.window = arguments.window;
    capacity.method.beta = arguments.beta;
    capacity.json = arguments.json;
    return capacity_plan(capacity);
}

Result<void> plan(const PlanArguments& arguments) {
    if (!arguments.capacity.model.empty()) return plan_capacity(arguments);
    if (arguments.capacity.any()) {
        return bad_input(
            "what a GPU holds depends on the model: name its file with --model (--prompt, "
            "--gpu, --device-memory, --methods, --slots, --bandwidth, --kv-type and --gpus need "
            "it)");
    }
    HeadScores scores;
    if (!arguments.heads.empty()) {
        auto loaded = load_head_scores(arguments.heads);
        if (!loaded) return tl::unexpected(loaded.error());
        scores = std::move(*loaded);
    } else if (needs_scores(arguments)) {
        return bad_input(
            "head scores are needed: name a file with --heads (--method uniform or "
            "pyramid go without)");
    }
    const auto made =
        arguments.as_published ? published(arguments, scores) : ours(arguments, std::move(scores));
    if (!made) return tl::unexpected(made.error());
    if (arguments.json != "-") {
        if (auto printed = print(text_of(arguments, *made)); !printed) return printed;
    }
    if (arguments.json.empty()) return {};
    return write_output(arguments.json, json_of(arguments, *made).dump() + "\n");
}

}  // namespace

void register_plan(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<PlanArguments>();
    const MethodOptions defaults;
    const MethodOptions paper = preset_paper();
    CLI::App* command = app.add_subcommand(
        "plan",
        "rows per layer and head of a budget; with --model, how many sequences a GPU holds and "
        "how fast it answers");
    const auto add = [&](const char* flag, auto& target, const std::string& help,
                         const char* type) {
        return command->add_option(flag, target, help)->type_name(type);
    };
    add("--heads", arguments->heads, "head scores: headkv-scores/1 or the published form", "FILE");
    add("--rows", arguments->rows, "rows per head, window included, mean over heads", "N")
        ->capture_default_str();
    add("--beta", arguments->beta,
        fmt::format("the importance pool is (rows - window) / beta (by the budget and the "
                    "scores, 1.2 to 5; published {}; pyramid {})",
                    paper.beta, defaults.pyramid_beta),
        "B");
    add("--window", arguments->window,
        fmt::format(
            "last rows that every head keeps, and nothing else (headkv {} and the first row; "
            "others {}; published {})",
            default_options(**find_recipe("headkv-r2")).window, defaults.window, paper.window),
        "W");
    add("--grain", arguments->grain, "heads that get rows: kv or query", "NAME")
        ->check(CLI::IsMember({"kv", "query"}))
        ->capture_default_str();
    command->add_flag("--as-published", arguments->as_published,
                      "the published HeadKV allocation bit for bit: --grain query, window not "
                      "counted, no clamping to the prompt");
    add("--method", arguments->method,
        "headkv-r, headkv-r2 (by the kind of --heads), pyramid, uniform", "NAME");
    add("--prompt-tokens", arguments->prompt_tokens,
        "no head gets more rows than this; the surplus is handed on", "N");
    add("--layers", arguments->layers, "of the model, where --heads is not given", "N");
    add("--kv-heads", arguments->kv_heads, "of a layer, where --heads does not say", "N");
    add("--json", arguments->json, "the plan as JSON to FILE; - is stdout", "FILE");
    add_capacity_options(*command, arguments->capacity);
    command->footer(
        "Examples:\n"
        "  headkv plan --heads scores/smollm2-135m.r2.json --rows 128\n"
        "  headkv plan --model m.gguf --device-memory 80GiB --prompt 32k --rows 1024");
    command->callback([arguments, &status] {
        if (const auto done = plan(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
