// headkv calibrate: measures head scores of a model.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "calibrate/calibration.h"
#include "calibrate/forced_probes.h"
#include "calibrate/random.h"
#include "calibrate/text_probes.h"
#include "cli/calibrate_share.h"
#include "cli/common.h"
#include "cli/options.h"
#include "cli/probe_template.h"
#include "cli/scores_text.h"
#include "eval/sample.h"

namespace headkv::cli {
namespace {

struct Arguments {
    ModelArguments model;
    PromptArguments prompt;  // only raw and chat_template are used
    std::string kind = "r2";
    std::string out, haystack, needles, data, json, shard = "1/1";
    std::vector<std::string> families;
    CalibrationSettings settings;
    ShareSettings share;  // of --kind share, which measures layers
    bool lengths_given = false, depths_given = false, limit_given = false;
};

// Enough for standard errors well below the scores, and a small model is done in minutes on two
// cores. Who gives needles, lengths or depths gets the whole grid.
constexpr std::int64_t default_probes = 140;
// Lists of examples pass more often, and interventions take as long as several probes.
constexpr std::int64_t default_fewer_probes = 72;
// Every token of a text is looked at, so few texts tell as much.
constexpr std::int64_t default_texts = 24;

Result<std::vector<Needle>> chosen_needles(const Arguments& arguments) {
    if (!arguments.needles.empty()) return load_needles(arguments.needles);
    auto needles = family_needles(arguments.settings.kind != ScoreKind::r);
    if (arguments.families.empty()) return needles;
    std::string known;
    for (const Needle& needle : needles) {
        if (known.ends_with(needle.family)) continue;
        known += (known.empty() ? "" : ", ") + needle.family;
    }
    for (const std::string& family : arguments.families) {
        if (std::none_of(needles.begin(), needles.end(),
                         [&](const Needle& needle) { return needle.family == family; })) {
            return bad_input("--families {}: unknown; of kind {} there are {}", family,
                             arguments.kind, known);
        }
    }
    std::erase_if(needles, [&](const Needle& needle) {
        return std::find(arguments.families.begin(), arguments.families.end(), needle.family) ==
               arguments.families.end();
    });
    return needles;
}

// Documents longer than the folder's text repeat it; the user should know.
void note_repeated(const Haystack& haystack, const Tokenizer& tokenizer, std::int64_t longest) {
    // No tokenizer needs more than a token a byte, and none here has 64 bytes a token.
    if (haystack.bytes() == 0 || haystack.bytes() / 64 > static_cast<std::size_t>(longest)) return;
    const auto tokens =
        static_cast<std::int64_t>(tokenizer.encode(haystack.whole(), false, false).size());
    if (tokens >= longest) return;
    note(fmt::format("the haystack has {} tokens, the longest document {}: it is repeated", tokens,
                     longest));
}

Result<void> check(Arguments& arguments) {
    CalibrationSettings& settings = arguments.settings;
    const auto kind = score_kind_by_name(arguments.kind);
    if (!kind) {
        return bad_input(
            "--kind {}: unknown; there are r, r2, causal, task, icl, baklava and share",
            arguments.kind);
    }
    settings.kind = *kind;
    for (const std::int64_t length : settings.lengths) {
        if (length < 0) return bad_input("--lengths {}: must be 0 or more", length);
    }
    for (const double depth : settings.depths) {
        if (!(depth >= 0 && depth <= 100))
            return bad_input("--depths {:g}: must be 0 to 100", depth);
    }
    if (settings.kind == ScoreKind::task && arguments.data.empty()) {
        return bad_input(
            "--kind task measures on your own task: name its examples with --data FILE");
    }
    if (settings.kind != ScoreKind::task && !arguments.data.empty()) {
        return bad_input("--data FILE is for --kind task, this is --kind {}", arguments.kind);
    }
    if (settings.kind == ScoreKind::causal) {
        if (auto rows = check_causal(settings); !rows) return rows;
    }
    if (auto output = check_output(arguments.json); !output) return output;
    return check_output(arguments.out);
}

// Default lengths that a small context cannot hold are left out; given ones are an error later.
void fit_lengths(Arguments& arguments, std::int64_t context) {
    constexpr std::int64_t rest = 200;  // question, template and answer
    if (arguments.lengths_given) return;
    auto& lengths = arguments.settings.lengths;
    std::erase_if(lengths, [&](std::int64_t length) { return length + rest > context; });
    if (lengths.empty()) lengths = {std::max<std::int64_t>(0, context - rest)};
}

// The probes of a kind, ready to run.
struct Work {
    std::vector<CalibrationProbe> probes;
    ProbeRunner runner;
    nlohmann::json settings;
    // What the runner looks at.
    std::vector<Needle> needles;
    std::vector<ProbeSpec> specs;
    std::optional<Haystack> haystack;
    std::vector<ForcedProbe> forced;
    std::vector<TextProbe> texts;

    // Leaves the probes of one of several runs that share them.
    void take(const Shard& shard) {
        std::vector<std::size_t> mine(probes.size());
        std::iota(mine.begin(), mine.end(), 0U);
        mine = shard_of(std::move(mine), shard);
        probes = shard_of(std::move(probes), shard);
        runner = [all = std::move(runner), mine = std::move(mine)](std::size_t probe) {
            return all(mine[probe]);
        };
    }
};

Result<Haystack> chosen_haystack(const Arguments& arguments) {
    return arguments.haystack.empty() ? Result<Haystack>(Haystack::builtin(arguments.settings.seed))
                                      : Haystack::folder(arguments.haystack);
}

// Fills `work`, which must not move afterwards.
Result<void> prepare_needles(const Arguments& arguments, Engine& engine, const Progress& stop,
                             Work& work) {
    const CalibrationSettings& settings = arguments.settings;
    auto needles = chosen_needles(arguments);
    if (!needles) return tl::unexpected(needles.error());
    work.needles = std::move(*needles);
    auto haystack = chosen_haystack(arguments);
    if (!haystack) return tl::unexpected(haystack.error());
    work.haystack = std::move(*haystack);
    note_repeated(*work.haystack, engine.model().tokenizer(),
                  *std::max_element(settings.lengths.begin(), settings.lengths.end()));

    std::vector<std::string> families;
    families.reserve(work.needles.size());
    for (const Needle& needle : work.needles) families.push_back(needle.family);
    work.specs =
        balanced(plan_probes(settings.lengths, settings.depths,
                             static_cast<std::int64_t>(work.needles.size()), settings.seed),
                 families);
    if (settings.limit > 0 && work.specs.size() > static_cast<std::size_t>(settings.limit)) {
        work.specs.resize(static_cast<std::size_t>(settings.limit));
    }
    work.probes = needle_probes(work.specs, work.needles);
    work.settings = settings_json(settings, *work.haystack, work.needles);
    const auto runner =
        settings.kind == ScoreKind::causal ? engine_causal_runner : engine_probe_runner;
    work.runner = runner(engine, *work.haystack, work.needles, work.specs, settings, stop);
    return {};
}

void use_forced(Engine& engine, const Progress& stop, Work& work) {
    for (const ForcedProbe& probe : work.forced) work.probes.push_back(probe.probe);
    work.runner = engine_forced_runner(engine, work.forced, stop);
}

Result<void> prepare_task(const Arguments& arguments, Engine& engine, const Progress& stop,
                          Work& work) {
    const CalibrationSettings& settings = arguments.settings;
    auto rows = load_task_rows(arguments.data);
    if (!rows) return tl::unexpected(rows.error());
    std::string all;
    for (const TaskLine& row : *rows) {
        all += row.context + '\n' + row.question + '\n' + row.answer + '\n';
    }
    Random(settings.seed).shuffle(*rows);
    if (settings.limit > 0 && rows->size() > static_cast<std::size_t>(settings.limit)) {
        rows->resize(static_cast<std::size_t>(settings.limit));
    }
    auto probes = task_probes(engine.model(), *rows, settings.chat);
    if (!probes) {
        return bad_input("{}: {}", arguments.data, probes.error().message);
    }
    work.forced = std::move(*probes);
    work.settings = settings_json(settings);
    work.settings.update({{"data", std::filesystem::path(arguments.data).filename().string()},
                          {"data_hash", fmt::format("{:016x}", hash_text(all))},
                          {"examples", rows->size()},
                          {"pass_metric", "the document makes the answer more likely"}});
    use_forced(engine, stop, work);
    return {};
}

Result<void> prepare_icl(const Arguments& arguments, Engine& engine, const Progress& stop,
                         Work& work) {
    const CalibrationSettings& settings = arguments.settings;
    const std::int64_t most = settings.limit > 0 ? settings.limit : default_fewer_probes;
    const std::int64_t a_round = 2 * std::ssize(settings.lengths);  // both families
    auto probes =
        icl_probes(engine.model(), settings.lengths, (most + a_round - 1) / a_round, settings.seed);
    if (!probes) return tl::unexpected(probes.error());
    work.forced = std::move(*probes);
    if (std::ssize(work.forced) > most) {
        work.forced.erase(work.forced.begin() + most, work.forced.end());
    }
    work.settings = settings_json(settings);
    work.settings.update({{"chat_template", "raw"},
                          {"lengths", settings.lengths},
                          {"pass_metric", "every token of the label is the model's own choice"}});
    use_forced(engine, stop, work);
    return {};
}

Result<void> prepare_texts(const Arguments& arguments, Engine& engine, const Progress& stop,
                           Work& work) {
    const CalibrationSettings& settings = arguments.settings;
    const auto haystack = chosen_haystack(arguments);
    if (!haystack) return tl::unexpected(haystack.error());
    auto probes = text_probes(engine.model(), *haystack, settings.lengths,
                              settings.limit > 0 ? settings.limit : default_texts);
    if (!probes) return tl::unexpected(probes.error());
    work.texts = std::move(*probes);
    for (const TextProbe& text : work.texts) work.probes.push_back(text.probe);
    work.settings = settings_json(settings);
    work.settings.update({{"chat_template", "raw"},
                          {"lengths", settings.lengths},
                          {"haystack", haystack->name()},
                          {"pass_metric", "every text counts"}});
    work.runner = engine_text_runner(engine, work.texts, stop);
    return {};
}

Result<void> prepare(const Arguments& arguments, Engine& engine, const Progress& stop, Work& work) {
    switch (arguments.settings.kind) {
        case ScoreKind::task:
            return prepare_task(arguments, engine, stop, work);
        case ScoreKind::icl:
            return prepare_icl(arguments, engine, stop, work);
        case ScoreKind::baklava:
            return prepare_texts(arguments, engine, stop, work);
        default:
            return prepare_needles(arguments, engine, stop, work);
    }
}

std::string summary(const CalibrationResult& result, const Arguments& arguments, double ms) {
    const HeadScores& scores = result.scores;
    std::vector<std::size_t> order(scores.mean.size());
    std::iota(order.begin(), order.end(), 0U);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return scores.mean[a] > scores.mean[b]; });
    const double sum = std::accumulate(scores.mean.begin(), scores.mean.end(), 0.0);
    double top_ten = 0;
    std::string names;
    const auto width = static_cast<std::size_t>(scores.shape.query_heads);
    for (std::size_t i = 0; i < std::min<std::size_t>(10, order.size()); ++i) {
        top_ten += scores.mean[order[i]];
        names += fmt::format("{}{}-{}", i == 0 ? "" : " ", order[i] / width, order[i] % width);
    }
    std::string text =
        fmt::format("{} of {} probes answered ({} from an earlier run), {}\n", scores.probes_passed,
                    scores.probes_tried, result.resumed, human_ms(ms));
    text += families_text(scores);
    text += reliability_text(scores);
    text += fmt::format("the ten highest query heads hold {:.0f} % of the scores: {}\n",
                        sum > 0 ? 100 * top_ten / sum : 0.0, names);
    return text + fmt::format("written to {}\n", arguments.out);
}

nlohmann::json summary_json(const CalibrationResult& result, const Arguments& arguments,
                            double ms) {
    const HeadScores& scores = result.scores;
    nlohmann::json json = {{"kind", scores.kind},
                           {"model", scores.model_name},
                           {"fingerprint", scores.fingerprint},
                           {"tried", scores.probes_tried},
                           {"passed", scores.probes_passed},
                           {"resumed", result.resumed},
                           {"seconds", ms / 1000},
                           {"file", arguments.out}};
    json.update(evidence_json(scores));
    return json;
}

Result<void> tell_of_shard(const CalibrationResult& result, const Shard& shard,
                           const Arguments& arguments, const std::string& file, double ms) {
    const HeadScores& scores = result.scores;
    if (arguments.json != "-") {
        auto shown = print(fmt::format(
            "{} of {} probes answered, {}\nkept in {}; once all shards are: cat "
            "{}.*-of-{}.partial.jsonl > {}.partial.jsonl, then the same command without --shard\n",
            scores.probes_passed, scores.probes_tried, human_ms(ms), file, arguments.out, shard.of,
            arguments.out));
        if (!shown) return shown;
    }
    if (arguments.json.empty()) return {};
    const nlohmann::json json = {{"shard", to_string(shard)},      {"tried", scores.probes_tried},
                                 {"passed", scores.probes_passed}, {"resumed", result.resumed},
                                 {"seconds", ms / 1000},           {"file", file}};
    return write_output(arguments.json, json.dump() + "\n");
}

Result<void> run(Arguments& arguments) {
    const auto shard = parse_shard(arguments.shard);
    if (!shard) return tl::unexpected(shard.error());
    if (arguments.kind == "share") {
        if (!shard->whole()) return bad_input("--shard {}: --kind share has none", arguments.shard);
        arguments.share.seed = arguments.settings.seed;
        return calibrate_share(
            arguments.model, {arguments.out, arguments.haystack, arguments.json, arguments.share});
    }
    if (auto checked = check(arguments); !checked) return checked;
    CalibrationSettings& settings = arguments.settings;
    const Stopwatch watch;
    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    auto chat = probe_template(arguments.prompt, **model);
    if (!chat) return tl::unexpected(chat.error());
    const ModelInfo& info = (*model)->info();
    settings.chat = *chat;
    fit_lengths(arguments, info.context);
    if (!arguments.limit_given && !arguments.lengths_given && !arguments.depths_given &&
        arguments.needles.empty() && settings.kind != ScoreKind::task) {
        const bool fewer = settings.kind == ScoreKind::causal || settings.kind == ScoreKind::icl;
        settings.limit = fewer ? default_fewer_probes : default_probes;
        if (settings.kind == ScoreKind::baklava) settings.limit = default_texts;
    }
    auto options = arguments.model.engine;
    options.keep_queries = settings.kind != ScoreKind::causal;
    auto engine = Engine::create(*model, options);
    if (!engine) return tl::unexpected(engine.error());

    catch_interrupts();
    const Progress stop = [](std::int64_t, std::int64_t) { return !interrupted(); };
    Work work;
    if (auto ready = prepare(arguments, **engine, stop, work); !ready) return ready;
    if (!shard->whole()) {
        settings.min_passed = 0;
        work.take(*shard);
    }
    if (work.probes.empty()) {
        return bad_input("--shard {}: there are fewer probes than shards", arguments.shard);
    }
    if (std::ssize(work.probes) < settings.min_passed) {
        return bad_input(
            "{} probes cannot give the {} answers that scores need: ask for more probes, or accept "
            "fewer with --min-passed",
            work.probes.size(), settings.min_passed);
    }
    const nlohmann::json identity = {
        {"kind", arguments.kind}, {"fingerprint", info.fingerprint}, {"settings", work.settings}};
    const std::string partial =
        arguments.out + (shard->whole() ? "" : fmt::format(".{}-of-{}", shard->index, shard->of)) +
        ".partial.jsonl";
    ProgressBar bar("calibrate");
    const auto draw = [&](const CalibrationProgress& state) {
        bar.update(static_cast<double>(state.done), static_cast<double>(state.total));
        return !interrupted();
    };
    auto result =
        calibrate(settings, identity, info.shape, work.probes, work.runner, partial, draw);
    bar.clear();
    if (!result) return tl::unexpected(result.error());
    if (result->start == RunLog::Start::settings_changed) {
        note(fmt::format("{} was of other settings: begun anew, the old one is now {}.old", partial,
                         partial));
    }

    HeadScores& scores = result->scores;
    if (!shard->whole()) {
        return tell_of_shard(*result, *shard, arguments, partial, watch.ms());
    }
    scores.model_name = model_title(info);
    scores.architecture = info.architecture;
    scores.fingerprint = info.fingerprint;
    scores.settings_json = work.settings.dump();
    scores.created_by = "headkv " + version();
    if (auto saved = save_head_scores(scores, arguments.out); !saved) return saved;
    std::error_code ignored;  // the scores are safe; a left-over partial file does no harm
    std::filesystem::remove(partial, ignored);

    if (arguments.json != "-") {
        if (auto shown = print(summary(*result, arguments, watch.ms())); !shown) return shown;
    }
    if (arguments.json.empty()) return {};
    return write_output(arguments.json, summary_json(*result, arguments, watch.ms()).dump() + "\n");
}

}  // namespace

void register_calibrate(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<Arguments>();
    CLI::App& command = *app.add_subcommand(
        "calibrate", "measure what the heads of a model do: retrieve (r), reason (r2), your task");
    add_model_options(command, arguments->model);
    command
        .add_option("--kind", arguments->kind,
                    "r: retrieval, r2: retrieval and reasoning, task: your own examples (--data), "
                    "icl: in-context examples, causal: what rows gain, baklava: what attention "
                    "changes (docs/scores.md), share: which layers can read the rows of others")
        ->capture_default_str();
    command
        .add_option("--data", arguments->data,
                    "JSON lines of context, question, answers, as for `eval generate` (kind task)")
        ->type_name("FILE");
    command
        .add_option("--small-rows", arguments->settings.small_rows,
                    "rows of every head but one (kind causal)")
        ->capture_default_str()
        ->type_name("N");
    command
        .add_option("--raised-rows", arguments->settings.raised_rows,
                    "rows of the one head that is raised (kind causal)")
        ->capture_default_str()
        ->type_name("N");
    command
        .add_option("--share-layers", arguments->share.wanted,
                    "layers that are to share (kind share; 0: an eighth)")
        ->capture_default_str()
        ->type_name("N");
    command
        .add_option("--share-cosine", arguments->share.least,
                    "of the final hidden states with and without (kind share)")
        ->capture_default_str()
        ->type_name("C");
    command.add_option("-o,--output", arguments->out, "file of the scores")->required();
    command
        .add_option("--lengths", arguments->settings.lengths,
                    "tokens of the documents (default: those of 500, 1000, 1500 that fit)")
        ->delimiter(',')
        ->each([arguments](const std::string&) { arguments->lengths_given = true; });
    command
        .add_option("--depths", arguments->settings.depths,
                    "where the needle stands, percent (default: 15, 50, 85)")
        ->delimiter(',')
        ->each([arguments](const std::string&) { arguments->depths_given = true; });
    command.add_option("--haystack", arguments->haystack,
                       "folder of .txt files (default: built-in prose)");
    command.add_option("--needles", arguments->needles,
                       "JSON lines of needle, question, real_needle, answer, key, family, "
                       "elsewhere (default: built-in)");
    command
        .add_option("--families", arguments->families,
                    "only these of the built-in needles (default: all; docs/scores.md)")
        ->delimiter(',')
        ->type_name("NAME,...");
    command
        .add_option(
            "--limit", arguments->settings.limit,
            fmt::format(
                "most probes, 0: all (default: {}, causal and icl {}, baklava {}; task: all; "
                "all if needles, lengths or depths are given)",
                default_probes, default_fewer_probes, default_texts))
        ->check(CLI::NonNegativeNumber)
        ->each([arguments](const std::string&) { arguments->limit_given = true; });
    command
        .add_option("--min-passed", arguments->settings.min_passed,
                    "probes that must be answered, or no file is written")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command
        .add_option("--shard", arguments->shard,
                    "this part of the probes, for several processes or machines: 1/4 is the first "
                    "of four. Gives no scores but a file for the run that puts all together")
        ->type_name("I/N");
    command.add_option("--seed", arguments->settings.seed, "of the prose and the order")
        ->capture_default_str();
    command.add_flag("--raw", arguments->prompt.raw, "no chat template");
    command.add_option("--chat-template", arguments->prompt.chat_template,
                       "name of a chat template, where the model's own is not recognised");
    command.add_option("--json", arguments->json, "summary as JSON to a file, or - for stdout");
    command.footer(
        "Examples:\n"
        "  headkv calibrate -m model.gguf -o scores.r2.json\n"
        "  headkv calibrate -m model.gguf --kind task --data mine.jsonl -o scores.task.json");
    command.callback([arguments, &status] {
        if (auto done = run(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
