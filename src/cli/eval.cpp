// headkv eval: perplexity of a text, divergence from the full cache, and the needle test.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/common.h"
#include "cli/eval_common.h"
#include "cli/eval_tasks.h"
#include "cli/options.h"
#include "cli/probe_template.h"
#include "eval/divergence.h"
#include "eval/niah.h"
#include "eval/perplexity.h"

namespace headkv::cli {
namespace {

// --- ppl

struct PerplexityArguments {
    ModelArguments model;
    std::string text, json;
    std::int64_t chunk = 512;
};

Result<void> run_perplexity(const PerplexityArguments& arguments) {
    if (auto writable = check_output(arguments.json); !writable) return writable;
    auto text = read_document(arguments.text);
    if (!text) return tl::unexpected(text.error());
    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    if (arguments.chunk > (*model)->info().context) {
        return bad_input("--chunk {}: the model's context is {} tokens", arguments.chunk,
                         (*model)->info().context);
    }
    auto engine = Engine::create(*model, arguments.model.engine);
    if (!engine) return tl::unexpected(engine.error());
    const Tokenizer& tokenizer = (*model)->tokenizer();
    const std::vector<Token> tokens = tokenizer.encode(*text);

    catch_interrupts();
    ProgressBar bar("perplexity");
    const Stopwatch watch;
    const auto chunks = static_cast<double>(tokens.size()) / static_cast<double>(arguments.chunk);
    double done = 0;
    const Scorer scorer = [&](std::span<const Token> chunk) {
        bar.update(done++, chunks);
        return (*engine)->log_probabilities(
            chunk, [](std::int64_t, std::int64_t) { return !interrupted(); });
    };
    auto result = perplexity(tokens, arguments.chunk, added_bos(tokenizer), scorer);
    bar.clear();
    if (!result) return tl::unexpected(result.error());

    if (arguments.json != "-") {
        auto shown = print(fmt::format(
            "perplexity {:.4f} +- {:.4f} over {} tokens (second halves of {} chunks of {}), {}\n",
            result->perplexity, result->standard_error, result->tokens, result->chunks,
            arguments.chunk, human_ms(watch.ms())));
        if (!shown) return shown;
    }
    if (arguments.json.empty()) return {};
    const nlohmann::json json = {{"perplexity", result->perplexity},
                                 {"tokens", result->tokens},
                                 {"standard_error", result->standard_error},
                                 {"chunks", result->chunks},
                                 {"chunk", arguments.chunk},
                                 {"model", model_title((*model)->info())},
                                 {"seconds", watch.ms() / 1000}};
    return write_output(arguments.json, json.dump() + "\n");
}

void register_perplexity(CLI::App& eval, Status& status) {
    auto arguments = std::make_shared<PerplexityArguments>();
    CLI::App& command = *eval.add_subcommand("ppl", "perplexity of a text, full cache");
    add_model_options(command, arguments->model);
    command.add_option("--text", arguments->text, "text file (UTF-8; - is stdin)")
        ->required()
        ->type_name("FILE");
    command
        .add_option("--chunk", arguments->chunk, "tokens read at a time; the second half counts")
        ->capture_default_str()
        ->type_name("N");
    command.add_option("--json", arguments->json, "result as JSON to a file, or - for stdout")
        ->type_name("FILE");
    command.callback([arguments, &status] {
        if (auto done = run_perplexity(*arguments); !done) status.code = report(done.error());
    });
}

// --- kld

struct DivergenceArguments {
    ModelArguments model;
    MethodArguments method;
    std::vector<std::string> methods = {"snapkv", "headkv-r2"};
    std::string text, json;
    DivergenceSettings settings;
};

nlohmann::json to_json(const DivergenceRow& row) {
    return {{"task", "kld"},
            {"method", row.method},
            {"rows", row.rows},
            {"n", row.tokens},
            {"divergence", row.divergence.value},
            {"divergence_interval", interval(row.divergence)},
            {"divergence_95", row.divergence_95},
            {"same_best", row.same_best.value},
            {"same_best_interval", interval(row.same_best)},
            {"perplexity", row.perplexity},
            {"dlogprob", row.dlog_probability.value},
            {"dlogprob_interval", interval(row.dlog_probability)},
            {"kv_bytes", row.kv_bytes},
            {"kv_bytes_full", row.kv_bytes_full}};
}

std::string table(std::span<const DivergenceRow> rows) {
    std::size_t width = 14;
    for (const DivergenceRow& row : rows) width = std::max(width, row.method.size());
    std::string text = fmt::format("{:<{}} {:>6} {:>24} {:>10} {:>9} {:>10} {:>23} {:>9} {:>6}\n",
                                   "method", width, "rows", "KL, nats/token (95 %)", "95 % below",
                                   "same best", "perplexity", "dlogp/token (95 %)", "KV", "share");
    for (const DivergenceRow& row : rows) {
        text += fmt::format(
            "{:<{}} {:>6} {:>24} {:>10.4f} {:>8.1f}% {:>10.3f} {:>23} {:>9} {:>5.1f}%\n",
            row.method, width, row.rows > 0 ? fmt::format("{:g}", row.rows) : "all",
            fmt::format("{:.4f} ({:.4f}..{:.4f})", row.divergence.value, row.divergence.low,
                        row.divergence.high),
            row.divergence_95, 100 * row.same_best.value, row.perplexity,
            fmt::format("{:+.3f} ({:+.3f}..{:+.3f})", row.dlog_probability.value,
                        row.dlog_probability.low, row.dlog_probability.high),
            human_bytes(static_cast<double>(row.kv_bytes)),
            100 * static_cast<double>(row.kv_bytes) / static_cast<double>(row.kv_bytes_full));
    }
    return text;
}

Result<void> run_divergence_command(const DivergenceArguments& arguments) {
    if (auto writable = check_output(arguments.json); !writable) return writable;
    auto text = read_document(arguments.text);
    if (!text) return tl::unexpected(text.error());
    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    const ModelInfo& info = (*model)->info();
    const auto configs = configurations(arguments.method, arguments.methods, info);
    if (!configs) return tl::unexpected(configs.error());
    auto engine = Engine::create(*model, arguments.model.engine);
    if (!engine) return tl::unexpected(engine.error());
    const auto tokens = (*model)->tokenizer().encode(*text);

    catch_interrupts();
    ProgressBar bar("kld");
    const Stopwatch watch;
    const auto rows = run_divergence(
        **engine, tokens, *configs, arguments.settings, [&](std::int64_t done, std::int64_t total) {
            bar.update(static_cast<double>(done), static_cast<double>(total));
            return !interrupted();
        });
    bar.clear();
    if (!rows) return tl::unexpected(rows.error());
    if (arguments.json != "-") {
        auto shown = print(fmt::format(
            "{}: {} predictions, each behind a prefix of {} tokens that was compressed, {}\n{}",
            model_title(info), rows->front().tokens, arguments.settings.prefix,
            human_ms(watch.ms()), table(*rows)));
        if (!shown) return shown;
    }
    if (arguments.json.empty()) return {};
    nlohmann::json lines = nlohmann::json::array();
    for (const DivergenceRow& row : *rows) {
        add_types(lines.emplace_back(to_json(row)), *configs, row.method);
    }
    const nlohmann::json json = {{"format", "headkv-eval/1"},
                                 {"model", model_title(info)},
                                 {"fingerprint", info.fingerprint},
                                 {"prefix", arguments.settings.prefix},
                                 {"tokens", arguments.settings.tokens},
                                 {"seed", arguments.settings.seed},
                                 {"version", version()},
                                 {"methods", describe(*configs)},
                                 {"results", std::move(lines)}};
    return write_output(arguments.json, json.dump(2) + "\n");
}

void register_divergence(CLI::App& eval, Status& status) {
    auto arguments = std::make_shared<DivergenceArguments>();
    CLI::App& command = *eval.add_subcommand(
        "kld", "how far methods move the next-token distribution from the full cache's");
    add_model_options(command, arguments->model);
    command.add_option("--text", arguments->text, "text file (UTF-8; - is stdin)")
        ->required()
        ->type_name("FILE");
    add_comparison_options(command, arguments->methods, arguments->method);
    command.add_option("--prefix", arguments->settings.prefix, "tokens read and compressed")
        ->capture_default_str();
    command.add_option("--tokens", arguments->settings.tokens, "tokens predicted behind them")
        ->capture_default_str();
    command.add_option("--chunks", arguments->settings.chunks, "most chunks, 0: the whole text")
        ->check(CLI::NonNegativeNumber);
    command.add_option("--seed", arguments->settings.seed, "of the intervals")
        ->capture_default_str();
    command.add_option("--json", arguments->json, "result as JSON to a file, or - for stdout")
        ->type_name("FILE");
    command.callback([arguments, &status] {
        if (auto done = run_divergence_command(*arguments); !done) {
            status.code = report(done.error());
        }
    });
}

// --- niah

struct NiahArguments {
    ModelArguments model;
    MethodArguments method;
    PromptArguments prompt;  // only raw and chat_template are used
    std::vector<std::string> methods = {"snapkv", "headkv-r2"};
    std::string out, haystack, needles, json, baseline;
    NiahSettings settings;
};

nlohmann::json identity_of(const NiahArguments& arguments, const ModelInfo& info,
                           const Haystack& haystack, std::span<const Needle> needles,
                           std::span<const ConfigUnderTest> configs) {
    const NiahSettings& s = arguments.settings;
    std::string all;
    for (const Needle& needle : needles) {
        all += needle.needle + '\n' + needle.question + '\n' + needle.answer + '\n' + needle.key;
    }
    return {{"task", "niah"},
            {"fingerprint", info.fingerprint},
            {"haystack", haystack.name()},
            {"needles", needles.size()},
            {"needles_hash", fmt::format("{:016x}", hash_text(all))},
            {"max_tokens", s.max_tokens},
            {"seed", s.seed},
            {"chat_template", s.chat ? std::string(chat_template_name(*s.chat)) : "raw"},
            {"methods", describe(configs)}};
}

nlohmann::json to_json(const NiahRow& row) {
    return {{"task", "niah"},
            {"method", row.method},
            {"rows", row.rows},
            {"n", row.n},
            {"score", row.score.value},
            {"interval", interval(row.score)},
            {"full_right", row.full_right},
            {"kept_right", row.kept_right},
            {"kept_share", row.kept.value},
            {"kept_interval", interval(row.kept)},
            {"dlogprob", row.dlog_probability.value},
            {"dlogprob_interval", interval(row.dlog_probability)},
            {"dlogprob_key", row.dlog_probability_key.value},
            {"dlogprob_key_interval", interval(row.dlog_probability_key)},
            {"kv_bytes", row.kv_bytes},
            {"kv_bytes_full", row.kv_bytes_full},
            {"rows_kept_mean", row.rows_kept}};
}

std::string table(std::span<const NiahRow> rows) {
    std::size_t width = 14;
    for (const NiahRow& row : rows) width = std::max(width, row.method.size());
    std::string text = fmt::format("{:<{}} {:>6} {:>6} {:>16} {:>17} {:>22} {:>10} {:>9} {:>6}\n",
                                   "method", width, "rows", "score", "95 %", "of full's right",
                                   "dlogp/token (95 %)", "dlogp key", "KV", "share");
    for (const NiahRow& row : rows) {
        text += fmt::format(
            "{:<{}} {:>6} {:>6.2f} {:>16} {:>17} {:>22} {:>10.3f} {:>9} {:>5.1f}%\n", row.method,
            width, row.rows > 0 ? fmt::format("{:g}", row.rows) : "all", row.score.value,
            fmt::format("{:.2f}..{:.2f}", row.score.low, row.score.high),
            fmt::format("{}/{}", row.kept_right, row.full_right),
            fmt::format("{:.3f} ({:.3f}..{:.3f})", row.dlog_probability.value,
                        row.dlog_probability.low, row.dlog_probability.high),
            row.dlog_probability_key.value, human_bytes(row.kv_bytes),
            100 * row.kv_bytes / row.kv_bytes_full);
    }
    return text;
}

Result<std::vector<ProbeSpec>> chosen_probes(const NiahArguments& arguments, std::int64_t needles) {
    const NiahSettings& settings = arguments.settings;
    for (const std::int64_t length : settings.lengths) {
        if (length < 0) return bad_input("--lengths {}: must be 0 or more", length);
    }
    for (const double depth : settings.depths) {
        if (!(depth >= 0 && depth <= 100)) {
            return bad_input("--depths {:g}: must be 0 to 100", depth);
        }
    }
    auto probes = plan_probes(settings.lengths, settings.depths, needles, settings.seed);
    if (settings.limit > 0 && probes.size() > static_cast<std::size_t>(settings.limit)) {
        probes.resize(static_cast<std::size_t>(settings.limit));
    }
    return probes;
}

Result<void> write_niah(const NiahArguments& arguments, const ModelInfo& info,
                        const nlohmann::json& flags, std::span<const ConfigUnderTest> configs,
                        const NiahRun& run) {
    const std::vector<NiahRow> rows = summarize(run.results, arguments.settings.seed);
    double seconds = 0;
    for (const NiahProbe& probe : run.results) seconds += probe.seconds;
    ReportHead head = report_head("niah", info, configs);
    head.metric = "contains";
    head.baseline = arguments.baseline;
    head.seed = arguments.settings.seed;
    head.flags = flags;
    const Report report = make_report(std::move(head), run.results);
    // The fields that all tasks have, and those of needles.
    nlohmann::json json = report_json(report);
    json["lengths"] = arguments.settings.lengths;
    json["depths"] = arguments.settings.depths;
    for (std::size_t i = 0; i < rows.size(); ++i) {
        json["results"][i].update(to_json(rows[i]));
        json["results"][i]["seconds"] = seconds;  // of the whole run: all methods share prefills
    }
    const std::string text = json.dump(2) + "\n";
    const auto file = std::filesystem::path(arguments.out) / "results.json";
    if (auto written = write_output(file.string(), text); !written) return written;
    if (auto written = write_report(arguments.out, {&report, 1}, false); !written) return written;
    if (arguments.json != "-") {
        auto shown = print(fmt::format("{}: {} probes, {}\n{}", model_title(info),
                                       run.results.size(), human_ms(seconds * 1000), table(rows)));
        if (!shown) return shown;
    }
    return arguments.json.empty() ? Result<void>() : write_output(arguments.json, text);
}

Result<void> run_niah_command(NiahArguments& arguments) {
    auto needles = arguments.needles.empty()
                       ? Result<std::vector<Needle>>(std::vector<Needle>(
                             evaluation_needles().begin(), evaluation_needles().end()))
                       : load_needles(arguments.needles);
    if (!needles) return tl::unexpected(needles.error());
    // Another seed than calibration's built-in prose, so that the two never share a text.
    auto haystack = arguments.haystack.empty()
                        ? Result<Haystack>(Haystack::builtin(1000000 + arguments.settings.seed))
                        : Haystack::folder(arguments.haystack);
    if (!haystack) return tl::unexpected(haystack.error());
    auto probes = chosen_probes(arguments, static_cast<std::int64_t>(needles->size()));
    if (!probes) return tl::unexpected(probes.error());
    if (auto ready = prepare_output(arguments.out, arguments.json); !ready) return ready;

    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    const ModelInfo& info = (*model)->info();
    auto chat = probe_template(arguments.prompt, **model);
    if (!chat) return tl::unexpected(chat.error());
    arguments.settings.chat = *chat;
    const auto configs = configurations(arguments.method, arguments.methods, info);
    if (!configs) return tl::unexpected(configs.error());
    const auto named = report_head("niah", info, *configs);
    if (auto good = check_baseline(arguments.baseline, named.configs); !good) return good;
    auto engine = Engine::create(*model, arguments.model.engine);
    if (!engine) return tl::unexpected(engine.error());

    catch_interrupts();
    ProgressBar bar("niah");
    const Progress stop = [](std::int64_t, std::int64_t) { return !interrupted(); };
    const Progress draw = bar.callback_of_run();
    const NiahRunner runner = [&](const ProbeSpec& spec) {
        return run_niah_probe(**engine, *haystack,
                              (*needles)[static_cast<std::size_t>(spec.needle)], spec, *configs,
                              arguments.settings, stop);
    };
    const nlohmann::json identity = identity_of(arguments, info, *haystack, *needles, *configs);
    const auto log = std::filesystem::path(arguments.out) / "answers.jsonl";
    auto run = run_niah(*probes, runner, log, identity, draw);
    bar.clear();
    if (!run) return tl::unexpected(run.error());
    note_start(run->start, log);
    return write_niah(arguments, info, identity, *configs, *run);
}

void register_niah(CLI::App& eval, Status& status) {
    auto arguments = std::make_shared<NiahArguments>();
    CLI::App& command =
        *eval.add_subcommand("niah", "needles in a long text: which methods still find them");
    add_model_options(command, arguments->model);
    add_comparison_options(command, arguments->methods, arguments->method);
    command
        .add_option("-o,--output", arguments->out,
                    "folder of answers.jsonl, results.json, results.csv and report.html")
        ->required()
        ->type_name("FOLDER");
    command.add_option("--lengths", arguments->settings.lengths, "tokens of the documents")
        ->delimiter(',')
        ->type_name("N,...");
    command.add_option("--depths", arguments->settings.depths, "where the needle stands, percent")
        ->delimiter(',')
        ->type_name("P,...");
    command
        .add_option("--haystack", arguments->haystack,
                    "folder of .txt files (default: built-in prose)")
        ->type_name("FOLDER");
    command
        .add_option("--needles", arguments->needles,
                    "JSON lines of needle, question, real_needle, answer, key")
        ->type_name("FILE");
    command
        .add_option("--baseline", arguments->baseline,
                    "one of --methods: differences from it at the same budget, too")
        ->type_name("NAME");
    command.add_option("--limit", arguments->settings.limit, "most probes, 0: all")
        ->check(CLI::NonNegativeNumber);
    command.add_option("-n,--max-tokens", arguments->settings.max_tokens, "of an answer")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    command.add_option("--seed", arguments->settings.seed, "of prose, order and intervals")
        ->capture_default_str();
    command.add_flag("--raw", arguments->prompt.raw, "no chat template");
    command.add_option("--chat-template", arguments->prompt.chat_template,
                       "name of a chat template, where the model's own is not recognised");
    command.add_option("--json", arguments->json, "results as JSON to a file, or - for stdout")
        ->type_name("FILE");
    command.callback([arguments, &status] {
        if (auto done = run_niah_command(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace

void register_eval(CLI::App& app, Status& status) {
    std::string about = "benchmarks: ppl, kld, niah";
    for (const EvalTask& task : eval_tasks()) about += fmt::format(", {}", task.name);
    CLI::App& eval = *app.add_subcommand("eval", about);
    eval.require_subcommand(1);
    register_perplexity(eval, status);
    register_divergence(eval, status);
    register_niah(eval, status);
    register_eval_tasks(eval, status);
    register_eval_merge(eval, status);
}

}  // namespace headkv::cli
