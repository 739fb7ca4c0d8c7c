// `headkv methods`: the table of methods, their steps, options and papers.
#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "cli/auto_method.h"
#include "cli/common.h"
#include "cli/method_pages.h"
#include "headkv/method.h"

namespace headkv::cli {

namespace {

using nlohmann::ordered_json;

struct MethodsArguments {
    std::string name, json;
};

// The options that a recipe's steps read, with our defaults; names as on the command line.
ordered_json options_of(const Recipe& recipe) {
    const MethodOptions d = default_options(recipe);
    const bool pyramid = recipe.allocate == AllocateStep::pyramid;
    const ordered_json defaults = {
        {"allocate", name_of(recipe.allocate)},
        {"window", d.window},
        {"protect", std::max(recipe.protect, d.protect)},
        {"observe", d.observe},
        {"query-decay", d.query_decay},
        {"skip-tail", d.skip_tail},
        {"draft", d.draft},
        {"kernel", d.kernel},
        {"pool", name_of(d.pool)},
        {"group-reduce", name_of(d.group_reduce)},
        {"chunk-size", recipe.chunk},
        {"unit", d.sentences ? "sentence" : "row"},
        {"beta", pyramid       ? ordered_json(d.pyramid_beta)
                 : d.beta == 0 ? ordered_json("by budget and scores, 1.2 to 5")
                               : ordered_json(d.beta)},
        {"pyramid-beta", d.pyramid_beta},
        {"temperature", d.temperature},
        {"shrink", d.shrink},
        {"mix", d.mix},
        {"floor", d.floor},
        {"normalize", d.normalize ? "yes" : "no"},
        {"cluster-size", d.cluster_size},
        {"choice", d.seed},
        {"sinks", d.sinks},
        {"positions", "text"},
        {"merge", name_of(MergeRows{recipe.merge, recipe.merge > 0})},
        {"similarity", d.similarity},
        {"frequent", d.frequent},
        {"local", d.local},
        {"class-rows", "as many as the budget"},
        {"recovery", d.recovery},
        {"reserve", d.reserve}};
    ordered_json options = ordered_json::object();
    for (const auto name : option_names(recipe)) options[name] = defaults.at(name);
    return options;
}

ordered_json allocators_json(const Recipe& recipe) {
    ordered_json names = ordered_json::array();
    for (const AllocateStep step : allocators_of(recipe)) names.push_back(name_of(step));
    return names;
}

std::string allocators_text(const Recipe& recipe) {
    std::string text;
    for (const AllocateStep step : allocators_of(recipe)) {
        text += text.empty() ? "" : ", ";
        text += name_of(step);
    }
    return text;
}

ordered_json json_of(const Recipe& recipe) {
    return {{"name", recipe.name},
            {"score", name_of(recipe.score)},
            {"allocate", name_of(recipe.allocate)},
            {"select", name_of(recipe.select)},
            {"store", name_of(recipe.store)},
            {"score_kind", recipe.score_kind},
            {"allocators", allocators_json(recipe)},
            {"options", options_of(recipe)},
            {"shares_layers", recipe.shares},
            {"latent", recipe.latent},
            {"recall", recipe.recall ? ordered_json(name_of(*recipe.recall)) : ordered_json()},
            {"paper", recipe.paper},
            {"summary", recipe.summary},
            {"page", method_page(recipe.name)}};
}

std::string paper_text(const Recipe& recipe) {
    return recipe.paper.empty() ? "-" : fmt::format("arXiv {}", recipe.paper);
}

std::string table_text() {
    std::string text = fmt::format("{:<18} {:<18} {:<16} {:<13} {:<6} {}\n", "method", "score",
                                   "allocate", "select", "store", "paper");
    for (const Recipe& recipe : recipes()) {
        text += fmt::format("{:<18} {:<18} {:<16} {:<13} {:<6} {}\n", recipe.name,
                            name_of(recipe.score), name_of(recipe.allocate), name_of(recipe.select),
                            name_of(recipe.store), paper_text(recipe));
    }
    return text +
           "auto: of these, what measured curves of the model expect most of.\n"
           "`headkv methods NAME` prints the page of one.\n";
}

std::string recipe_text(const Recipe& recipe) {
    std::string text = fmt::format("{}: {}\n", recipe.name, recipe.summary);
    text += fmt::format("  steps    {} x {} x {} x {}\n", name_of(recipe.score),
                        name_of(recipe.allocate), name_of(recipe.select), name_of(recipe.store));
    if (!recipe.score_kind.empty()) {
        text += fmt::format("  needs    head scores of kind {} (headkv calibrate --kind {})\n",
                            recipe.score_kind, recipe.score_kind);
    }
    if (recipe.recall) {
        text += fmt::format("  keeps    every row in host memory (--recall {})\n",
                            name_of(*recipe.recall));
    }
    if (recipe.shares) {
        text += "  needs    a map of layers that share rows (headkv calibrate --kind share)\n";
    }
    if (recipe.latent) {
        text += "  needs    a model that was trained with it (family clla)\n";
    }
    if (const auto allocators = allocators_text(recipe); !allocators.empty()) {
        text += fmt::format("  allocate may be {}\n", allocators);
    }
    // The page begins with its title.
    const std::string_view page = method_page(recipe.name);
    text += page.substr(std::min(page.find('\n'), page.size()));
    return text;
}

Result<void> methods(const MethodsArguments& arguments) {
    ordered_json json = ordered_json::array();
    std::string text;
    if (arguments.name.empty()) {
        for (const Recipe& recipe : recipes()) json.push_back(json_of(recipe));
        text = table_text();
    } else if (arguments.name == kAutoMethod) {
        text = method_page(kAutoMethod);
        json.push_back({{"name", kAutoMethod}, {"page", text}});
    } else {
        const auto recipe = find_recipe(arguments.name);
        if (!recipe) return tl::unexpected(recipe.error());
        json.push_back(json_of(**recipe));
        text = recipe_text(**recipe);
    }
    if (arguments.json != "-") {
        if (auto printed = print(text); !printed) return printed;
    }
    if (arguments.json.empty()) return {};
    return write_output(arguments.json, json.dump(2) + "\n");
}

}  // namespace

void register_methods(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<MethodsArguments>();
    CLI::App* command =
        app.add_subcommand("methods", "the methods: steps, options with defaults, papers");
    command->add_option("name", arguments->name, "one method, in detail")->type_name("NAME");
    command->add_option("--json", arguments->json, "a JSON list of methods to FILE; - is stdout")
        ->type_name("FILE");
    command->callback([arguments, &status] {
        if (const auto done = methods(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
