// headkv eval: its commands, and the needle test.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/common.h"
#include "cli/eval_common.h"
#include "cli/eval_tasks.h"
#include "cli/options.h"
#include "cli/probe_template.h"
#include "eval/niah.h"
#include "eval/sample.h"

namespace headkv::cli {
namespace {

struct NiahArguments {
    ModelArguments model;
    MethodArguments method;
    PromptArguments prompt;  // of add_template_options()
    std::vector<std::string> methods = {"snapkv", "headkv-r2"};
    std::string out, haystack, needles, json, baseline, shard = "1/1";
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
    nlohmann::json identity = {
        {"task", "niah"},
        {"fingerprint", info.fingerprint},
        {"haystack", haystack.name()},
        {"needles", needles.size()},
        {"needles_hash", fmt::format("{:016x}", hash_text(all))},
        {"max_tokens", s.max_tokens},
        {"seed", s.seed},
        {"chat_template", s.chat ? std::string(chat_template_name(*s.chat)) : "raw"},
        {"methods", describe(configs)}};
    add_parts(identity, arguments.prompt);
    return identity;
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

// Other shards share out the same probes only of the same lengths, depths and limit.
nlohmann::json shard_flags(const NiahArguments& arguments, const Shard& shard,
                           std::span<const ProbeSpec> probes) {
    std::string all;
    for (const ProbeSpec& probe : probes) all += niah_probe_id(probe) + '\n';
    return {{"index", shard.index},
            {"of", shard.of},
            {"examples", probes.size()},
            {"examples_hash", fmt::format("{:016x}", hash_text(all))},
            {"sample", 0},
            {"limit", arguments.settings.limit}};
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
    const auto shard = parse_shard(arguments.shard);
    if (!shard) return tl::unexpected(shard.error());
    const nlohmann::json part = shard_flags(arguments, *shard, *probes);
    if (!shard->whole()) *probes = shard_of(std::move(*probes), *shard);
    if (probes->empty()) {
        return bad_input("--shard {}: there are fewer probes than shards", arguments.shard);
    }
    if (auto ready = prepare_output(arguments.out, arguments.json); !ready) return ready;

    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    const ModelInfo& info = (*model)->info();
    auto chat = probe_template(arguments.prompt, **model);
    if (!chat) return tl::unexpected(chat.error());
    arguments.settings.chat = *chat;
    arguments.settings.system = arguments.prompt.system;
    arguments.settings.keep_system = arguments.prompt.keep.system;
    const auto configs = configurations(arguments.method, arguments.methods, info);
    if (!configs) return tl::unexpected(configs.error());
    if (auto good = check_parts(arguments.prompt, *chat, *configs, info); !good) return good;
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
    nlohmann::json identity = identity_of(arguments, info, *haystack, *needles, *configs);
    if (!shard->whole()) identity["shard"] = part;
    const auto log = std::filesystem::path(arguments.out) / "answers.jsonl";
    auto run = run_niah(*probes, runner, log, identity, draw);
    bar.clear();
    if (!run) return tl::unexpected(run.error());
    note_start(run->start, log);
    ReportHead head = report_head("niah", info, *configs);
    head.metric = "contains";
    head.baseline = arguments.baseline;
    head.seed = arguments.settings.seed;
    head.flags = std::move(identity);
    nlohmann::json json;
    const auto report = write_niah(arguments.out, std::move(head), run->results, json);
    if (!report) return tl::unexpected(report.error());
    if (arguments.json != "-") {
        auto shown = print(fmt::format("{}: {} probes, {}\n{}", model_title(info),
                                       run->results.size(), human_ms(report->seconds * 1000),
                                       table(summarize(run->results, arguments.settings.seed))));
        if (!shown) return shown;
    }
    return write_results_json(arguments.json, {&json, 1});
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
    command
        .add_option("--shard", arguments->shard,
                    "this part of the probes: 1/4 is the first of four (see `eval merge`)")
        ->type_name("I/N");
    command.add_option("-n,--max-tokens", arguments->settings.max_tokens, "of an answer")
        ->capture_default_str()
        ->check(CLI::PositiveNumber);
    command.add_option("--seed", arguments->settings.seed, "of prose, order and intervals")
        ->capture_default_str();
    add_template_options(command, arguments->prompt);
    command.add_option("--json", arguments->json, "results as JSON to a file, or - for stdout")
        ->type_name("FILE");
    command.callback([arguments, &status] {
        if (auto done = run_niah_command(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace

Result<Report> write_niah(const std::string& folder, ReportHead head,
                          std::span<const NiahProbe> probes, nlohmann::json& json) {
    Report report = make_report(std::move(head), probes);
    // The fields that all tasks have, and those of needles.
    json = report_json(report);
    if (!report.maps.empty()) {
        json["lengths"] = report.maps[0].lengths;
        json["depths"] = report.maps[0].depths;
    }
    const std::vector<NiahRow> rows = summarize(probes, report.head.seed);
    for (std::size_t i = 0; i < rows.size(); ++i) {
        json["results"][i].update(to_json(rows[i]));
        // Of the whole run: all methods share prefills.
        json["results"][i]["seconds"] = report.seconds;
    }
    const auto file = std::filesystem::path(folder) / "results.json";
    if (auto written = write_output(file.string(), text_of(json)); !written) {
        return tl::unexpected(written.error());
    }
    if (auto written = write_report(folder, {&report, 1}, false); !written) {
        return tl::unexpected(written.error());
    }
    return report;
}

void register_eval(CLI::App& app, Status& status) {
    std::string about = "benchmarks: ppl, kld, niah";
    for (const EvalTask& task : eval_tasks()) about += fmt::format(", {}", task.name);
    CLI::App& eval = *app.add_subcommand("eval", about);
    eval.require_subcommand(1);
    register_eval_text(eval, status);
    register_niah(eval, status);
    register_eval_tasks(eval, status);
    register_eval_merge(eval, status);
    register_eval_curves(eval, status);
}

}  // namespace headkv::cli
