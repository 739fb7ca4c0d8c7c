// headkv calibrate: measures head scores of a model.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>

#include "calibrate/calibration.h"
#include "cli/common.h"
#include "cli/options.h"
#include "cli/probe_template.h"

namespace headkv::cli {
namespace {

struct Arguments {
    ModelArguments model;
    PromptArguments prompt;  // only raw and chat_template are used
    std::string kind = "r2";
    std::string out, haystack, needles, json;
    CalibrationSettings settings;
    bool lengths_given = false, depths_given = false, limit_given = false;
};

// Enough for standard errors well below the scores, and a small model is done in minutes on two
// cores. Who gives needles, lengths or depths gets the whole grid.
constexpr std::int64_t default_probes = 72;

// R asks for single facts. R2 asks for comparisons as its paper does, and for facts too: a model
// too small to compare two ages would otherwise leave almost no probe to measure.
Result<std::vector<Needle>> chosen_needles(const Arguments& arguments) {
    if (!arguments.needles.empty()) return load_needles(arguments.needles);
    const auto facts = single_fact_needles();
    if (arguments.kind == "r") return std::vector<Needle>(facts.begin(), facts.end());
    const auto comparisons = comparison_needles();
    std::vector<Needle> needles(comparisons.begin(), comparisons.end());
    needles.insert(needles.end(), facts.begin(), facts.begin() + std::ssize(comparisons));
    return needles;
}

Result<void> check(const Arguments& arguments) {
    if (arguments.kind != "r" && arguments.kind != "r2") {
        return bad_input("--kind {}: unknown; this version measures r and r2", arguments.kind);
    }
    for (const std::int64_t length : arguments.settings.lengths) {
        if (length < 0) return bad_input("--lengths {}: must be 0 or more", length);
    }
    for (const double depth : arguments.settings.depths) {
        if (!(depth >= 0 && depth <= 100))
            return bad_input("--depths {:g}: must be 0 to 100", depth);
    }
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
    return fmt::format(
        "{} of {} probes answered ({} from an earlier run), {}\n"
        "the ten highest query heads hold {:.0f} % of the scores: {}\n"
        "written to {}\n",
        scores.probes_passed, scores.probes_tried, result.resumed, human_ms(ms),
        sum > 0 ? 100 * top_ten / sum : 0.0, names, arguments.out);
}

Result<void> run(Arguments& arguments) {
    if (auto checked = check(arguments); !checked) return checked;
    auto needles = chosen_needles(arguments);
    if (!needles) return tl::unexpected(needles.error());
    auto haystack = arguments.haystack.empty()
                        ? Result<Haystack>(Haystack::builtin(arguments.settings.seed))
                        : Haystack::folder(arguments.haystack);
    if (!haystack) return tl::unexpected(haystack.error());

    const Stopwatch watch;
    auto model = load_model(arguments.model);
    if (!model) return tl::unexpected(model.error());
    auto chat = probe_template(arguments.prompt, **model);
    if (!chat) return tl::unexpected(chat.error());
    const ModelInfo& info = (*model)->info();
    CalibrationSettings& settings = arguments.settings;
    settings.kind = arguments.kind == "r" ? ScoreKind::r : ScoreKind::r2;
    settings.chat = *chat;
    fit_lengths(arguments, info.context);
    if (!arguments.limit_given && !arguments.lengths_given && !arguments.depths_given &&
        arguments.needles.empty()) {
        settings.limit = default_probes;
    }
    auto options = arguments.model.engine;
    options.keep_queries = true;
    auto engine = Engine::create(*model, options);
    if (!engine) return tl::unexpected(engine.error());

    auto probes = plan_probes(settings.lengths, settings.depths,
                              static_cast<std::int64_t>(needles->size()), settings.seed);
    if (settings.limit > 0 && probes.size() > static_cast<std::size_t>(settings.limit)) {
        probes.resize(static_cast<std::size_t>(settings.limit));
    }
    const nlohmann::json described = settings_json(settings, *haystack, *needles);
    const nlohmann::json identity = {
        {"kind", arguments.kind}, {"fingerprint", info.fingerprint}, {"settings", described}};
    const std::string partial = arguments.out + ".partial.jsonl";

    catch_interrupts();
    ProgressBar bar("calibrate");
    const auto draw = [&](const CalibrationProgress& state) {
        bar.update(static_cast<double>(state.done), static_cast<double>(state.total));
        return !interrupted();
    };
    const Progress stop = [](std::int64_t, std::int64_t) { return !interrupted(); };
    const ProbeRunner runner = engine_probe_runner(**engine, *haystack, *needles, settings, stop);
    auto result = calibrate(settings, identity, info.shape, probes, runner, partial, draw);
    bar.clear();
    if (!result) return tl::unexpected(result.error());
    if (result->start == RunLog::Start::settings_changed) {
        note(fmt::format("{} was of other settings: begun anew, the old one is now {}.old", partial,
                         partial));
    }

    HeadScores& scores = result->scores;
    scores.model_name = model_title(info);
    scores.architecture = info.architecture;
    scores.fingerprint = info.fingerprint;
    scores.settings_json = described.dump();
    scores.created_by = "headkv " + version();
    if (auto saved = save_head_scores(scores, arguments.out); !saved) return saved;
    std::error_code ignored;  // the scores are safe; a left-over partial file does no harm
    std::filesystem::remove(partial, ignored);

    if (arguments.json != "-") {
        if (auto shown = print(summary(*result, arguments, watch.ms())); !shown) return shown;
    }
    if (arguments.json.empty()) return {};
    const nlohmann::json json = {{"kind", scores.kind},
                                 {"model", scores.model_name},
                                 {"fingerprint", scores.fingerprint},
                                 {"tried", scores.probes_tried},
                                 {"passed", scores.probes_passed},
                                 {"resumed", result->resumed},
                                 {"seconds", watch.ms() / 1000},
                                 {"file", arguments.out}};
    return write_output(arguments.json, json.dump() + "\n");
}

}  // namespace

void register_calibrate(CLI::App& app, Status& status) {
    auto arguments = std::make_shared<Arguments>();
    CLI::App& command = *app.add_subcommand(
        "calibrate", "measure which heads of a model retrieve (r) or reason (r2)");
    add_model_options(command, arguments->model);
    command.add_option("--kind", arguments->kind, "r: retrieval, r2: retrieval and reasoning")
        ->capture_default_str();
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
                       "JSON lines of needle, question, real_needle, answer (default: built-in)");
    command
        .add_option("--limit", arguments->settings.limit,
                    fmt::format("most probes, 0: all (default: {}; all if needles, lengths or "
                                "depths are given)",
                                default_probes))
        ->check(CLI::NonNegativeNumber)
        ->each([arguments](const std::string&) { arguments->limit_given = true; });
    command.add_option("--seed", arguments->settings.seed, "of the prose and the order")
        ->capture_default_str();
    command.add_flag("--raw", arguments->prompt.raw, "no chat template");
    command.add_option("--chat-template", arguments->prompt.chat_template,
                       "name of a chat template, where the model's own is not recognised");
    command.add_option("--json", arguments->json, "summary as JSON to a file, or - for stdout");
    command.callback([arguments, &status] {
        if (auto done = run(*arguments); !done) status.code = report(done.error());
    });
}

}  // namespace headkv::cli
