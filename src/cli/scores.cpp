// `headkv scores`: looks at head-score files, compares two, reads the published form, deals anew.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "calibrate/correlation.h"
#include "calibrate/shuffled_scores.h"
#include "cli/common.h"
#include "cli/options.h"
#include "cli/scores_page.h"
#include "cli/scores_text.h"
#include "headkv/method.h"

namespace headkv::cli {

namespace {

using nlohmann::ordered_json;

constexpr std::size_t kListed = 10;  // heads that stand out

template <class T>
ordered_json table(const std::vector<T>& values, std::int64_t layers, std::int64_t heads) {
    auto rows = ordered_json::array();
    for (std::int64_t layer = 0; layer < layers; ++layer) {
        const auto first = values.begin() + layer * heads;
        rows.push_back(std::vector<T>(first, first + heads));
    }
    return rows;
}

// Shares of the sum; nothing but zeros stays so.
std::vector<double> shares(std::vector<double> values) {
    const double sum = std::accumulate(values.begin(), values.end(), 0.0);
    for (double& value : values) value = sum > 0 ? value / sum : 0;
    return values;
}

std::vector<std::size_t> falling(const std::vector<double>& values) {
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
    order.resize(std::min(kListed, order.size()));
    return order;
}

std::string title_of(const HeadScores& scores, const std::string& file) {
    const HeadShape& shape = scores.shape;
    return fmt::format("{}: kind {}, {}, {} layers of {} query heads{}\n", file,
                       scores.kind.empty() ? "not known" : scores.kind,
                       scores.model_name.empty() ? "no model named" : scores.model_name,
                       shape.layers, shape.query_heads,
                       shape.kv_heads > 0 ? fmt::format(", {} KV heads", shape.kv_heads) : "");
}

// --- show
// ---------------------------------------------------------------------------------------------

struct ShowArguments {
    std::string file, html, json;
    double rows = Budget{}.value;
    std::optional<double> beta;
    std::optional<std::int64_t> window;
};

Result<ScoresBudget> budget_of(const ShowArguments& arguments, const HeadScores& scores) {
    MethodConfig config;
    for (const Recipe& recipe : recipes()) {
        if (!scores.kind.empty() && recipe.score_kind == scores.kind) config.method = recipe.name;
    }
    config.budget.value = arguments.rows;
    config.options = default_options(**find_recipe(config.method));
    config.options.beta = arguments.beta.value_or(config.options.beta);
    if (arguments.window) {  // as `plan` has it
        config.options.window = *arguments.window;
        config.options.protect = 0;
    }
    HeadShape shape = scores.shape;
    if (shape.kv_heads == 0) shape.kv_heads = shape.query_heads;
    HeadScores copy = scores;
    copy.shape = shape;
    config.scores = std::make_shared<const HeadScores>(std::move(copy));
    constexpr std::int64_t longest = std::numeric_limits<std::int32_t>::max();
    const auto method = Method::create(config, shape, longest, 1);
    if (!method) return tl::unexpected(method.error());
    return ScoresBudget{config.method, arguments.rows,
                        importance_beta(config.options, arguments.rows, config.scores.get()),
                        config.options.window, method->plan()};
}

std::string show_text(const HeadScores& scores, const ScoresBudget& budget,
                      const std::string& file) {
    std::string text = title_of(scores, file);
    text += fmt::format("{} of {} probes count\n", scores.probes_passed, scores.probes_tried);
    text += families_text(scores) + reliability_text(scores);
    const auto width = static_cast<std::size_t>(scores.shape.query_heads);
    const auto share = shares(scores.mean);
    text += "highest query heads (layer-head, score, share of all):\n";
    for (const std::size_t head : falling(scores.mean)) {
        const std::string error =
            scores.stderr_.empty() ? "" : fmt::format(" +- {:.2g}", scores.stderr_[head]);
        text += fmt::format("  {:<7} {:.4g}{}  {:.1f} %\n",
                            fmt::format("{}-{}", head / width, head % width), scores.mean[head],
                            error, 100 * share[head]);
    }
    text += "query heads, thousandths of all scores | rows of " +
            std::string(scores.shape.kv_heads > 0 ? "KV" : "query") +
            fmt::format(" heads ({} at {:g} rows, beta {:g})\n", budget.method, budget.rows,
                        budget.beta);
    const std::int64_t most = *std::max_element(budget.plan.rows.begin(), budget.plan.rows.end());
    const auto row_width = fmt::formatted_size("{}", most);
    for (std::int64_t layer = 0; layer < scores.shape.layers; ++layer) {
        text += fmt::format("layer {:>3} ", layer);
        for (std::size_t head = 0; head < width; ++head) {
            const double value = share[static_cast<std::size_t>(layer) * width + head];
            text += fmt::format(" {:>5.1f}", 1000 * value);
        }
        text += "  |";
        for (std::int64_t head = 0; head < budget.plan.heads; ++head) {
            text += fmt::format(" {:>{}}", budget.plan.at(layer, head), row_width);
        }
        text += '\n';
    }
    return text;
}

ordered_json show_json(const HeadScores& scores, const ScoresBudget& budget) {
    const HeadShape& shape = scores.shape;
    ordered_json json = {{"kind", scores.kind},
                         {"model",
                          {{"name", scores.model_name},
                           {"architecture", scores.architecture},
                           {"layers", shape.layers},
                           {"query_heads", shape.query_heads},
                           {"kv_heads", shape.kv_heads},
                           {"fingerprint", scores.fingerprint}}},
                         {"tried", scores.probes_tried},
                         {"passed", scores.probes_passed}};
    json.update(evidence_json(scores));
    json["settings"] = ordered_json::parse(scores.settings_json);
    auto top = ordered_json::array();
    const auto width = static_cast<std::size_t>(shape.query_heads);
    for (const std::size_t head : falling(scores.mean)) {
        top.push_back({{"layer", head / width},
                       {"head", head % width},
                       {"score", scores.mean[head]},
                       {"stderr", nullptr}});
        if (!scores.stderr_.empty()) top.back()["stderr"] = scores.stderr_[head];
    }
    json["top"] = std::move(top);
    json["scores"] = table(scores.mean, shape.layers, shape.query_heads);
    json["plan"] = {{"method", budget.method},
                    {"rows", budget.rows},
                    {"window", budget.window},
                    {"beta", budget.beta},
                    {"heads", budget.plan.heads},
                    {"capacity", table(budget.plan.rows, shape.layers, budget.plan.heads)}};
    return json;
}

Result<void> show(const ShowArguments& arguments) {
    for (const std::string& output : {arguments.html, arguments.json}) {
        if (auto ready = check_output(output); !ready) return ready;
    }
    const auto scores = load_head_scores(arguments.file);
    if (!scores) return tl::unexpected(scores.error());
    const auto budget = budget_of(arguments, *scores);
    if (!budget) return tl::unexpected(budget.error());
    if (arguments.json != "-" && arguments.html != "-") {
        if (auto shown = print(show_text(*scores, *budget, arguments.file)); !shown) return shown;
    }
    if (!arguments.html.empty()) {
        auto written = write_output(arguments.html, scores_page(*scores, *budget));
        if (!written) return written;
    }
    if (arguments.json.empty()) return {};
    return write_output(arguments.json, show_json(*scores, *budget).dump() + "\n");
}

// --- diff
// ---------------------------------------------------------------------------------------------

struct DiffArguments {
    std::string a, b, json;
};

// What two score files have in common, and the heads whose share moved the most.
struct Difference {
    double spearman = 0, pearson = 0, top_decile = 0;
    std::optional<double> spearman_kv, pearson_kv;  // nothing where a file knows no KV heads
    struct Moved {
        std::size_t head = 0;
        double a = 0, b = 0;      // shares of all scores
        std::optional<double> z;  // difference over its standard error
    };
    std::vector<Moved> moved;
};

Difference difference(const HeadScores& a, const HeadScores& b) {
    Difference result;
    result.spearman = spearman(a.mean, b.mean);
    result.pearson = pearson(a.mean, b.mean);
    result.top_decile = top_decile_overlap(a.mean, b.mean);
    if (a.shape.kv_heads > 0 || b.shape.kv_heads > 0) {
        const HeadShape& shape = a.shape.kv_heads > 0 ? a.shape : b.shape;
        const auto kv_a = per_kv_head(a.mean, shape), kv_b = per_kv_head(b.mean, shape);
        result.spearman_kv = spearman(kv_a, kv_b);
        result.pearson_kv = pearson(kv_a, kv_b);
    }
    const auto share_a = shares(a.mean), share_b = shares(b.mean);
    std::vector<double> distance(share_a.size());
    for (std::size_t i = 0; i < distance.size(); ++i) {
        distance[i] = std::abs(share_a[i] - share_b[i]);
    }
    const double sum_a = std::accumulate(a.mean.begin(), a.mean.end(), 0.0);
    const double sum_b = std::accumulate(b.mean.begin(), b.mean.end(), 0.0);
    for (const std::size_t head : falling(distance)) {
        if (distance[head] <= 0) break;
        Difference::Moved moved{head, share_a[head], share_b[head], {}};
        if (!a.stderr_.empty() && !b.stderr_.empty() && sum_a > 0 && sum_b > 0) {
            const double error = std::hypot(a.stderr_[head] / sum_a, b.stderr_[head] / sum_b);
            if (error > 0) moved.z = (share_b[head] - share_a[head]) / error;
        }
        result.moved.push_back(moved);
    }
    return result;
}

Result<void> diff(const DiffArguments& arguments) {
    if (auto ready = check_output(arguments.json); !ready) return ready;
    const auto a = load_head_scores(arguments.a);
    if (!a) return tl::unexpected(a.error());
    const auto b = load_head_scores(arguments.b);
    if (!b) return tl::unexpected(b.error());
    const bool same_kv =
        a->shape.kv_heads == 0 || b->shape.kv_heads == 0 || a->shape.kv_heads == b->shape.kv_heads;
    if (a->shape.layers != b->shape.layers || a->shape.query_heads != b->shape.query_heads ||
        !same_kv) {
        return bad_input(
            "these scores are of models of different shapes: {} has {} layers of {} query heads "
            "and {} KV heads, {} has {} of {} and {}",
            arguments.a, a->shape.layers, a->shape.query_heads, a->shape.kv_heads, arguments.b,
            b->shape.layers, b->shape.query_heads, b->shape.kv_heads);
    }
    if (!a->fingerprint.empty() && !b->fingerprint.empty() && a->fingerprint != b->fingerprint) {
        note(fmt::format("the files are of two models of one shape ({}, {})", a->model_name,
                         b->model_name));
    }
    const Difference result = difference(*a, *b);
    const auto width = static_cast<std::size_t>(a->shape.query_heads);
    std::string text = title_of(*a, arguments.a) + title_of(*b, arguments.b);
    text +=
        fmt::format("query heads: Spearman {:.3f}, Pearson {:.3f}; top tenth in common {:.0f} %\n",
                    result.spearman, result.pearson, 100 * result.top_decile);
    if (result.spearman_kv) {
        text += fmt::format("KV heads: Spearman {:.3f}, Pearson {:.3f}\n", *result.spearman_kv,
                            *result.pearson_kv);
    }
    text += result.moved.empty() ? "no head moved\n" : "moved most (share of all scores):\n";
    auto moved = ordered_json::array();
    for (const Difference::Moved& one : result.moved) {
        text += fmt::format("  {:<7} {:.2f} % -> {:.2f} %{}\n",
                            fmt::format("{}-{}", one.head / width, one.head % width), 100 * one.a,
                            100 * one.b,
                            one.z ? fmt::format("  ({:+.1f} standard errors)", *one.z) : "");
        moved.push_back({{"layer", one.head / width},
                         {"head", one.head % width},
                         {"share_a", one.a},
                         {"share_b", one.b},
                         {"z", nullptr}});
        if (one.z) moved.back()["z"] = *one.z;
    }
    if (arguments.json != "-") {
        if (auto shown = print(text); !shown) return shown;
    }
    if (arguments.json.empty()) return {};
    ordered_json json = {{"spearman", result.spearman},
                         {"pearson", result.pearson},
                         {"top_decile_overlap", result.top_decile},
                         {"spearman_kv", nullptr},
                         {"pearson_kv", nullptr},
                         {"moved", std::move(moved)}};
    if (result.spearman_kv) {
        json["spearman_kv"] = *result.spearman_kv;
        json["pearson_kv"] = *result.pearson_kv;
    }
    return write_output(arguments.json, json.dump() + "\n");
}

// --- import
// -------------------------------------------------------------------------------------------

struct ImportArguments {
    std::string file, out, model, kind, json;
    std::optional<std::int64_t> kv_heads;
};

Result<void> import(const ImportArguments& arguments) {
    for (const std::string& output : {arguments.out, arguments.json}) {
        if (auto ready = check_output(output); !ready) return ready;
    }
    auto scores = load_head_scores(arguments.file);
    if (!scores) return tl::unexpected(scores.error());
    if (scores->shape.kv_heads > 0) {
        return bad_input("{}: is of our own form already, there is nothing to import",
                         arguments.file);
    }
    if (!arguments.kind.empty()) scores->kind = arguments.kind;
    if (scores->kind.empty()) {
        return bad_input("{}: its name does not tell the kind of the scores: give --kind r or r2",
                         arguments.file);
    }
    HeadShape& shape = scores->shape;
    if (!arguments.model.empty()) {
        const auto info = read_model_info(arguments.model);
        if (!info) return tl::unexpected(info.error());
        if (auto fits = check_head_scores(*scores, info->shape, "", false); !fits) return fits;
        if (arguments.kv_heads && *arguments.kv_heads != info->shape.kv_heads) {
            return bad_input("--kv-heads {}: {} has {}", *arguments.kv_heads, arguments.model,
                             info->shape.kv_heads);
        }
        shape = info->shape;
        scores->model_name = model_title(*info);
        scores->architecture = info->architecture;
        scores->fingerprint = info->fingerprint;
    } else if (arguments.kv_heads) {
        shape.kv_heads = *arguments.kv_heads;
    } else {
        return bad_input(
            "{}: does not say how many KV heads the model has: name the model with -m, or give "
            "--kv-heads",
            arguments.file);
    }
    if (shape.kv_heads < 1 || shape.query_heads % shape.kv_heads != 0) {
        return bad_input("--kv-heads {} does not divide {} query heads", shape.kv_heads,
                         shape.query_heads);
    }
    // The published form holds the runs that passed, and no others.
    scores->probes_tried = scores->probes_passed;
    const std::string name = std::filesystem::path(arguments.file).filename().string();
    scores->settings_json = nlohmann::json{{"imported", name}}.dump();
    scores->created_by = "headkv " + version();
    if (auto saved = save_head_scores(*scores, arguments.out); !saved) return saved;
    if (arguments.json != "-") {
        if (auto shown = print(title_of(*scores, arguments.out)); !shown) return shown;
    }
    if (arguments.json.empty()) return {};
    const ordered_json json = {{"file", arguments.out},       {"kind", scores->kind},
                               {"model", scores->model_name}, {"fingerprint", scores->fingerprint},
                               {"layers", shape.layers},      {"query_heads", shape.query_heads},
                               {"kv_heads", shape.kv_heads},  {"passed", scores->probes_passed}};
    return write_output(arguments.json, json.dump() + "\n");
}

// --- shuffle
// ------------------------------------------------------------------------------------------

struct ShuffleArguments {
    std::string file, model, out;
    std::uint64_t seed = 1;
};

Result<HeadScores> scores_to_shuffle(const ShuffleArguments& arguments) {
    if (arguments.model.empty()) return load_head_scores(arguments.file);
    const auto info = read_model_info(arguments.model);
    if (!info) return tl::unexpected(info.error());
    return find_head_scores(score_folders(), info->fingerprint, "r2");
}

Result<void> shuffle(const ShuffleArguments& arguments) {
    if (auto ready = check_output(arguments.out); !ready) return ready;
    if (arguments.file.empty() == arguments.model.empty()) {
        return bad_input(
            "scores shuffle: name a file, or with -m the model whose r2 scores to deal");
    }
    const auto scores = scores_to_shuffle(arguments);
    if (!scores) return tl::unexpected(scores.error());
    if (scores->shape.kv_heads == 0) {
        return bad_input("{}: does not say how many KV heads the model has: `scores import` it",
                         arguments.file);
    }
    HeadScores shuffled = shuffled_scores(*scores, arguments.seed);
    shuffled.created_by = "headkv " + version();
    if (auto saved = save_head_scores(shuffled, arguments.out); !saved) return saved;
    return print(title_of(shuffled, arguments.out));
}

void register_shuffle(CLI::App& parent, Status& status) {
    auto arguments = std::make_shared<ShuffleArguments>();
    CLI::App& command = *parent.add_subcommand(
        "shuffle", "the same scores dealt at random over all KV heads, as a control");
    command.add_option("file", arguments->file, "head scores")->type_name("FILE");
    command
        .add_option("-m,--model", arguments->model,
                    "GGUF whose r2 scores are dealt, found by its fingerprint")
        ->type_name("FILE");
    command.add_option("--seed", arguments->seed, "another deal")->capture_default_str();
    command.add_option("-o,--output", arguments->out, "file of the shuffled scores")
        ->required()
        ->type_name("FILE");
    command.footer("Example: headkv scores shuffle mine.r2.json -o shuffled.json");
    command.callback([arguments, &status] {
        if (const auto done = shuffle(*arguments); !done) status.code = report(done.error());
    });
}

void register_show(CLI::App& parent, Status& status) {
    auto arguments = std::make_shared<ShowArguments>();
    CLI::App& command = *parent.add_subcommand("show", "the scores, and the rows they lead to");
    command.add_option("file", arguments->file, "head scores")->required()->type_name("FILE");
    command.add_option("--rows", arguments->rows, "rows per head of the plan, mean over heads")
        ->capture_default_str()
        ->type_name("N");
    command.add_option("--beta", arguments->beta, "as `headkv plan` has it")->type_name("B");
    command.add_option("--window", arguments->window, "as `headkv plan` has it")->type_name("W");
    command.add_option("--html", arguments->html, "a page with two maps; - is stdout")
        ->type_name("FILE");
    command.add_option("--json", arguments->json, "the same as JSON; - is stdout")
        ->type_name("FILE");
    command.footer(
        "Example: headkv scores show scores/smollm2-135m-instruct.r2.json --html r2.html");
    command.callback([arguments, &status] {
        if (const auto done = show(*arguments); !done) status.code = report(done.error());
    });
}

void register_diff(CLI::App& parent, Status& status) {
    auto arguments = std::make_shared<DiffArguments>();
    CLI::App& command = *parent.add_subcommand("diff", "how far two files agree, and what moved");
    command.add_option("a", arguments->a, "head scores")->required()->type_name("FILE");
    command.add_option("b", arguments->b, "others of a model of the same shape")
        ->required()
        ->type_name("FILE");
    command.add_option("--json", arguments->json, "the same as JSON; - is stdout")
        ->type_name("FILE");
    command.footer("Example: headkv scores diff mine.r.json mine.r2.json");
    command.callback([arguments, &status] {
        if (const auto done = diff(*arguments); !done) status.code = report(done.error());
    });
}

void register_import(CLI::App& parent, Status& status) {
    auto arguments = std::make_shared<ImportArguments>();
    CLI::App& command =
        *parent.add_subcommand("import", "the published HeadKV form to a file of our own");
    command.add_option("file", arguments->file, "{\"layer-head\": [score, ...], ...}")
        ->required()
        ->type_name("FILE");
    command.add_option("-o,--output", arguments->out, "file of the scores")
        ->required()
        ->type_name("FILE");
    command.add_option("-m,--model", arguments->model, "GGUF of the model that they are of")
        ->type_name("FILE");
    command.add_option("--kind", arguments->kind, "r or r2, where the file's name does not tell")
        ->check(CLI::IsMember({"r", "r2"}));
    command.add_option("--kv-heads", arguments->kv_heads, "of a layer, without a model")
        ->type_name("N");
    command.add_option("--json", arguments->json, "what was written as JSON; - is stdout")
        ->type_name("FILE");
    command.footer(
        "Example: headkv scores import retrieval_reasoning_heads.json -o r2.json -m model.gguf");
    command.callback([arguments, &status] {
        if (const auto done = import(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace

void register_scores(CLI::App& app, Status& status) {
    CLI::App& scores = *app.add_subcommand(
        "scores", "head-score files: show, diff, import, shuffle (docs/scores.md)");
    scores.require_subcommand(1);
    scores.footer("Example: headkv scores show scores.json --rows 64 --html scores.html");
    register_show(scores, status);
    register_diff(scores, status);
    register_import(scores, status);
    register_shuffle(scores, status);
}

}  // namespace headkv::cli
