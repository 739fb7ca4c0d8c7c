#include "calibrate/calibration.h"

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>
#include <utility>

#include "calibrate/correlation.h"
#include "calibrate/head_scoring.h"

namespace headkv {
namespace {

constexpr std::array<std::pair<ScoreKind, std::string_view>, 6> kKinds = {
    {{ScoreKind::r, "r"},
     {ScoreKind::r2, "r2"},
     {ScoreKind::causal, "causal"},
     {ScoreKind::task, "task"},
     {ScoreKind::icl, "icl"},
     {ScoreKind::baklava, "baklava"}}};

nlohmann::json to_json(const CalibrationProbe& probe, const ProbeOutcome& outcome) {
    return {{"probe", probe.id},          {"family", probe.family},   {"passed", outcome.passed()},
            {"quality", outcome.quality}, {"answer", outcome.answer}, {"scores", outcome.scores}};
}

// An entry of an earlier run; nothing if it is not of the expected form (it is then run again).
std::optional<std::pair<std::string, ProbeOutcome>> from_json(const nlohmann::json& entry,
                                                              std::size_t heads) {
    try {
        ProbeOutcome outcome;
        outcome.answer = entry.at("answer").get<std::string>();
        outcome.quality = entry.at("quality").get<double>();
        outcome.scores = entry.at("scores").get<std::vector<double>>();
        if (!outcome.scores.empty() && outcome.scores.size() != heads) return std::nullopt;
        return std::pair{entry.at("probe").get<std::string>(), std::move(outcome)};
    } catch (const nlohmann::json::exception&) {
        return std::nullopt;
    }
}

// A model's answer inside an error line: one line, not too long.
std::string in_quotes(std::string_view answer) {
    std::string text(answer.substr(0, 100));
    std::replace(text.begin(), text.end(), '\n', ' ');
    return '"' + text + (answer.size() > 100 ? "...\"" : "\"");
}

std::string sample_answers(std::span<const std::string> answers) {
    std::string text;
    for (const std::string& answer : answers.first(std::min<std::size_t>(3, answers.size()))) {
        text += (text.empty() ? "" : ", ") + in_quotes(answer);
    }
    return text;
}

tl::unexpected<Error> stopped(const CalibrationProgress& state,
                              const std::filesystem::path& partial) {
    return tl::unexpected(Error{ErrorKind::interrupted,
                                fmt::format("interrupted after {} of {} probes; the same command "
                                            "goes on from {}",
                                            state.done, state.total, partial.string())});
}

// What may help when too few probes passed.
std::string_view advice(ScoreKind kind) {
    switch (kind) {
        case ScoreKind::r:
        case ScoreKind::r2:
            return "try shorter --lengths, other --needles or --raw";
        case ScoreKind::causal:
            return "try fewer --small-rows, shorter --lengths or --raw";
        case ScoreKind::task:
            return "try other rows of --data, or --raw";
        case ScoreKind::icl:
            return "try shorter --lengths";
        case ScoreKind::baklava:  // no text fails
            break;
    }
    return "";
}

tl::unexpected<Error> too_few(const CalibrationSettings& settings, std::int64_t passed,
                              std::size_t probes, std::span<const std::string> failed,
                              const std::filesystem::path& partial) {
    const std::string_view hint = advice(settings.kind);
    if (passed == 0) {
        return bad_input(
            "the model answered none of {} probes, so there is nothing to measure; it said {}; {}",
            probes, sample_answers(failed), hint);
    }
    return bad_input(
        "the model answered only {} of {} probes, scores need {}; it said {}; {}, or accept fewer "
        "with --min-passed {} ({} keeps what was measured)",
        passed, probes, settings.min_passed, sample_answers(failed), hint, passed,
        partial.filename().string());
}

}  // namespace

std::string_view name_of(ScoreKind kind) {
    for (const auto& [known, name] : kKinds) {
        if (known == kind) return name;
    }
    return "?";
}

std::optional<ScoreKind> score_kind_by_name(std::string_view name) {
    for (const auto& [kind, known] : kKinds) {
        if (known == name) return kind;
    }
    return std::nullopt;
}

std::vector<CalibrationProbe> needle_probes(std::span<const ProbeSpec> specs,
                                            std::span<const Needle> needles) {
    std::vector<CalibrationProbe> probes;
    probes.reserve(specs.size());
    for (const ProbeSpec& spec : specs) {
        probes.push_back({fmt::format("needle {} length {} depth {:g}", spec.needle + 1,
                                      spec.length, spec.depth),
                          needles[static_cast<std::size_t>(spec.needle)].family, spec.needle});
    }
    return probes;
}

nlohmann::json settings_json(const CalibrationSettings& settings) {
    return {
        {"chat_template", settings.chat ? std::string(chat_template_name(*settings.chat)) : "raw"},
        {"seed", settings.seed}};
}

nlohmann::json settings_json(const CalibrationSettings& settings, const Haystack& haystack,
                             std::span<const Needle> needles) {
    std::string all;
    for (const Needle& needle : needles) {
        all += needle.needle + '\n' + needle.question + '\n' + needle.real_needle + '\n' +
               needle.answer + '\n' + needle.key + '\n';
        for (const std::string& text : needle.elsewhere) all += text + '\n';
    }
    nlohmann::json json = settings_json(settings);
    json.update({{"lengths", settings.lengths},
                 {"depths", settings.depths},
                 {"haystack", haystack.name()},
                 {"needles", needles.size()},
                 {"needles_hash", fmt::format("{:016x}", hash_text(all))},
                 {"pass", settings.pass}});
    switch (settings.kind) {
        case ScoreKind::r:
            json["pass_metric"] = "rouge-1 recall";
            json["max_tokens"] = settings.max_tokens;
            break;
        case ScoreKind::causal:
            json["pass_metric"] = "tokens of the reference that the full cache prefers";
            json["small_rows"] = settings.small_rows;
            json["raised_rows"] = settings.raised_rows;
            break;
        default:
            json["pass_metric"] = "the key in the answer, without a key answer F1";
    }
    return json;
}

Result<CalibrationResult> calibrate(
    const CalibrationSettings& settings, const nlohmann::json& identity, const HeadShape& shape,
    std::span<const CalibrationProbe> probes, const ProbeRunner& runner,
    const std::filesystem::path& partial,
    const std::function<bool(const CalibrationProgress&)>& progress) {
    auto log = RunLog::open(partial, identity);
    if (!log) return tl::unexpected(log.error());
    const auto heads = static_cast<std::size_t>(shape.layers * shape.query_heads);
    std::unordered_map<std::string, ProbeOutcome> finished;
    for (const nlohmann::json& entry : log->entries()) {
        if (auto outcome = from_json(entry, heads)) finished.insert(std::move(*outcome));
    }

    CalibrationResult result;
    result.start = log->start();
    std::map<std::string, ProbeFamily> families;
    std::vector<std::vector<double>> passed;  // scores of the probes that did
    std::vector<std::int64_t> units;          // [passed]
    std::vector<std::string> failed;          // answers
    CalibrationProgress state{0, static_cast<std::int64_t>(probes.size()), 0};
    for (std::size_t i = 0; i < probes.size(); ++i) {
        const CalibrationProbe& probe = probes[i];
        ProbeOutcome outcome;
        if (const auto known = finished.find(probe.id); known != finished.end()) {
            outcome = known->second;
            ++result.resumed;
        } else {
            if (progress && !progress(state)) return stopped(state, partial);
            auto run = runner(i);
            if (!run && run.error().kind == ErrorKind::interrupted) return stopped(state, partial);
            if (!run) return tl::unexpected(run.error());
            outcome = std::move(*run);
            if (auto written = log->append(to_json(probe, outcome)); !written) {
                return tl::unexpected(written.error());
            }
        }
        ++state.done;
        ProbeFamily& family = families[probe.family];
        ++family.tried;
        if (outcome.passed()) {
            ++state.passed;
            ++family.passed;
            passed.push_back(std::move(outcome.scores));
            units.push_back(probe.unit);
        } else {
            failed.push_back(std::move(outcome.answer));
        }
    }
    if (progress) progress(state);
    result.scores.probes_tried = state.total;
    result.scores.probes_passed = state.passed;
    if (settings.min_passed == 0) return result;
    if (state.passed < settings.min_passed) {
        return too_few(settings, state.passed, probes.size(), failed, partial);
    }

    ScoreMeans means(heads);
    std::vector<UnitScores> halves;
    for (std::size_t i = 0; i < passed.size(); ++i) {
        means.add(passed[i]);
        halves.push_back({units[i], passed[i]});
    }
    HeadScores& scores = result.scores;
    scores.kind = name_of(settings.kind);
    scores.shape = shape;
    for (auto& [name, family] : families) {
        family.name = name;
        scores.families.push_back(family);
    }
    scores.mean = means.mean();
    for (double& score : scores.mean) score = std::max(score, 0.0);
    scores.stderr_ = means.standard_error();
    scores.reliability = split_half(halves, shape);
    return result;
}

}  // namespace headkv
