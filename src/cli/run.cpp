// `headkv run`: one prompt, one answer, through one cache or several.
#include <stdio.h>  // NOLINT(modernize-deprecated-headers): getline() of POSIX: unlike std::getline it returns at ctrl-C
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <memory>

#include "cli/auto_method.h"
#include "cli/options.h"
#include "cli/run_report.h"
#include "headkv/session.h"

namespace headkv::cli {

namespace {

struct RunArguments {
    ModelArguments model;
    MethodArguments method;
    PromptArguments prompt;
    GenerateOptions generate;
    std::vector<std::string> compare;
    std::string json;
    bool chat = false, show_prompt = false;
};

// The command at work: everything that lives as long as the engine.
struct Job {
    const RunArguments& arguments;
    std::unique_ptr<Engine> engine;
    RunContext context;
    std::vector<std::string> titles;  // of the methods, in the order of the sequences
    std::vector<MethodRun> runs;
    std::optional<Error> output_error;  // stdout was closed or full

    const Model& model() const { return engine->model(); }
    bool json_on_stdout() const { return arguments.json == "-"; }
};

// --method and those of --compare, each once. A list that names the method too gives the order.
std::vector<std::string> method_names(const RunArguments& arguments) {
    std::vector<std::string> names = arguments.compare;
    if (std::find(names.begin(), names.end(), arguments.method.method) == names.end()) {
        names.insert(names.begin(), arguments.method.method);
    }
    std::vector<std::string> unique;
    for (const auto& name : names) {
        if (std::find(unique.begin(), unique.end(), name) == unique.end()) unique.push_back(name);
    }
    return unique;
}

// What is wrong without a look at the model is said before it is loaded.
Result<void> check_arguments(const RunArguments& arguments) {
    for (const auto& name : method_names(arguments)) {
        if (name == kAutoMethod) continue;
        if (auto checked = check_method(arguments.method, name); !checked) return checked;
    }
    if (const auto budget = method_budget(arguments.method); !budget) {
        return tl::unexpected(budget.error());
    }
    if (!arguments.prompt.chat_template.empty()) {
        const auto known = chat_template_by_name(arguments.prompt.chat_template);
        if (!known) return tl::unexpected(known.error());
    }
    if (arguments.chat && arguments.prompt.document == "-") {
        return bad_input("--chat reads questions from stdin: give the document as a file");
    }
    return check_output(arguments.json);
}

// Of all methods, and what each is called; `auto` is the one that is chosen for this prompt.
Result<std::vector<MethodConfig>> method_configs(const RunArguments& arguments,
                                                 const ModelInfo& model, std::int64_t prompt,
                                                 std::vector<std::string>& titles) {
    std::vector<MethodConfig> configs;
    for (std::string name : method_names(arguments)) {
        if (name == kAutoMethod) {
            auto chosen = choose_method(arguments.method, model, prompt);
            if (!chosen) return tl::unexpected(chosen.error());
            note(chosen->text);
            name = std::move(chosen->written);
            configs.push_back(std::move(chosen->config));
        } else {
            auto config = method_config(arguments.method, name, model);
            if (!config) return tl::unexpected(config.error());
            configs.push_back(std::move(*config));
        }
        titles.push_back(method_title(name, configs.back().store));
    }
    return configs;
}

Result<void> load(Job& job) {
    const Stopwatch watch;
    auto model = load_model(job.arguments.model);
    if (!model) return tl::unexpected(model.error());
    auto engine = Engine::create(*model, job.arguments.model.engine);
    if (!engine) return tl::unexpected(engine.error());
    job.engine = std::move(*engine);
    const ModelInfo& info = job.model().info();
    job.context.model = model_title(info);
    job.context.device = info.device;
    job.context.weight_bytes = info.weight_bytes;
    job.context.load_ms = watch.ms();
    return {};
}

Result<PrefillResult> prefill(Job& job, const PromptText& text, const MarkedPrompt& marked) {
    const auto& prompt = marked.tokens;
    auto configs = method_configs(job.arguments, job.model().info(),
                                  static_cast<std::int64_t>(prompt.size()), job.titles);
    if (!configs) return tl::unexpected(configs.error());
    const auto question = prompt_question(job.arguments.prompt, text, job.model());
    for (MethodConfig& config : *configs) {
        config.keep = marked.keep;
        config.question = question;
    }
    ProgressBar bar("reading");
    const PrefillOptions options{.progress = bar.callback(),
                                 .expected_new_tokens = job.arguments.generate.max_tokens};
    auto result = job.engine->prefill(prompt, *configs, options);
    if (!result) return result;
    job.context.prompt_tokens = static_cast<std::int64_t>(prompt.size());
    job.context.readings = result->readings;
    job.context.prefill_ms = result->prefill_ms;
    job.context.compress_ms = result->compress_ms;
    job.context.scratch_bytes = result->scratch_bytes;
    return result;
}

// Streams an answer to stdout, unless JSON goes there.
Result<Generation> answer(Job& job, SequenceId sequence, std::span<const float> logits) {
    const TextSink sink = [&job](std::string_view piece) {
        if (!job.json_on_stdout() && !piece.empty() && !job.output_error) {
            if (auto printed = print(piece); !printed) job.output_error = printed.error();
        }
        return !interrupted() && !job.output_error;
    };
    auto generation = generate(*job.engine, sequence, logits, job.arguments.generate, sink);
    if (job.output_error) return tl::unexpected(*job.output_error);
    if (!generation || job.json_on_stdout()) return generation;
    if (auto printed = print("\n"); !printed) return tl::unexpected(printed.error());
    return generation;
}

void say_if_full(const SequenceInfo& info) {
    if (info.runs_as_full && info.method != "full") {
        note(
            fmt::format("{}: the budget is not below the prompt of {} tokens, so nothing was "
                        "thrown away",
                        info.method, info.prompt_tokens));
    }
}

Result<void> print_heading(const Job& job, const SequenceInfo& info, const std::string& title) {
    if (job.json_on_stdout() || job.arguments.compare.empty()) return {};
    return print(fmt::format("{}== {} ({:.0f} rows per head)\n", job.runs.empty() ? "" : "\n",
                             title, info.rows_kept_mean));
}

Result<void> answer_all(Job& job, const PrefillResult& prefilled) {
    for (std::size_t i = 0; i < prefilled.sequences.size(); ++i) {
        const SequenceId sequence = prefilled.sequences[i];
        const SequenceInfo info = job.engine->info(sequence);
        say_if_full(info);
        if (auto printed = print_heading(job, info, job.titles[i]); !printed) return printed;
        auto generation = answer(job, sequence, prefilled.logits_of(i));
        if (!generation) return tl::unexpected(generation.error());
        job.runs.push_back({job.engine->info(sequence), std::move(*generation), job.titles[i],
                            job.engine->placement(sequence)});
        job.context.device_peak_bytes = job.engine->device_peak_bytes();
        job.engine->release(sequence);
        if (interrupted()) break;
    }
    return {};
}

Result<void> print_report(const Job& job) {
    if (job.arguments.compare.empty()) {
        fmt::print(stderr, "\n{}", run_statistics(job.context, job.runs[0]));
    } else {
        fmt::print(stderr, "\n{} tokens read {} in {}\n", job.context.prompt_tokens,
                   times(job.context.readings), human_ms(job.context.prefill_ms));
        const std::string table = "\n" + comparison_table(job.runs);
        if (!job.json_on_stdout()) return print(table);
        fmt::print(stderr, "{}", table);
    }
    return {};
}

Result<void> write_json(const Job& job) {
    if (job.arguments.json.empty()) return {};
    auto json = run_json(job.context, job.runs[0]);
    if (!job.arguments.compare.empty()) {
        for (const MethodRun& run : job.runs) {
            json["compare"].push_back(run_json(job.context, run));
        }
    }
    return write_output(job.arguments.json, dump(json));
}

Error stopped() { return {ErrorKind::interrupted, "interrupted; what was generated so far stays"}; }

Result<void> run_once(Job& job, const PromptText& text) {
    const auto tokens =
        prompt_tokens(job.arguments.prompt, text, job.model(), job.arguments.generate.max_tokens);
    if (!tokens) return tl::unexpected(tokens.error());
    if (job.arguments.show_prompt) {
        fmt::print(stderr, "{}\n", job.model().tokenizer().decode(tokens->tokens, true));
    }
    const auto prefilled = prefill(job, text, *tokens);
    if (!prefilled) return tl::unexpected(prefilled.error());
    if (auto done = answer_all(job, *prefilled); !done) return done;
    if (auto printed = print_report(job); !printed) return printed;
    if (auto written = write_json(job); !written) return written;
    return interrupted() ? Result<void>(tl::unexpected(stopped())) : Result<void>();
}

// --- --chat
// -------------------------------------------------------------------------------------------

// The next line of stdin that is not empty; nothing at its end or at ctrl-C.
std::optional<std::string> read_line() {
    if (::isatty(STDIN_FILENO) == 1) {
        fmt::print(stderr, "> ");
        std::fflush(stderr);
    }
    char* line = nullptr;
    std::size_t capacity = 0;
    std::optional<std::string> result;
    while (!result) {
        const ssize_t length = ::getline(&line, &capacity, stdin);
        if (length < 0) break;
        std::string text(line, static_cast<std::size_t>(length));
        while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
        if (!text.empty()) result = std::move(text);
    }
    std::free(line);
    return result;
}

struct Turn {
    std::string user;
    MethodRun run;
};

// Tokens of the last answer that the cache does not hold yet (the one that ended it).
std::vector<Token> unread_answer(const SequenceInfo& before, const MethodRun& run) {
    const auto& tokens = run.generation.tokens;
    const std::int64_t read = run.info.tokens - before.tokens;
    return {tokens.begin() + std::min(read, static_cast<std::int64_t>(tokens.size())),
            tokens.end()};
}

Result<std::vector<float>> read_turn(Job& job, SequenceId sequence, std::vector<Token> unread,
                                     const std::string& user, ChatTemplate chat) {
    const auto turn = next_turn_prompt(job.model(), user, chat);
    unread.insert(unread.end(), turn.begin(), turn.end());
    const std::int64_t context = job.model().info().context;
    const std::int64_t total =
        job.engine->info(sequence).tokens + static_cast<std::int64_t>(unread.size());
    if (context > 0 && total > context) {
        return bad_input(
            "the conversation has {} tokens, {} more than the model's context of {}: "
            "begin a new one",
            total, total - context, context);
    }
    return job.engine->extend(sequence, unread);
}

void print_turn(const Job& job, const MethodRun& run, bool first) {
    fmt::print(stderr, "\n{}\n", first ? run_statistics(job.context, run) : turn_statistics(run));
}

Result<void> write_chat_json(const Job& job, const std::vector<Turn>& turns) {
    if (job.arguments.json.empty()) return {};
    auto json = run_json(job.context, turns.back().run);
    for (const Turn& turn : turns) {
        json["turns"].push_back({{"user", turn.user},
                                 {"text", turn.run.generation.text},
                                 {"token_ids", turn.run.generation.tokens},
                                 {"stop_reason", turn.run.generation.stop_reason},
                                 {"tokens", turn.run.info.tokens},
                                 {"bytes_held", turn.run.info.held_bytes}});
    }
    return write_output(job.arguments.json, dump(json));
}

Result<std::vector<Turn>> converse(Job& job, const PromptText& text, ChatTemplate chat) {
    const auto tokens =
        prompt_tokens(job.arguments.prompt, text, job.model(), job.arguments.generate.max_tokens);
    if (!tokens) return tl::unexpected(tokens.error());
    auto prefilled = prefill(job, text, *tokens);
    if (!prefilled) return tl::unexpected(prefilled.error());
    const SequenceId sequence = prefilled->sequences[0];
    say_if_full(job.engine->info(sequence));
    std::vector<float> logits = std::move(prefilled->logits);
    std::vector<Turn> turns;
    std::string user = text.question.empty() ? text.document : text.question;
    while (true) {
        const SequenceInfo before = job.engine->info(sequence);
        auto generation = answer(job, sequence, logits);
        if (!generation) return tl::unexpected(generation.error());
        turns.push_back({user,
                         {job.engine->info(sequence), std::move(*generation), job.titles[0],
                          job.engine->placement(sequence)}});
        job.context.device_peak_bytes = job.engine->device_peak_bytes();
        print_turn(job, turns.back().run, turns.size() == 1);
        if (interrupted()) return turns;
        const auto next = read_line();
        if (!next) return turns;
        if (auto checked = check_text(*next, "the question"); !checked) {
            return tl::unexpected(checked.error());
        }
        user = *next;
        auto read = read_turn(job, sequence, unread_answer(before, turns.back().run), user, chat);
        if (!read) return tl::unexpected(read.error());
        logits = std::move(*read);
    }
}

Result<void> run_chat(Job& job, const PromptText& text) {
    const auto chat = prompt_template(job.arguments.prompt, job.model());
    if (!chat) return tl::unexpected(chat.error());
    const auto turns = converse(job, text, **chat);
    if (!turns) return tl::unexpected(turns.error());
    if (auto written = write_chat_json(job, *turns); !written) return written;
    return interrupted() ? Result<void>(tl::unexpected(stopped())) : Result<void>();
}

// --- the command
// --------------------------------------------------------------------------------------

Result<void> run(RunArguments& arguments) {
    if (auto checked = check_arguments(arguments); !checked) return checked;
    catch_interrupts();
    const bool asks_first = arguments.prompt.question.empty() && arguments.prompt.text.empty();
    if (arguments.chat && asks_first) {
        const auto line = read_line();
        if (interrupted()) return tl::unexpected(stopped());
        if (!line) return bad_input("--chat found no question on stdin: type one a line");
        arguments.prompt.question = *line;
    }
    const auto text = read_prompt(arguments.prompt);
    if (!text) return tl::unexpected(text.error());
    Job job{.arguments = arguments,
            .engine = nullptr,
            .context = {},
            .titles = {},
            .runs = {},
            .output_error = {}};
    if (auto loaded = load(job); !loaded) return loaded;
    return arguments.chat ? run_chat(job, *text) : run_once(job, *text);
}

void add_sampling_options(CLI::App& command, GenerateOptions& options) {
    constexpr const char* group = "Answer";
    SamplerOptions& sampler = options.sampler;
    const auto add = [&](const char* name, auto& value, const char* help, const char* type) {
        return command.add_option(name, value, help)
            ->capture_default_str()
            ->type_name(type)
            ->group(group);
    };
    add("-n,--tokens", options.max_tokens, "most tokens of the answer", "N")
        ->check(CLI::NonNegativeNumber);
    add("--temp", sampler.temperature, "temperature; 0: always the best token", "T")
        ->check(CLI::Range(0.0, 100.0));
    add("--top-k", sampler.top_k, "draw from the K best tokens; 0: off", "K")
        ->check(CLI::NonNegativeNumber);
    add("--top-p", sampler.top_p, "draw from the best tokens that hold this probability; 1: off",
        "P")
        ->check(CLI::Range(0.0, 1.0));
    add("--min-p", sampler.min_p, "draw from tokens this likely, relative to the best; 0: off", "P")
        ->check(CLI::Range(0.0, 1.0));
    add("--repeat-penalty", sampler.repetition_penalty, "above 1: against repetition", "R")
        ->check(CLI::PositiveNumber);
    add("--seed", sampler.seed, "of the random draws", "N");
    command.add_option("--stop", options.stop, "text that ends the answer (repeatable)")
        ->allow_extra_args(false)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->type_name("TEXT")
        ->group(group);
}

constexpr const char* examples = R"(Examples:
  headkv run -m model.gguf -f report.txt -q "Who signed it?" --rows 128
  headkv run -m model.gguf -f report.txt -q "Who signed it?" --compare full,snapkv
  headkv run -m model.gguf -f report.txt --chat --kv-bytes 16M
  headkv run -m model.gguf -p "Once upon a time" --raw --method full -n 48 --json -)";

}  // namespace

void register_run(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<RunArguments>();
    CLI::App* command = app.add_subcommand("run", "answer a question about a document");
    add_model_options(*command, arguments->model);
    add_prompt_options(*command, arguments->prompt);
    add_method_options(*command, arguments->method);
    add_sampling_options(*command, arguments->generate);
    auto* compare =
        command
            ->add_option("--compare", arguments->compare,
                         "more methods for the same prompt: read once, answered by each; options "
                         "of one: full:kv-type=q8_0")
            ->delimiter(',')
            ->allow_extra_args(false)
            ->type_name("METHOD,...")
            ->group("Method");
    command->add_flag("--chat", arguments->chat, "several turns, one question a line on stdin")
        ->excludes(compare)
        ->excludes(command->get_option("--raw"));
    command->add_flag("--show-prompt", arguments->show_prompt,
                      "print the prompt with its template to stderr");
    command->add_option("--chunk", arguments->model.engine.chunk, "prompt tokens computed at once")
        ->capture_default_str()
        ->check(CLI::Range(1, 1 << 20))
        ->type_name("N")
        ->group("Model");
    command->add_option("--json", arguments->json, "figures and answer as JSON; - is stdout")
        ->type_name("FILE");
    command->footer(examples);
    command->callback([arguments, &status] {
        if (const auto done = run(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
