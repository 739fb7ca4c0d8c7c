// What the evaluations have in common on the command line.
#include "cli/eval_common.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "calibrate/haystack.h"
#include "cli/all_methods.h"
#include "cli/commit.h"
#include "cli/common.h"
#include "cli/report_page.h"

namespace headkv::cli {
namespace {

std::vector<std::string> split(const std::vector<std::string>& lists, char separator) {
    std::vector<std::string> items;
    for (const std::string& list : lists) {
        std::size_t start = 0;
        while (start <= list.size()) {
            const std::size_t comma = std::min(list.find(separator, start), list.size());
            if (comma > start) items.push_back(list.substr(start, comma - start));
            start = comma + 1;
        }
    }
    return items;
}

}  // namespace

nlohmann::json describe(const MethodConfig& config) {
    const MethodOptions& o = config.options;
    nlohmann::json json = {{"method", config.method},
                           {"rows", config.budget.value},
                           {"window", o.window},
                           {"protect", o.protect},
                           {"observe", o.observe},
                           {"kernel", o.kernel},
                           {"pool", o.pool == Pool::max ? "max" : "avg"},
                           {"beta", importance_beta(o, config.budget.value, config.scores.get())},
                           {"pyramid_beta", o.pyramid_beta},
                           {"floor", o.floor},
                           {"normalize", o.normalize},
                           {"group_reduce", o.group_reduce == GroupReduce::mean ? "mean" : "max"},
                           {"sinks", o.sinks},
                           {"reserve", o.reserve}};
    // What follows only where it is not the default, so that runs begun before there was a choice
    // can go on.
    const MethodOptions d;
    const auto add = [&](const char* name, auto value, auto usual) {
        if (value != usual) json[name] = value;
    };
    if (o.allocate) json["allocate"] = name_of(*o.allocate);
    add("temperature", o.temperature, d.temperature);
    add("shrink", o.shrink, d.shrink);
    add("query_decay", o.query_decay, d.query_decay);
    add("skip_tail", o.skip_tail, d.skip_tail);
    add("draft", o.draft, d.draft);
    add("observe_question", o.observe_question, d.observe_question);
    add("sentences", o.sentences, d.sentences);
    add("mix", o.mix, d.mix);
    add("chunk_size", o.chunk, d.chunk);
    add("cluster_size", o.cluster_size, d.cluster_size);
    add("choice", o.seed, d.seed);
    add("in_cache_positions", o.in_cache_positions, d.in_cache_positions);
    if (o.merge) json["merge"] = name_of(*o.merge);
    add("similarity", o.similarity, d.similarity);
    add("frequent", o.frequent, d.frequent);
    add("local", o.local, d.local);
    add("class_rows", o.class_rows, d.class_rows);
    add("recovery", o.recovery, d.recovery);
    if (config.store != StoreTypes()) {
        json["type_k"] = name_of(config.store.keys);
        json["type_v"] = name_of(config.store.values);
    }
    if (config.recall) json["recall"] = name_of(*config.recall);
    if (config.share) json["share"] = config.share->owner;
    if (config.scores) {
        std::string text;
        for (const double mean : config.scores->mean) text += fmt::format("{} ", mean);
        json["scores"] = {{"kind", config.scores->kind},
                          {"probes_passed", config.scores->probes_passed},
                          {"hash", fmt::format("{:016x}", hash_text(text))}};
    }
    return json;
}

void add_comparison_options(CLI::App& command, std::vector<std::string>& methods,
                            MethodArguments& method) {
    command
        .add_option("--methods", methods,
                    "methods to compare with full, all: every one; options of one: "
                    "headkv-r2:window=24:kv-type=q8_0")
        ->delimiter(',')
        ->type_name("NAMES");
    add_method_options(command, method, false);
}

void add_template_options(CLI::App& command, PromptArguments& prompt) {
    auto* raw = command.add_flag("--raw", prompt.raw, "no chat template");
    command
        .add_option("--chat-template", prompt.chat_template,
                    "name of a chat template, where the model's own is not recognised")
        ->type_name("NAME");
    command.add_option("--system", prompt.system, "system message (default: the model's own)")
        ->excludes(raw)
        ->type_name("TEXT");
    command
        .add_flag("--keep-system", prompt.keep.system,
                  "every head keeps what the chat template puts before the prompt")
        ->excludes(raw);
}

Result<void> check_parts(const PromptArguments& prompt, std::optional<ChatTemplate> chat,
                         std::span<const ConfigUnderTest> configs, const ModelInfo& info) {
    if (auto text = check_text(prompt.system, "the system message (--system)"); !text) return text;
    if (!chat && (prompt.keep.system || !prompt.system.empty())) {
        return bad_input(
            "the model has no chat template, so {} has no place: leave it out, or name one with "
            "--chat-template",
            prompt.keep.system ? "--keep-system" : "--system");
    }
    if (!prompt.keep.system && !prompt.keep.marks) return {};
    for (const ConfigUnderTest& config : configs) {
        MethodConfig keeps = config.method;
        keeps.keep = {{0, 0}};
        const auto usable = method_for_long_prompt(keeps, info);
        if (!usable) return tl::unexpected(usable.error());
    }
    return {};
}

void add_parts(nlohmann::json& identity, const PromptArguments& prompt) {
    if (!prompt.system.empty()) identity["system"] = prompt.system;
    if (prompt.keep.system) identity["keep_system"] = true;
}

Result<std::vector<ConfigUnderTest>> configurations(const MethodArguments& method,
                                                    const std::vector<std::string>& methods,
                                                    const ModelInfo& info) {
    if (!method.bytes.empty() || !method.keep.empty()) {
        return bad_input("evaluations compare budgets in rows: give --rows, such as --rows 64,128");
    }
    std::vector<std::string> budgets = split(method.rows, ',');
    if (budgets.empty()) budgets = {"128"};
    std::vector<ConfigUnderTest> configs;
    const auto add = [&](const MethodArguments& one, const std::string& written,
                         double rows) -> Result<void> {
        auto config = method_config(one, written, info);
        if (!config) return tl::unexpected(config.error());
        // What no prompt could be read with is refused before the first one is.
        const auto usable = method_for_long_prompt(*config, info);
        if (!usable) return tl::unexpected(usable.error());
        auto title = method_title(written, config->store);
        configs.push_back({std::move(*config), std::move(title), rows});
        return {};
    };
    // "all" are those that work with the smallest budget, so that all have all of them.
    MethodArguments least = method;
    std::optional<double> fewest;
    for (const std::string& rows : budgets) {
        MethodArguments one = method;
        one.rows = {rows};
        const auto budget = method_budget(one);
        if (!budget) return tl::unexpected(budget.error());
        if (fewest && budget->value >= *fewest) continue;
        fewest = budget->value;
        least = one;
    }
    const auto listed = with_all_methods(least, split(methods, ','), info, info.device != "cpu");
    if (!listed) return tl::unexpected(listed.error());
    for (const std::string& written : *listed) {
        if (auto known = check_method(method, written); !known) {
            return tl::unexpected(known.error());
        }
        MethodArguments one = method;
        const auto own = *written_method(method, written);
        if (const auto recipe = *method_recipe(own); recipe.allocate == AllocateStep::all) {
            // The reference itself; with rows of other types it is compared, too, as one budget.
            if (*method_store(own, recipe) == StoreTypes()) continue;
            one.rows.clear();
            if (auto added = add(one, written, 0); !added) return tl::unexpected(added.error());
            continue;
        }
        for (const std::string& rows : budgets) {
            one.rows = {rows};
            const auto budget = method_budget(one);
            if (!budget) return tl::unexpected(budget.error());
            if (auto added = add(one, written, budget->value); !added) {
                return tl::unexpected(added.error());
            }
        }
    }
    return configs;
}

nlohmann::json describe(std::span<const ConfigUnderTest> configs) {
    nlohmann::json methods = nlohmann::json::array();
    for (const ConfigUnderTest& config : configs) methods.push_back(describe(config.method));
    return methods;
}

Result<void> prepare_output(const std::string& folder, const std::string& json) {
    std::error_code error;
    std::filesystem::create_directories(folder, error);
    if (error) return bad_input("{}: {}", folder, error.message());
    return check_output(json);
}

void note_start(RunLog::Start start, const std::filesystem::path& log) {
    if (start != RunLog::Start::settings_changed) return;
    note(fmt::format("{} was of other settings: begun anew, the old one is now {}.old",
                     log.string(), log.string()));
}

void add_types(nlohmann::json& json, std::span<const ConfigUnderTest> configs,
               std::string_view name) {
    StoreTypes types;
    for (const ConfigUnderTest& config : configs) {
        if (config.name == name) types = config.method.store;
    }
    json["type_k"] = name_of(types.keys);
    json["type_v"] = name_of(types.values);
}

nlohmann::json interval(const Estimate& estimate) {
    return nlohmann::json::array({estimate.low, estimate.high});
}

namespace {

std::string signed_text(const Estimate& estimate) {
    return fmt::format("{:+.3f} ({:+.3f}..{:+.3f})", estimate.value, estimate.low, estimate.high);
}

}  // namespace

std::string text_of(const nlohmann::json& json) {
    // Answers of a model may hold broken UTF-8.
    return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

ReportHead report_head(std::string_view task, const ModelInfo& info,
                       std::span<const ConfigUnderTest> configs) {
    ReportHead head;
    head.task = task;
    head.model = model_title(info);
    head.fingerprint = info.fingerprint;
    head.version = version();
    head.commit = commit();
    head.configs.push_back({.method = "full", .options = nullptr});
    for (const ConfigUnderTest& config : configs) {
        const StoreTypes& store = config.method.store;
        head.configs.push_back({config.name, config.rows, std::string(name_of(store.keys)),
                                std::string(name_of(store.values)), describe(config.method)});
    }
    return head;
}

std::string report_text(const Report& report) {
    std::size_t width = 14;
    std::size_t group_width = 5;
    for (const ReportRow& row : report.rows) {
        width = std::max(width, row.method.size());
        group_width = std::max(group_width, row.group.size());
    }
    const ReportHead& head = report.head;
    std::string text = fmt::format(
        "{}, {}: {} examples ({} left out), {}, {}, {}\n", head.model, head.task, report.examples,
        report.left_out.size() + head.skipped.size(), head.metric,
        head.query_aware ? "question seen by the methods" : "compressed before the question",
        human_ms(report.seconds * 1000));
    text += fmt::format("{:<{}} {:<{}} {:>6} {:>5} {:>6} {:>13} {:>23} {:>8} {:>23} {:>9} {:>6}",
                        "group", group_width, "method", width, "rows", "n", "score", "95 %",
                        "minus full (95 %)", "of full", "dlogp/token (95 %)", "KV", "share");
    if (!head.baseline.empty()) text += fmt::format("  minus {} (95 %)", head.baseline);
    text += '\n';
    for (const ReportRow& row : report.rows) {
        text += fmt::format(
            "{:<{}} {:<{}} {:>6} {:>5} {:>6.3f} {:>13} {:>23} {:>7.1f}% {:>23} {:>9} {:>5.1f}%",
            row.group.empty() ? "all" : row.group, group_width, row.method, width,
            row.rows > 0 ? fmt::format("{:g}", row.rows) : "all", row.n, row.score.value,
            fmt::format("{:.3f}..{:.3f}", row.score.low, row.score.high), signed_text(row.dscore),
            100 * row.share_of_full, signed_text(row.dlog_probability), human_bytes(row.kv_bytes),
            100 * row.kv_bytes / row.kv_bytes_full);
        if (row.dbaseline) text += "  " + signed_text(*row.dbaseline);
        text += '\n';
    }
    return text;
}

Result<void> write_report(const std::string& folder, std::span<const Report> reports, bool json) {
    const std::filesystem::path path(folder);
    if (json && reports.size() == 1) {
        auto written =
            write_output((path / "results.json").string(), text_of(report_json(reports[0])));
        if (!written) return written;
    }
    auto written = write_output((path / "results.csv").string(), report_csv(reports));
    if (!written) return written;
    return write_output((path / "report.html").string(), report_page(reports));
}

Result<void> write_report_json(const std::string& file, std::span<const Report> reports) {
    std::vector<nlohmann::json> results;
    for (const Report& report : reports) results.push_back(report_json(report));
    return write_results_json(file, results);
}

Result<void> write_results_json(const std::string& file, std::span<const nlohmann::json> results) {
    if (file.empty()) return {};
    if (results.size() == 1) return write_output(file, text_of(results[0]));
    return write_output(file, text_of({{"format", "headkv-eval/1"}, {"tasks", results}}));
}

}  // namespace headkv::cli
