// headkv eval TASK...: examples with a context, a question and right answers.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>

#include "calibrate/haystack.h"
#include "cli/common.h"
#include "cli/eval_common.h"
#include "cli/eval_tasks.h"
#include "cli/options.h"
#include "cli/probe_template.h"
#include "eval/report.h"
#include "eval/sample.h"
#include "eval/task.h"

namespace headkv::cli {
namespace {

using nlohmann::json;

struct TaskArguments {
    std::vector<std::string> names;  // of the tasks; the first is the subcommand's
    ModelArguments model;
    MethodArguments method;
    PromptArguments prompt;  // of add_template_options(), and --keep-marks
    std::vector<std::string> methods = {"snapkv", "headkv-r2"};
    std::string out, json, query_aware = "yes", baseline, shard = "1/1";
    TaskOptions options;
    Selection selection;
};

// One task of a command, ready to run.
struct Job {
    const EvalTask* task = nullptr;
    std::string folder;
    TaskSettings settings;
    TaskData data;
};

std::vector<std::string> split_commas(std::string_view text) {
    std::vector<std::string> items;
    while (!text.empty()) {
        const std::size_t comma = std::min(text.find(','), text.size());
        items.emplace_back(text.substr(0, comma));
        text.remove_prefix(std::min(comma + 1, text.size()));
    }
    return items;
}

Result<std::vector<const EvalTask*>> chosen_tasks(std::span<const std::string> names) {
    std::vector<const EvalTask*> tasks;
    for (const std::string& name : names) {
        const auto known = std::ranges::find(eval_tasks(), name, &EvalTask::name);
        if (name == "niah" || name == "ppl" || name == "kld" || name == "merge" ||
            name == "curves") {
            return bad_input("eval {} is a command by itself: it does not go with other tasks",
                             name);
        }
        if (known == eval_tasks().end()) {
            std::string all;
            for (const EvalTask& task : eval_tasks()) all += fmt::format(" {}", task.name);
            return bad_input("eval: unknown task {}; there are{}", name, all);
        }
        if (std::ranges::find(tasks, &*known) != tasks.end()) {
            return bad_input("eval: task {} is given twice", name);
        }
        tasks.push_back(&*known);
    }
    return tasks;
}

// Where options of tasks were given that none of the tasks has.
Result<void> check_options(const TaskOptions& options, bool marks,
                           std::span<const EvalTask* const> tasks) {
    const auto check = [&](bool given, const char* name, auto takes) -> Result<void> {
        if (!given || std::ranges::any_of(tasks, [&](const EvalTask* t) { return takes(*t); })) {
            return {};
        }
        return bad_input("{} is no option of eval {}", name, tasks[0]->name);
    };
    const std::tuple<bool, const char*, bool (*)(const EvalTask&)> all[] = {
        {!options.data.empty(), "--data", [](const EvalTask& t) { return !t.data.empty(); }},
        {!options.sets.empty(), "--tasks", [](const EvalTask& t) { return !t.sets.empty(); }},
        {!options.lengths.empty(), "--lengths",
         [](const EvalTask& t) { return !t.lengths.empty(); }},
        {options.metric.has_value(), "--metric", [](const EvalTask& t) { return t.metrics; }},
        {options.first_line, "--first-line", [](const EvalTask& t) { return t.metrics; }},
        {marks, "--keep-marks", [](const EvalTask& t) { return t.marks; }},
        {options.samples > 0, "--samples", [](const EvalTask& t) { return t.samples > 0; }},
        {!options.depths.empty(), "--depths", [](const EvalTask& t) { return !t.depths.empty(); }},
        {!options.split.empty(), "--split", [](const EvalTask& t) { return !t.split.empty(); }},
        {options.turns > 0, "--turns", [](const EvalTask& t) { return t.turns > 0; }},
        {options.shared_context, "--turn-mode", [](const EvalTask& t) { return t.turns > 0; }}};
    for (const auto& [given, name, takes] : all) {
        if (auto good = check(given, name, takes); !good) return good;
    }
    for (const EvalTask* task : tasks) {
        if (!task->data.empty() && options.data.empty()) {
            return bad_input("eval {}: --data is required: {}", task->name, task->data);
        }
    }
    return {};
}

// Several tasks share --data: each has a folder or a file of its name there, or takes it as it is.
std::string data_of(const std::string& data, std::string_view task, bool alone) {
    if (alone || data.empty()) return data;
    const auto inside = std::filesystem::path(data) / task;
    for (const char* extension : {"", ".jsonl"}) {
        std::string candidate = inside.string() + extension;
        if (std::filesystem::exists(candidate)) return candidate;
    }
    return data;
}

Result<TaskSettings> settings_of(const EvalTask& task, const TaskArguments& arguments) {
    const TaskOptions& options = arguments.options;
    TaskSettings settings = task.settings;
    if (task.metrics) {
        const auto metric =
            metric_by_name(options.metric.value_or(std::string(metric_name(settings.metric))));
        if (!metric) return tl::unexpected(metric.error());
        if (metric_needs_labels(*metric)) {
            return bad_input("--metric {} needs a task's labels: babilong has them",
                             *options.metric);
        }
        settings.metric = *metric;
        settings.first_line = options.first_line;
    }
    settings.max_tokens = options.max_tokens.value_or(settings.max_tokens);
    settings.query_aware = arguments.query_aware == "yes";
    if (task.turns > 0 && options.shared_context) {
        // Each question is read behind the compressed context, whatever is asked for.
        settings.turn_mode = TurnMode::shared_context;
        settings.query_aware = false;
    }
    settings.seed = arguments.selection.seed;
    settings.system = arguments.prompt.system;
    settings.keep = arguments.prompt.keep;
    settings.keep.marks = settings.keep.marks && task.marks;
    return settings;
}

Result<TaskData> load(const EvalTask& task, const TaskArguments& arguments, bool alone,
                      const Tokenizer* tokenizer) {
    TaskOptions options = arguments.options;
    options.data = data_of(options.data, task.name, alone);
    options.seed = arguments.selection.seed;
    if (options.sets.empty()) options.sets = split_commas(task.sets);
    if (options.lengths.empty()) options.lengths = split_commas(task.lengths);
    if (options.depths.empty()) {
        for (const std::string& depth : split_commas(task.depths)) {
            options.depths.push_back(std::stod(depth));
        }
    }
    if (options.split.empty()) options.split = task.split;
    if (options.samples == 0) options.samples = task.samples;
    if (options.turns == 0) options.turns = task.turns;
    return task.load(options, tokenizer);
}

// What an example asks, in one text; what was always there comes first, so that runs begun before
// there was more can go on.
std::string hashed_text(const TaskExample& example) {
    std::string all = example.id + '\n' + example.context + '\n' + example.question + '\n';
    for (const std::string& answer : example.answers) all += answer + '\n';
    for (const TaskTurn& turn : example.turns) {
        all += turn.question + '\n';
        for (const std::string& answer : turn.answers) all += answer + '\n';
    }
    if (example.metric) all += fmt::format("metric {}\n", metric_name(*example.metric));
    if (example.match) all += fmt::format("match {}\n", static_cast<int>(*example.match));
    if (example.max_tokens) all += fmt::format("max_tokens {}\n", *example.max_tokens);
    if (example.first_line) all += fmt::format("first_line {}\n", *example.first_line);
    if (!example.cluster.empty()) all += fmt::format("cluster {}\n", example.cluster);
    if (example.raw) all += "raw\n";
    if (example.verbatim) all += "verbatim\n";
    return all;
}

json identity_of(const TaskArguments& arguments, const Job& job, const ModelInfo& info,
                 std::span<const ConfigUnderTest> configs) {
    const TaskSettings& s = job.settings;
    std::string all;
    for (const TaskExample& example : job.data.examples) all += hashed_text(example);
    json identity = {
        {"task", job.task->name},
        {"fingerprint", info.fingerprint},
        {"examples", job.data.examples.size()},
        {"examples_hash", fmt::format("{:016x}", hash_text(all))},
        {"metric", metric_name(s.metric)},
        {"max_tokens", s.max_tokens},
        {"first_line", s.first_line},
        {"query_aware", s.query_aware},
        {"seed", s.seed},
        {"precision", arguments.model.engine.precision == Precision::fast ? "fast" : "exact"},
        {"chat_template", s.chat ? std::string(chat_template_name(*s.chat)) : "raw"},
        {"methods", describe(configs)}};
    if (s.turn_mode == TurnMode::shared_context) identity["turn_mode"] = "shared-context";
    if (s.keep.marks) identity["keep_marks"] = true;
    add_parts(identity, arguments.prompt);
    return identity;
}

// Runs what the log of the job does not hold yet, and writes its results.
Result<Report> run_job(const TaskArguments& arguments, const Job& job, Engine& engine,
                       std::span<const ConfigUnderTest> configs, const std::string& label) {
    for (const std::string& sentence : sentences_of(job.data.skipped)) note(sentence);
    const ModelInfo& info = engine.model().info();
    const Shard shard = *parse_shard(arguments.shard);
    auto examples = select_examples(job.data.examples, arguments.selection);
    ReportHead head = report_head(job.task->name, info, configs);
    head.metric = metric_name(job.settings.metric);
    if (std::ranges::any_of(job.data.examples, [](const TaskExample& example) {
            return example.metric || example.match;
        })) {
        head.metric = "each part's own";
    }
    head.baseline = arguments.baseline;
    head.query_aware = job.settings.query_aware;
    head.seed = job.settings.seed;
    head.skipped = job.data.skipped;
    head.flags = identity_of(arguments, job, info, configs);
    if (!shard.whole()) {
        // Other shards share out the same examples only with the same selection.
        head.flags["shard"] = {{"index", shard.index},
                               {"of", shard.of},
                               {"examples", examples.size()},
                               {"sample", arguments.selection.sample},
                               {"limit", arguments.selection.limit}};
        examples = shard_of(std::move(examples), shard);
        if (examples.empty()) {
            return bad_input("--shard {}: there are fewer examples than shards", arguments.shard);
        }
    }

    ProgressBar bar(label);
    const Progress stop = [](std::int64_t, std::int64_t) { return !interrupted(); };
    const Progress draw = bar.callback_of_run();
    const auto log = std::filesystem::path(job.folder) / "answers.jsonl";
    const auto runner = [&](const TaskExample& example) {
        return run_example(engine, example, configs, job.settings, stop);
    };
    auto run = run_task(examples, runner, log, head.flags, draw);
    bar.clear();
    if (!run) return tl::unexpected(run.error());
    note_start(run->start, log);
    Report report = make_report(std::move(head), run->results);
    if (auto written = write_report(job.folder, {&report, 1}); !written) {
        return tl::unexpected(written.error());
    }
    return report;
}

Result<void> run_task_command(TaskArguments& arguments) {
    const auto tasks = chosen_tasks(arguments.names);
    if (!tasks) return tl::unexpected(tasks.error());
    if (auto good = check_options(arguments.options, arguments.prompt.keep.marks, *tasks); !good) {
        return good;
    }
    if (arguments.query_aware != "yes" && arguments.query_aware != "no") {
        return bad_input("--query-aware {}: give yes or no", arguments.query_aware);
    }
    if (const auto shard = parse_shard(arguments.shard); !shard) {
        return tl::unexpected(shard.error());
    }
    const bool alone = tasks->size() == 1;
    std::vector<Job> jobs;
    for (const EvalTask* task : *tasks) {
        auto settings = settings_of(*task, arguments);
        if (!settings) return tl::unexpected(settings.error());
        const auto folder = std::filesystem::path(arguments.out) / (alone ? "" : task->name);
        jobs.push_back({task, folder.string(), *settings, {}});
    }
    // All data before the first answer: a mistake in the last task must not cost the hours before.
    // What needs no tokenizer comes before the model: a wrong folder is said at once.
    const auto load_jobs = [&](const Tokenizer* tokenizer) -> Result<void> {
        for (Job& job : jobs) {
            if (job.task->data.empty() != (tokenizer != nullptr)) continue;
            auto data = load(*job.task, arguments, alone, tokenizer);
            if (!data) return tl::unexpected(data.error());
            job.data = std::move(*data);
        }
        return {};
    };
    if (auto loaded = load_jobs(nullptr); !loaded) return loaded;

    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    const ModelInfo& info = (*model)->info();
    auto chat = probe_template(arguments.prompt, **model);
    if (!chat) return tl::unexpected(chat.error());
    const auto configs = configurations(arguments.method, arguments.methods, info);
    if (!configs) return tl::unexpected(configs.error());
    if (auto good = check_parts(arguments.prompt, *chat, *configs, info); !good) return good;
    const auto named = report_head("", info, *configs);
    if (auto good = check_baseline(arguments.baseline, named.configs); !good) return good;
    if (auto loaded = load_jobs(&(*model)->tokenizer()); !loaded) return loaded;
    for (Job& job : jobs) {
        job.settings.chat = *chat;
        if (auto ready = prepare_output(job.folder, arguments.json); !ready) return ready;
    }
    auto engine = Engine::create(*model, arguments.model.engine);
    if (!engine) return tl::unexpected(engine.error());

    catch_interrupts();
    std::vector<Report> reports;
    for (const Job& job : jobs) {
        const std::string label =
            alone ? std::string(job.task->name)
                  : fmt::format("{} ({} of {})", job.task->name, reports.size() + 1, jobs.size());
        auto report = run_job(arguments, job, **engine, *configs, label);
        if (!report) return tl::unexpected(report.error());
        if (arguments.json != "-") {
            if (auto shown = print(report_text(*report)); !shown) return shown;
        }
        reports.push_back(std::move(*report));
    }
    if (!alone) {
        // As `eval merge` finds them, whatever order they were named in.
        std::ranges::sort(reports, {}, [](const Report& report) { return report.head.task; });
        if (auto written = write_report(arguments.out, reports); !written) return written;
    }
    return write_report_json(arguments.json, reports);
}

// Options that only some tasks have are hidden from the help of the others, but taken: several
// tasks may be named.
void add_task_options(CLI::App& command, TaskOptions& options, const EvalTask& task) {
    const auto shown = [](CLI::Option* option, bool has) {
        if (!has) option->group("");
        return option;
    };
    shown(command.add_option("--data", options.data, std::string(task.data))->type_name("PATH"),
          !task.data.empty());
    shown(command.add_option("--tasks", options.sets, "parts of the task")
              ->delimiter(',')
              ->default_str(std::string(task.sets)),
          !task.sets.empty());
    shown(command.add_option("--lengths", options.lengths, "lengths")
              ->delimiter(',')
              ->default_str(std::string(task.lengths)),
          !task.lengths.empty());
    shown(command.add_option("--depths", options.depths, "where the needles stand, percent")
              ->delimiter(',')
              ->default_str(std::string(task.depths)),
          !task.depths.empty());
    shown(command
              .add_option("--split", options.split,
                          "dev: to choose settings by; final: other needles and text, for figures")
              ->check(CLI::IsMember({"dev", "final"}))
              ->default_str(std::string(task.split))
              ->type_name("NAME"),
          !task.split.empty());
    shown(command.add_option("--samples", options.samples, "examples made of every kind")
              ->check(CLI::PositiveNumber)
              ->default_str(std::to_string(task.samples))
              ->type_name("N"),
          task.samples > 0);
    shown(command.add_option("--turns", options.turns, "questions to one context")
              ->check(CLI::PositiveNumber)
              ->default_str(std::to_string(task.turns))
              ->type_name("N"),
          task.turns > 0);
    shown(command
              .add_option_function<std::string>(
                  "--turn-mode",
                  [&options](const std::string& mode) {
                      options.shared_context = mode == "shared-context";
                  },
                  "multi-turn: one after another; shared-context: each from the context alone")
              ->check(CLI::IsMember({"multi-turn", "shared-context"}))
              ->default_str("multi-turn")
              ->type_name("NAME"),
          task.turns > 0);
    shown(command.add_option("--metric", options.metric, "f1, contains, exact, rouge-l or edit")
              ->default_str(std::string(metric_name(task.settings.metric)))
              ->type_name("NAME"),
          task.metrics);
    shown(command.add_flag("--first-line", options.first_line, "an answer ends with its line"),
          task.metrics);
    command.add_option("-n,--max-tokens", options.max_tokens, "of an answer")
        ->default_str(std::to_string(task.settings.max_tokens))
        ->check(CLI::PositiveNumber);
}

void add_task(CLI::App& eval, Status& status, const EvalTask& task) {
    auto arguments = std::make_shared<TaskArguments>();
    arguments->names = {std::string(task.name)};
    CLI::App& command = *eval.add_subcommand(std::string(task.name), std::string(task.about));
    auto more = std::make_shared<std::vector<std::string>>();
    command.add_option("more", *more, "further tasks, each with a subfolder of its own")
        ->type_name("TASK...");
    add_model_options(command, arguments->model);
    add_comparison_options(command, arguments->methods, arguments->method);
    command
        .add_option("-o,--output", arguments->out,
                    "folder of answers.jsonl, results.json, results.csv and report.html")
        ->required()
        ->type_name("FOLDER");
    add_task_options(command, arguments->options, task);
    command
        .add_option("--query-aware", arguments->query_aware,
                    "yes: methods see the question; no: the context is compressed before it")
        ->capture_default_str()
        ->type_name("YES|NO");
    command
        .add_option("--baseline", arguments->baseline,
                    "one of --methods: differences from it at the same budget, too")
        ->type_name("NAME");
    command.add_option("--limit", arguments->selection.limit, "most examples, 0: all")
        ->check(CLI::NonNegativeNumber);
    command
        .add_option("--sample", arguments->selection.sample,
                    "most examples of every group, drawn by the seed, 0: all")
        ->check(CLI::NonNegativeNumber);
    command
        .add_option("--shard", arguments->shard,
                    "this part of the examples: 1/4 is the first of four (see `eval merge`)")
        ->type_name("I/N");
    command.add_option("--seed", arguments->selection.seed, "of the order and the intervals")
        ->capture_default_str();
    add_template_options(command, arguments->prompt);
    auto* marks =
        command.add_flag("--keep-marks", arguments->prompt.keep.marks,
                         "every head keeps what stands between <keep> and </keep> in an example");
    if (!task.marks) marks->group("");
    command.add_option("--json", arguments->json, "results as JSON to a file, or - for stdout")
        ->type_name("FILE");
    command.callback([arguments, more, &status] {
        arguments->names.insert(arguments->names.end(), more->begin(), more->end());
        if (auto done = run_task_command(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace

void register_eval_tasks(CLI::App& eval, Status& status) {
    for (const EvalTask& task : eval_tasks()) add_task(eval, status, task);
}

}  // namespace headkv::cli
