// headkv eval generate and babilong: examples with a context, a question and right answers.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "calibrate/haystack.h"
#include "cli/common.h"
#include "cli/eval_common.h"
#include "cli/options.h"
#include "cli/probe_template.h"
#include "eval/task.h"

namespace headkv::cli {
namespace {

using nlohmann::json;

struct TaskArguments {
    std::string task;  // "generate"
    ModelArguments model;
    MethodArguments method;
    PromptArguments prompt;  // only raw and chat_template are used
    std::vector<std::string> methods = {"snapkv", "headkv-r2"};
    std::string data, out, json, metric = "f1", query_aware = "yes";
    std::vector<std::string> tasks = {"qa1", "qa2", "qa3", "qa4", "qa5"};  // babilong
    std::vector<std::string> lengths = {"0k", "1k", "2k", "4k"};           // babilong
    TaskSettings settings;
};

json identity_of(const TaskArguments& arguments, const ModelInfo& info, const TaskData& data,
                 std::span<const ConfigUnderTest> configs) {
    const TaskSettings& s = arguments.settings;
    std::string all;
    for (const TaskExample& example : data.examples) {
        all += example.id + '\n' + example.context + '\n' + example.question + '\n';
        for (const std::string& answer : example.answers) all += answer + '\n';
    }
    return {{"task", arguments.task},
            {"fingerprint", info.fingerprint},
            {"examples", data.examples.size()},
            {"examples_hash", fmt::format("{:016x}", hash_text(all))},
            {"metric", metric_name(s.metric)},
            {"max_tokens", s.max_tokens},
            {"first_line", s.first_line},
            {"query_aware", s.query_aware},
            {"seed", s.seed},
            {"precision", arguments.model.engine.precision == Precision::fast ? "fast" : "exact"},
            {"chat_template", s.chat ? std::string(chat_template_name(*s.chat)) : "raw"},
            {"methods", describe(configs)}};
}

json to_json(const TaskRow& row) {
    return {{"group", row.group},
            {"method", row.method},
            {"rows", row.rows},
            {"n", row.n},
            {"cut", row.cut},
            {"score", row.score.value},
            {"interval", interval(row.score)},
            {"dscore", row.dscore.value},
            {"dscore_interval", interval(row.dscore)},
            {"share_of_full", row.share_of_full},
            {"dlogprob", row.dlog_probability.value},
            {"dlogprob_interval", interval(row.dlog_probability)},
            {"kv_bytes", row.kv_bytes},
            {"kv_bytes_full", row.kv_bytes_full},
            {"rows_kept_mean", row.rows_kept}};
}

std::string table(std::span<const TaskRow> rows) {
    std::size_t width = 14;
    std::size_t group_width = 5;
    for (const TaskRow& row : rows) {
        width = std::max(width, row.method.size());
        group_width = std::max(group_width, row.group.size());
    }
    std::string text =
        fmt::format("{:<{}} {:<{}} {:>6} {:>5} {:>6} {:>13} {:>23} {:>8} {:>23} {:>9} {:>6}\n",
                    "group", group_width, "method", width, "rows", "n", "score", "95 %",
                    "minus full (95 %)", "of full", "dlogp/token (95 %)", "KV", "share");
    for (const TaskRow& row : rows) {
        text += fmt::format(
            "{:<{}} {:<{}} {:>6} {:>5} {:>6.3f} {:>13} {:>23} {:>7.1f}% {:>23} {:>9} {:>5.1f}%\n",
            row.group.empty() ? "all" : row.group, group_width, row.method, width,
            row.rows > 0 ? fmt::format("{:g}", row.rows) : "all", row.n, row.score.value,
            fmt::format("{:.3f}..{:.3f}", row.score.low, row.score.high),
            fmt::format("{:+.3f} ({:+.3f}..{:+.3f})", row.dscore.value, row.dscore.low,
                        row.dscore.high),
            100 * row.share_of_full,
            fmt::format("{:+.3f} ({:+.3f}..{:+.3f})", row.dlog_probability.value,
                        row.dlog_probability.low, row.dlog_probability.high),
            human_bytes(row.kv_bytes), 100 * row.kv_bytes / row.kv_bytes_full);
    }
    return text;
}

Result<void> write_results(const TaskArguments& arguments, const ModelInfo& info,
                           const json& identity, const TaskData& data,
                           std::span<const ConfigUnderTest> configs, const TaskRun& run) {
    const auto rows = summarize(run.results, arguments.settings.seed);
    double seconds = 0;
    for (const TaskResult& result : run.results) seconds += result.seconds;
    json lines = json::array();
    for (const TaskRow& row : rows) {
        json line = to_json(row);
        add_types(line, configs, row.method);
        line["task"] = arguments.task;
        line["metric"] = metric_name(arguments.settings.metric);
        line["query_aware"] = arguments.settings.query_aware;
        line["model"] = model_title(info);
        line["fingerprint"] = info.fingerprint;
        line["seed"] = arguments.settings.seed;
        line["version"] = version();
        lines.push_back(std::move(line));
    }
    json skipped = json::array();
    for (const TaskResult& result : run.results) {
        if (!result.skipped.empty()) {
            skipped.push_back({{"id", result.id}, {"reason", result.skipped}});
        }
    }
    const std::size_t left_out = skipped.size();
    for (const SkippedLine& line : data.skipped) {
        skipped.push_back({{"file", line.file}, {"line", line.line}, {"reason", line.reason}});
    }
    const json whole = {{"format", "headkv-eval/1"},
                        {"flags", identity},
                        {"seconds", seconds},  // of the whole run: prefills are shared
                        {"skipped", std::move(skipped)},
                        {"results", std::move(lines)}};
    const std::string text = whole.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
    const auto file = std::filesystem::path(arguments.out) / "results.json";
    if (auto written = write_output(file.string(), text); !written) return written;
    if (arguments.json != "-") {
        auto shown = print(
            fmt::format("{}, {}: {} examples ({} left out), {}, {}, {}\n{}", model_title(info),
                        arguments.task, run.results.size() - left_out,
                        left_out + data.skipped.size(), metric_name(arguments.settings.metric),
                        arguments.settings.query_aware ? "question seen by the methods"
                                                       : "compressed before the question",
                        human_ms(seconds * 1000), table(rows)));
        if (!shown) return shown;
    }
    return arguments.json.empty() ? Result<void>() : write_output(arguments.json, text);
}

Result<void> run_task_command(TaskArguments& arguments,
                              const std::function<Result<TaskData>()>& load) {
    const auto metric = metric_by_name(arguments.metric);
    if (!metric) return tl::unexpected(metric.error());
    arguments.settings.metric = *metric;
    if (arguments.query_aware != "yes" && arguments.query_aware != "no") {
        return bad_input("--query-aware {}: give yes or no", arguments.query_aware);
    }
    arguments.settings.query_aware = arguments.query_aware == "yes";
    auto data = load();
    if (!data) return tl::unexpected(data.error());
    if (auto ready = prepare_output(arguments.out, arguments.json); !ready) return ready;

    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    const ModelInfo& info = (*model)->info();
    auto chat = probe_template(arguments.prompt, **model);
    if (!chat) return tl::unexpected(chat.error());
    arguments.settings.chat = *chat;
    const auto configs = configurations(arguments.method, arguments.methods, info);
    if (!configs) return tl::unexpected(configs.error());
    auto engine = Engine::create(*model, arguments.model.engine);
    if (!engine) return tl::unexpected(engine.error());

    for (const SkippedLine& line : data->skipped) {
        note(fmt::format("{}, line {} is left out: {}", line.file, line.line, line.reason));
    }
    const json identity = identity_of(arguments, info, *data, *configs);
    const auto examples = chosen_examples(data->examples, arguments.settings);
    catch_interrupts();
    ProgressBar bar(arguments.task);
    const Progress stop = [](std::int64_t, std::int64_t) { return !interrupted(); };
    const auto draw = [&](std::int64_t done, std::int64_t total) {
        bar.update(static_cast<double>(done), static_cast<double>(total));
        return !interrupted();
    };
    const auto log = std::filesystem::path(arguments.out) / "answers.jsonl";
    const auto runner = [&](const TaskExample& example) {
        return run_example(**engine, example, *configs, arguments.settings, stop);
    };
    auto run = run_task(examples, runner, log, identity, draw);
    bar.clear();
    if (!run) return tl::unexpected(run.error());
    note_start(run->start, log);
    return write_results(arguments, info, identity, *data, *configs, *run);
}

// The options that all tasks share.
CLI::App& add_task(CLI::App& eval, TaskArguments& arguments, const std::string& about) {
    CLI::App& command = *eval.add_subcommand(arguments.task, about);
    add_model_options(command, arguments.model);
    add_comparison_options(command, arguments.methods, arguments.method);
    command.add_option("-o,--output", arguments.out, "folder of answers.jsonl and results.json")
        ->required()
        ->type_name("FOLDER");
    command
        .add_option("--query-aware", arguments.query_aware,
                    "yes: methods see the question; no: the context is compressed before it")
        ->capture_default_str()
        ->type_name("YES|NO");
    command.add_option("--limit", arguments.settings.limit, "most examples, 0: all")
        ->check(CLI::NonNegativeNumber);
    command.add_option("-n,--max-tokens", arguments.settings.max_tokens, "of an answer")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    command.add_option("--seed", arguments.settings.seed, "of the order and the intervals")
        ->capture_default_str();
    command.add_flag("--raw", arguments.prompt.raw, "no chat template");
    command.add_option("--chat-template", arguments.prompt.chat_template,
                       "name of a chat template, where the model's own is not recognised");
    command.add_option("--json", arguments.json, "results as JSON to a file, or - for stdout")
        ->type_name("FILE");
    return command;
}

}  // namespace

void register_eval_task(CLI::App& eval, Status& status) {
    auto generate = std::make_shared<TaskArguments>();
    generate->task = "generate";
    CLI::App& own = add_task(eval, *generate, "your own questions, from a file of JSON lines");
    own.add_option("--data", generate->data,
                   "JSON lines of \"context\", \"question\", \"answers\": [...], \"id\"")
        ->required()
        ->type_name("FILE");
    own.add_option("--metric", generate->metric, "f1, contains, exact, rouge-l or edit")
        ->capture_default_str()
        ->type_name("NAME");
    own.add_flag("--first-line", generate->settings.first_line, "an answer ends with its line");
    own.callback([generate, &status] {
        const auto load = [&]() -> Result<TaskData> {
            if (generate->metric == "labels") return bad_input("--metric labels is babilong's");
            return load_examples(generate->data);
        };
        if (auto done = run_task_command(*generate, load); !done)
            status.code = report(done.error());
    });

    auto babilong = std::make_shared<TaskArguments>();
    babilong->task = "babilong";
    babilong->metric = "labels";
    babilong->settings.max_tokens = 15;
    CLI::App& reasoning =
        add_task(eval, *babilong, "BABILong: facts to be combined, hidden in long texts");
    reasoning
        .add_option("--data", babilong->data, "folder of tasks.json and 0k.jsonl, 1k.jsonl, ...")
        ->required()
        ->type_name("FOLDER");
    reasoning.add_option("--tasks", babilong->tasks, "tasks")
        ->delimiter(',')
        ->capture_default_str();
    reasoning.add_option("--lengths", babilong->lengths, "lengths")
        ->delimiter(',')
        ->capture_default_str();
    reasoning.callback([babilong, &status] {
        const auto load = [&] {
            return load_babilong(babilong->data, babilong->tasks, babilong->lengths);
        };
        if (auto done = run_task_command(*babilong, load); !done)
            status.code = report(done.error());
    });
}

}  // namespace headkv::cli
