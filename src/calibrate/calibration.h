// Measures head scores: runs probes, keeps those that the model answered, averages.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "calibrate/probe.h"
#include "calibrate/run_log.h"
#include "headkv/engine.h"
#include "headkv/error.h"
#include "headkv/scores.h"

namespace headkv {

enum class ScoreKind { r, r2 };

struct CalibrationSettings {
    ScoreKind kind = ScoreKind::r2;
    std::vector<std::int64_t> lengths = {500, 1000, 1500};  // tokens of the document
    std::vector<double> depths = {15, 50, 85};              // percent
    std::int64_t max_tokens = 50;                           // of an answer (R)
    double pass = 0.5;  // ROUGE-1 recall (R) or answer F1 (R2) above which a probe counts
    std::uint64_t seed = 1;
    std::int64_t limit = 0;            // most probes, 0: all
    std::optional<ChatTemplate> chat;  // nothing: raw prompts
};

struct ProbeOutcome {
    std::string answer;
    double quality = 0;          // recall or F1, 0..1
    std::vector<double> scores;  // [layers][query_heads], empty if the probe did not pass
    bool passed() const { return !scores.empty(); }
};

// What runs one probe; the engine's in a real calibration, made up in tests.
using ProbeRunner = std::function<Result<ProbeOutcome>(const ProbeSpec&)>;

// The engine's: reads the prompt but its last token with the full cache, then decodes greedily
// from that token on and scores every head at every step.
ProbeRunner engine_probe_runner(Engine& engine, const Haystack& haystack,
                                std::span<const Needle> needles,
                                const CalibrationSettings& settings, const Progress& progress);

// All that decides the outcome, for the score file and for telling runs apart.
nlohmann::json settings_json(const CalibrationSettings& settings, const Haystack& haystack,
                             std::span<const Needle> needles);

struct CalibrationProgress {
    std::int64_t done = 0, total = 0, passed = 0;
};

struct CalibrationResult {
    HeadScores scores;  // kind, shape, probes, mean, stderr_, settings_json; the model's names are
                        // the caller's to fill in
    RunLog::Start start = RunLog::Start::fresh;
    std::int64_t resumed = 0;  // probes that an earlier run had finished
};

// Runs the probes that `partial` (OUT.partial.jsonl) does not hold yet, appending each. Errors: the
// runner's; interrupted by `progress` (the partial file stays); failure if no probe passed: the
// message holds sample answers. The partial file is the caller's to remove once the scores are
// written.
Result<CalibrationResult> calibrate(
    const CalibrationSettings& settings, const nlohmann::json& identity, const HeadShape& shape,
    std::span<const ProbeSpec> probes, const ProbeRunner& runner,
    const std::filesystem::path& partial,
    const std::function<bool(const CalibrationProgress&)>& progress);

}  // namespace headkv
