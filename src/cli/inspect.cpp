// `headkv inspect`: which positions each head kept of a prompt.
#include <algorithm>
#include <cmath>
#include <memory>

#include "cli/auto_method.h"
#include "cli/inspect_page.h"
#include "cli/options.h"
#include "cli/run_report.h"

namespace headkv::cli {

namespace {

using Json = nlohmann::ordered_json;

struct InspectArguments {
    ModelArguments model;
    MethodArguments method;
    PromptArguments prompt;
    std::string json, html;
};

Result<void> check_arguments(const InspectArguments& arguments) {
    if (arguments.method.method != kAutoMethod) {
        auto checked = check_method(arguments.method, arguments.method.method);
        if (!checked) return checked;
    }
    if (const auto budget = method_budget(arguments.method); !budget) {
        return tl::unexpected(budget.error());
    }
    if (auto checked = check_output(arguments.json); !checked) return checked;
    return check_output(arguments.html);
}

const char* pool_name(Pool pool) { return pool == Pool::max ? "max" : "avg"; }

double beta_of(const MethodConfig& config, double rows) {
    const auto recipe = find_recipe(config.method);
    const bool pyramid =
        recipe && config.options.allocate.value_or((*recipe)->allocate) == AllocateStep::pyramid;
    return pyramid ? config.options.pyramid_beta
                   : importance_beta(config.options, rows, config.scores.get());
}

// Tokens as text; a character that is split over tokens becomes one piece.
std::vector<Piece> prompt_pieces(const Tokenizer& tokenizer, std::span<const Token> tokens) {
    std::vector<Piece> pieces;
    StreamDecoder decoder(tokenizer);
    for (std::size_t i = 0; i < tokens.size(); ++i) {
        const auto end = static_cast<std::int32_t>(i + 1);
        const bool control = tokenizer.is_control(tokens[i]);
        std::string text = control ? tokenizer.piece(tokens[i], true) : decoder.push(tokens[i]);
        if (text.empty() && i + 1 == tokens.size()) text = decoder.flush();
        if (!text.empty()) pieces.push_back({std::move(text), end, control});
    }
    // Whatever shows nothing at the very end belongs to the last piece.
    if (!pieces.empty()) pieces.back().end = static_cast<std::int32_t>(tokens.size());
    return pieces;
}

Json inspection_json(const Inspection& inspection, const MethodConfig& config,
                     std::span<const Token> tokens) {
    const SequenceInfo& info = inspection.info;
    return {
        {"model", inspection.model},
        {"method", info.method},
        {"rows", number(info.rows_budget)},
        {"window", config.options.window},
        {"protect", config.options.protect},
        {"kernel", config.options.kernel},
        {"pool", pool_name(config.options.pool)},
        {"order", "group_then_pool"},
        {"beta", number(beta_of(config, info.rows_budget))},
        {"n_tokens", info.prompt_tokens},
        {"observe", config.options.observe > 0 ? config.options.observe : config.options.window},
        {"group_reduce", config.options.group_reduce == GroupReduce::mean ? "mean" : "max"},
        {"floor", config.options.floor},
        {"rows_kept_mean", number(info.rows_kept_mean)},
        {"bytes", info.plan_bytes},
        {"bytes_full", info.full_bytes},
        {"type_k", name_of(info.store.keys)},
        {"type_v", name_of(info.store.values)},
        {"runs_as_full", info.runs_as_full},
        {"version", version()},
        {"token_ids", tokens},
        {"kept", inspection.kept}};
}

// For the terminal: a line a head, a sign a layer.
std::string text_map(const Inspection& inspection) {
    const char* const shades[] = {" ", "░", "▒", "▓", "█"};
    std::size_t most = 1;
    for (const auto& layer : inspection.kept) {
        for (const auto& head : layer) most = std::max(most, head.size());
    }
    const SequenceInfo& info = inspection.info;
    std::string text =
        fmt::format("{} on {}: {} tokens, {:.1f} rows per head, {} in {} of {}\n", info.method,
                    inspection.model, info.prompt_tokens, info.rows_kept_mean,
                    human_bytes(static_cast<double>(info.plan_bytes)), name_of(info.store),
                    human_bytes(static_cast<double>(info.full_bytes)));
    text += fmt::format("rows per layer (from left to right) and head, █ is {}:\n", most);
    for (std::size_t h = 0; h < inspection.kept[0].size(); ++h) {
        text += fmt::format("{:>4} ", h);
        for (const auto& layer : inspection.kept) {
            const double share = static_cast<double>(layer[h].size()) / static_cast<double>(most);
            text += shades[std::lround(4 * std::sqrt(share))];
        }
        text += "\n";
    }
    return text;
}

std::vector<std::pair<std::string, std::string>> settings_of(const MethodConfig& config,
                                                             double rows) {
    const MethodOptions& options = config.options;
    const auto recipe = find_recipe(config.method);
    std::vector<std::pair<std::string, std::string>> settings = {{"method", config.method}};
    if (!recipe) return settings;
    if ((*recipe)->score == ScoreStep::window_attention) {
        settings.emplace_back("window", std::to_string(options.window));
        if (options.protect > 0) {
            settings.emplace_back("protect", std::to_string(options.protect));
        }
        settings.emplace_back("pooling",
                              fmt::format("{} of {}", pool_name(options.pool), options.kernel));
    }
    const AllocateStep allocate = options.allocate.value_or((*recipe)->allocate);
    if (options.allocate) settings.emplace_back("allocate", name_of(allocate));
    if (allocate == AllocateStep::head_importance || allocate == AllocateStep::pyramid) {
        settings.emplace_back("beta", fmt::format("{}", beta_of(config, rows)));
    }
    if (allocate == AllocateStep::adaptive) {
        settings.emplace_back("floor", fmt::format("{}", options.floor));
    }
    if ((*recipe)->select == SelectStep::sinks_recent) {
        settings.emplace_back("sinks", std::to_string(options.sinks));
    }
    settings.emplace_back("stored as", name_of(config.store));
    return settings;
}

Result<Inspection> inspect_tokens(const InspectArguments& arguments, Engine& engine,
                                  const MethodConfig& config, std::span<const Token> tokens) {
    ProgressBar bar("reading");
    const auto result = engine.prefill(tokens, {&config, 1},
                                       {.progress = bar.callback(), .expected_new_tokens = 1});
    bar.clear();
    if (!result) return tl::unexpected(result.error());
    const ModelInfo& model = engine.model().info();
    Inspection inspection;
    inspection.model = model_title(model);
    inspection.info = engine.info(result->sequences[0]);
    inspection.settings = settings_of(config, inspection.info.rows_budget);
    inspection.kept = engine.positions(result->sequences[0]);
    if (!arguments.html.empty()) {
        inspection.pieces = prompt_pieces(engine.model().tokenizer(), tokens);
    }
    return inspection;
}

Result<void> write_results(const InspectArguments& arguments, const Inspection& inspection,
                           const MethodConfig& config, std::span<const Token> tokens) {
    if (arguments.json != "-" && arguments.html != "-") {
        if (auto printed = print(text_map(inspection)); !printed) return printed;
    }
    if (!arguments.json.empty()) {
        const auto json = inspection_json(inspection, config, tokens);
        if (auto written = write_output(arguments.json, dump(json, -1)); !written) return written;
    }
    if (arguments.html.empty()) return {};
    return write_output(arguments.html, inspection_page(inspection));
}

Result<MethodConfig> config_of(const InspectArguments& arguments, const ModelInfo& model,
                               std::span<const Token> prompt) {
    if (arguments.method.method != kAutoMethod) {
        return method_config(arguments.method, arguments.method.method, model);
    }
    auto chosen = choose_method(arguments.method, model, static_cast<std::int64_t>(prompt.size()));
    if (!chosen) return tl::unexpected(chosen.error());
    note(chosen->text);
    return std::move(chosen->config);
}

Result<void> inspect(const InspectArguments& arguments) {
    if (auto checked = check_arguments(arguments); !checked) return checked;
    catch_interrupts();
    const auto text = read_prompt(arguments.prompt);
    if (!text) return tl::unexpected(text.error());
    const auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    const auto engine = Engine::create(*model, arguments.model.engine);
    if (!engine) return tl::unexpected(engine.error());
    const auto tokens = prompt_tokens(arguments.prompt, *text, **model, 1);
    if (!tokens) return tl::unexpected(tokens.error());
    auto config = config_of(arguments, (*model)->info(), tokens->tokens);
    if (!config) return tl::unexpected(config.error());
    config->keep = tokens->keep;
    config->question = prompt_question(arguments.prompt, *text, **model);
    const auto inspection = inspect_tokens(arguments, **engine, *config, tokens->tokens);
    if (!inspection) return tl::unexpected(inspection.error());
    return write_results(arguments, *inspection, *config, tokens->tokens);
}

}  // namespace

void register_inspect(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<InspectArguments>();
    CLI::App* command = app.add_subcommand("inspect", "which rows each head kept of a prompt");
    add_model_options(*command, arguments->model);
    add_prompt_options(*command, arguments->prompt);
    add_method_options(*command, arguments->method);
    command->add_option("--chunk", arguments->model.engine.chunk, "prompt tokens computed at once")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("N")
        ->group("Model");
    command->add_option("--json", arguments->json, "positions per layer and head; - is stdout")
        ->type_name("FILE");
    command->add_option("--html", arguments->html, "a page to look at; - is stdout")
        ->type_name("FILE");
    command->footer(
        "Example: headkv inspect -m model.gguf -f report.txt -q \"Who signed it?\" "
        "--rows 128 --html kept.html");
    command->callback([arguments, &status] {
        if (const auto done = inspect(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
