#include "calibrate/calibration.h"

#include <algorithm>
#include <unordered_map>

#include "calibrate/head_scoring.h"

namespace headkv {
namespace {

std::string probe_id(const ProbeSpec& probe) {
    return fmt::format("needle {} length {} depth {:g}", probe.needle + 1, probe.length,
                       probe.depth);
}

nlohmann::json to_json(const ProbeSpec& probe, const ProbeOutcome& outcome) {
    return {{"probe", probe_id(probe)},
            {"passed", outcome.passed()},
            {"quality", outcome.quality},
            {"answer", outcome.answer},
            {"scores", outcome.scores}};
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

std::string sample_answers(const std::vector<ProbeOutcome>& outcomes) {
    std::string text;
    for (const ProbeOutcome& outcome :
         std::span(outcomes).first(std::min<std::size_t>(3, outcomes.size()))) {
        text += (text.empty() ? "" : ", ") + in_quotes(outcome.answer);
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

}  // namespace

nlohmann::json settings_json(const CalibrationSettings& settings, const Haystack& haystack,
                             std::span<const Needle> needles) {
    std::string all;
    for (const Needle& needle : needles) {
        all += needle.needle + '\n' + needle.question + '\n' + needle.real_needle + '\n' +
               needle.answer + '\n';
    }
    const bool r = settings.kind == ScoreKind::r;
    nlohmann::json json = {
        {"lengths", settings.lengths},
        {"depths", settings.depths},
        {"haystack", haystack.name()},
        {"needles", needles.size()},
        {"needles_hash", fmt::format("{:016x}", hash_text(all))},
        {"chat_template", settings.chat ? std::string(chat_template_name(*settings.chat)) : "raw"},
        {"pass", settings.pass},
        {"pass_metric", r ? "rouge-1 recall" : "answer F1"},
        {"seed", settings.seed}};
    if (r) json["max_tokens"] = settings.max_tokens;
    return json;
}

Result<CalibrationResult> calibrate(
    const CalibrationSettings& settings, const nlohmann::json& identity, const HeadShape& shape,
    std::span<const ProbeSpec> probes, const ProbeRunner& runner,
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
    ScoreMeans means(heads);
    std::vector<ProbeOutcome> failed;
    CalibrationProgress state{0, static_cast<std::int64_t>(probes.size()), 0};
    for (const ProbeSpec& probe : probes) {
        ProbeOutcome outcome;
        if (const auto known = finished.find(probe_id(probe)); known != finished.end()) {
            outcome = known->second;
            ++result.resumed;
        } else {
            if (progress && !progress(state)) return stopped(state, partial);
            auto run = runner(probe);
            if (!run && run.error().kind == ErrorKind::interrupted) return stopped(state, partial);
            if (!run) return tl::unexpected(run.error());
            outcome = std::move(*run);
            if (auto written = log->append(to_json(probe, outcome)); !written) {
                return tl::unexpected(written.error());
            }
        }
        ++state.done;
        if (outcome.passed()) {
            ++state.passed;
            means.add(outcome.scores);
        } else {
            failed.push_back(std::move(outcome));
        }
    }
    if (progress) progress(state);
    if (means.count() == 0) {
        return failure(
            "the model answered none of {} probes, so there is nothing to measure; it "
            "said {}; try shorter --lengths, other --needles or --raw",
            probes.size(), sample_answers(failed));
    }

    result.scores.kind = settings.kind == ScoreKind::r ? "r" : "r2";
    result.scores.shape = shape;
    result.scores.probes_tried = state.total;
    result.scores.probes_passed = means.count();
    result.scores.mean = means.mean();
    result.scores.stderr_ = means.standard_error();
    return result;
}

}  // namespace headkv
