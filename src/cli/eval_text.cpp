// headkv eval ppl and kld: perplexity of a text, and divergence from the full cache on it.
#include <algorithm>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "calibrate/haystack.h"
#include "calibrate/run_log.h"
#include "cli/common.h"
#include "cli/eval_common.h"
#include "cli/options.h"
#include "eval/divergence.h"
#include "eval/perplexity.h"
#include "eval/report.h"

namespace headkv::cli {
namespace {

using nlohmann::json;

// What both have on the command line.
struct TextArguments {
    ModelArguments model;
    std::string text, out, json;
};

void add_text_options(CLI::App& command, TextArguments& arguments) {
    add_model_options(command, arguments.model);
    command.add_option("--text", arguments.text, "text file (UTF-8; - is stdin)")
        ->required()
        ->type_name("FILE");
    command
        .add_option("-o,--output", arguments.out,
                    "folder of answers.jsonl, results.json, results.csv and report.html")
        ->type_name("FOLDER");
    command.add_option("--json", arguments.json, "result as JSON to a file, or - for stdout")
        ->type_name("FILE");
}

Result<void> prepare_files(const TextArguments& arguments) {
    if (arguments.out.empty()) return check_output(arguments.json);
    return prepare_output(arguments.out, arguments.json);
}

// Where finished chunks are kept; empty without a folder.
std::filesystem::path log_of(const TextArguments& arguments) {
    return arguments.out.empty() ? std::filesystem::path()
                                 : std::filesystem::path(arguments.out) / "answers.jsonl";
}

json identity_of(const TextArguments& arguments, const char* task, const ModelInfo& info,
                 std::string_view text) {
    const bool fast = arguments.model.engine.precision == Precision::fast;
    return {{"task", task},
            {"fingerprint", info.fingerprint},
            {"text_hash", fmt::format("{:016x}", hash_text(text))},
            {"precision", fast ? "fast" : "exact"}};
}

// The files of the folder, where there is one, and --json.
Result<void> write_results(const TextArguments& arguments, const Report& report,
                           const json& results) {
    if (!arguments.out.empty()) {
        const auto file = std::filesystem::path(arguments.out) / "results.json";
        if (auto written = write_output(file.string(), text_of(results)); !written) return written;
        auto written = write_report(arguments.out, {&report, 1}, false);
        if (!written) return written;
    }
    return write_results_json(arguments.json, {&results, 1});
}

// --- ppl

struct PerplexityArguments {
    TextArguments text;
    std::int64_t chunk = 512;
};

// Chunks in their order, those of an earlier run first: an entry is {"chunk", "seconds",
// "log_probability"}.
class LoggedScorer {
public:
    LoggedScorer(Engine& engine, std::optional<RunLog> log)
        : engine_(engine), log_(std::move(log)) {}

    Result<std::vector<float>> operator()(std::span<const Token> chunk) {
        const std::size_t index = next_++;
        if (auto known = earlier(index, chunk.size() - 1)) return std::move(*known);
        const Stopwatch watch;
        auto scores = engine_.log_probabilities(
            chunk, [](std::int64_t, std::int64_t) { return !interrupted(); });
        const double took = watch.ms() / 1000;
        seconds_ += took;
        if (!scores || !log_) return scores;
        auto written =
            log_->append({{"chunk", index}, {"seconds", took}, {"log_probability", *scores}});
        if (!written) return tl::unexpected(written.error());
        return scores;
    }
    double seconds() const { return seconds_; }  // of all chunks, whichever run read them

private:
    std::optional<std::vector<float>> earlier(std::size_t index, std::size_t size) {
        if (!log_ || index >= log_->entries().size()) return std::nullopt;
        try {
            const json& entry = log_->entries()[index];
            auto scores = entry.at("log_probability").get<std::vector<float>>();
            const double took = entry.at("seconds");
            if (entry.at("chunk") != index || scores.size() != size) return std::nullopt;
            seconds_ += took;
            return scores;
        } catch (const json::exception&) {
            return std::nullopt;
        }
    }

    Engine& engine_;
    std::optional<RunLog> log_;
    std::size_t next_ = 0;
    double seconds_ = 0;
};

Result<void> run_perplexity(const PerplexityArguments& arguments) {
    if (auto writable = prepare_files(arguments.text); !writable) return writable;
    auto text = read_document(arguments.text.text);
    if (!text) return tl::unexpected(text.error());
    auto model = load_model(arguments.text.model);
    if (!model) return tl::unexpected(model.error());
    const ModelInfo& info = (*model)->info();
    if (arguments.chunk > info.context) {
        return bad_input("--chunk {}: the model's context is {} tokens", arguments.chunk,
                         info.context);
    }
    auto engine = Engine::create(*model, arguments.text.model.engine);
    if (!engine) return tl::unexpected(engine.error());
    const Tokenizer& tokenizer = (*model)->tokenizer();
    const std::vector<Token> tokens = tokenizer.encode(*text);

    ReportHead head = report_head("ppl", info, {});
    head.metric = "perplexity";
    head.flags = identity_of(arguments.text, "ppl", info, *text);
    head.flags["chunk"] = arguments.chunk;
    std::optional<RunLog> log;
    if (const auto file = log_of(arguments.text); !file.empty()) {
        auto opened = RunLog::open(file, head.flags);
        if (!opened) return tl::unexpected(opened.error());
        note_start(opened->start(), file);
        log = std::move(*opened);
    }

    catch_interrupts();
    ProgressBar bar("perplexity");
    const auto chunks = static_cast<double>(tokens.size()) / static_cast<double>(arguments.chunk);
    double done = 0;
    LoggedScorer logged(**engine, std::move(log));
    const Scorer scorer = [&](std::span<const Token> chunk) {
        bar.update(done++, chunks);
        return logged(chunk);
    };
    auto result = perplexity(tokens, arguments.chunk, added_bos(tokenizer), scorer);
    bar.clear();
    if (!result) return tl::unexpected(result.error());

    if (arguments.text.json != "-") {
        auto shown = print(fmt::format(
            "perplexity {:.4f} +- {:.4f} over {} tokens (second halves of {} chunks of {}), {}\n",
            result->perplexity, result->standard_error, result->tokens, result->chunks,
            arguments.chunk, human_ms(logged.seconds() * 1000)));
        if (!shown) return shown;
    }
    Report report = make_report(std::move(head), *result);
    report.seconds = logged.seconds();
    json results = report_json(report);
    results.update({{"perplexity", result->perplexity},
                    {"tokens", result->tokens},
                    {"standard_error", result->standard_error},
                    {"chunks", result->chunks},
                    {"chunk", arguments.chunk}});
    return write_results(arguments.text, report, results);
}

void register_perplexity(CLI::App& eval, Status& status) {
    auto arguments = std::make_shared<PerplexityArguments>();
    CLI::App& command = *eval.add_subcommand("ppl", "perplexity of a text, full cache");
    add_text_options(command, arguments->text);
    command
        .add_option("--chunk", arguments->chunk, "tokens read at a time; the second half counts")
        ->capture_default_str()
        ->type_name("N");
    command.callback([arguments, &status] {
        if (auto done = run_perplexity(*arguments); !done) status.code = report(done.error());
    });
}

// --- kld

struct DivergenceArguments {
    TextArguments text;
    MethodArguments method;
    std::vector<std::string> methods = {"snapkv", "headkv-r2"};
    std::string baseline;
    DivergenceSettings settings;
};

// What a row has under other names than the tasks that are scored.
json to_json(const DivergenceRow& row) {
    return {{"same_best", row.same_best.value}, {"same_best_interval", interval(row.same_best)}};
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
            human_bytes(row.kv_bytes), 100 * row.kv_bytes / row.kv_bytes_full);
    }
    return text;
}

Result<void> run_divergence_command(const DivergenceArguments& arguments) {
    if (auto writable = prepare_files(arguments.text); !writable) return writable;
    auto text = read_document(arguments.text.text);
    if (!text) return tl::unexpected(text.error());
    auto model = load_model(arguments.text.model);
    if (!model) return tl::unexpected(model.error());
    const ModelInfo& info = (*model)->info();
    const auto configs = configurations(arguments.method, arguments.methods, info);
    if (!configs) return tl::unexpected(configs.error());
    ReportHead head = report_head("kld", info, *configs);
    if (auto good = check_baseline(arguments.baseline, head.configs); !good) return good;
    auto engine = Engine::create(*model, arguments.text.model.engine);
    if (!engine) return tl::unexpected(engine.error());
    const auto tokens = (*model)->tokenizer().encode(*text);

    head.metric = "same best token";
    head.baseline = arguments.baseline;
    head.seed = arguments.settings.seed;
    head.query_aware = false;  // what is predicted was not there when the methods chose
    head.flags = identity_of(arguments.text, "kld", info, *text);
    head.flags["prefix"] = arguments.settings.prefix;
    head.flags["tokens"] = arguments.settings.tokens;
    head.flags["methods"] = describe(*configs);

    catch_interrupts();
    ProgressBar bar("kld");
    const DivergenceLog log{log_of(arguments.text), head.flags};
    const auto run =
        run_divergence(**engine, tokens, *configs, arguments.settings, bar.callback_of_run(), log);
    bar.clear();
    if (!run) return tl::unexpected(run.error());
    if (!log.file.empty()) note_start(run->start, log.file);
    const auto rows = summarize(run->results, arguments.settings.seed);
    const Report report = make_report(std::move(head), run->results);
    if (arguments.text.json != "-") {
        auto shown = print(fmt::format(
            "{}: {} predictions, each behind a prefix of {} tokens that was compressed, {}\n{}",
            model_title(info), rows.front().tokens, arguments.settings.prefix,
            human_ms(report.seconds * 1000), table(rows)));
        if (!shown) return shown;
    }
    json results = report_json(report);
    for (std::size_t i = 0; i < rows.size(); ++i) results["results"][i].update(to_json(rows[i]));
    results.update({{"prefix", arguments.settings.prefix},
                    {"tokens", arguments.settings.tokens},
                    {"methods", describe(*configs)}});
    return write_results(arguments.text, report, results);
}

void register_divergence(CLI::App& eval, Status& status) {
    auto arguments = std::make_shared<DivergenceArguments>();
    CLI::App& command = *eval.add_subcommand(
        "kld", "how far methods move the next-token distribution from the full cache's");
    add_text_options(command, arguments->text);
    add_comparison_options(command, arguments->methods, arguments->method);
    command
        .add_option("--baseline", arguments->baseline,
                    "one of --methods: differences from it at the same budget, too")
        ->type_name("NAME");
    command.add_option("--prefix", arguments->settings.prefix, "tokens read and compressed")
        ->capture_default_str();
    command.add_option("--tokens", arguments->settings.tokens, "tokens predicted behind them")
        ->capture_default_str();
    command.add_option("--chunks", arguments->settings.chunks, "most chunks, 0: the whole text")
        ->check(CLI::NonNegativeNumber);
    command.add_option("--seed", arguments->settings.seed, "of the intervals")
        ->capture_default_str();
    command.callback([arguments, &status] {
        if (auto done = run_divergence_command(*arguments); !done) {
            status.code = report(done.error());
        }
    });
}

}  // namespace

void register_eval_text(CLI::App& eval, Status& status) {
    register_perplexity(eval, status);
    register_divergence(eval, status);
}

}  // namespace headkv::cli
