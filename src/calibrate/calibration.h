// Measures head scores: runs probes, keeps those that the model answered, averages.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/probe.h"
#include "calibrate/run_log.h"
#include "headkv/engine.h"
#include "headkv/error.h"
#include "headkv/scores.h"

namespace headkv {

// What the kinds mean: docs/scores.md.
enum class ScoreKind { r, r2, causal, task, icl, baklava };
std::string_view name_of(ScoreKind kind);  // as on the command line and in files
std::optional<ScoreKind> score_kind_by_name(std::string_view name);

struct CalibrationSettings {
    ScoreKind kind = ScoreKind::r2;
    std::vector<std::int64_t> lengths = {500, 1000, 1500};  // tokens of the document
    std::vector<double> depths = {15, 50, 85};              // percent
    std::int64_t max_tokens = 50;                           // of an answer (R)
    // A probe counts above this: ROUGE-1 recall (R), answer F1 (R2, of needles without a key: with
    // one, its being in the answer decides), share of the reference's tokens that the full cache
    // prefers (causal).
    double pass = 0.5;
    // Fewer answered probes give no scores; 0: probes are run, and no scores are asked for.
    std::int64_t min_passed = 20;
    std::uint64_t seed = 1;
    std::int64_t limit = 0;            // most probes, 0: all
    std::optional<ChatTemplate> chat;  // nothing: raw prompts
    // Causal: rows of every head, and of the one that is raised.
    double small_rows = 32, raised_rows = 136;
};

// What calibration knows of a probe, whatever its kind.
struct CalibrationProbe {
    std::string id;         // unique; a resumed run recognises it
    std::string family;     // counted by it
    std::int64_t unit = 0;  // probes of one unit (needle, example) stay in one half (split_half)
};

struct ProbeOutcome {
    std::string answer;
    double quality = 0;          // recall or F1, 0..1; of other kinds: their own
    std::vector<double> scores;  // [layers][query_heads], empty if the probe did not pass
    bool passed() const { return !scores.empty(); }
};

// What runs a probe, given by its index; the engine's in a real calibration, made up in tests.
using ProbeRunner = std::function<Result<ProbeOutcome>(std::size_t probe)>;

std::vector<CalibrationProbe> needle_probes(std::span<const ProbeSpec> specs,
                                            std::span<const Needle> needles);

// A probe that asks for a needle: its text is made, then `run` has it.
using NeedleProbe = std::function<Result<ProbeOutcome>(const Needle&, PreparedProbe)>;
ProbeRunner needle_runner(Engine& engine, const Haystack& haystack, std::span<const Needle> needles,
                          std::span<const ProbeSpec> specs, const CalibrationSettings& settings,
                          NeedleProbe run);

// The engine's for r and r2: reads the prompt but its last token with the full cache, then decodes
// greedily from that token on and scores every head at every step.
ProbeRunner engine_probe_runner(Engine& engine, const Haystack& haystack,
                                std::span<const Needle> needles, std::span<const ProbeSpec> specs,
                                const CalibrationSettings& settings, const Progress& progress);

// All that decides the outcome, for the score file and for telling runs apart: what all kinds
// share, and that of needles (r, r2, causal).
nlohmann::json settings_json(const CalibrationSettings& settings);
nlohmann::json settings_json(const CalibrationSettings& settings, const Haystack& haystack,
                             std::span<const Needle> needles);

struct CalibrationProgress {
    std::int64_t done = 0, total = 0, passed = 0;
};

struct CalibrationResult {
    HeadScores scores;  // kind, shape, probes, families, mean, stderr_, reliability; the model's
                        // names and the settings are the caller's to fill in
    RunLog::Start start = RunLog::Start::fresh;
    std::int64_t resumed = 0;  // probes that an earlier run had finished
};

// Runs the probes that `partial` (OUT.partial.jsonl) does not hold yet, appending each. Means below
// zero (causal: a head that hurts) become 0. Errors: the runner's; interrupted by `progress` (the
// partial file stays); bad_input if fewer than settings.min_passed probes passed: the message holds
// sample answers and the partial file stays, so that fewer may be accepted without measuring again.
// The partial file is the caller's to remove once the scores are written.
Result<CalibrationResult> calibrate(
    const CalibrationSettings& settings, const nlohmann::json& identity, const HeadShape& shape,
    std::span<const CalibrationProbe> probes, const ProbeRunner& runner,
    const std::filesystem::path& partial,
    const std::function<bool(const CalibrationProgress&)>& progress);

}  // namespace headkv
