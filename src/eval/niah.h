// The needle test: one prefill a probe feeds the full cache and every configuration under test.
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
#include "eval/config.h"
#include "eval/logged_run.h"
#include "eval/statistics.h"
#include "headkv/engine.h"

namespace headkv {

struct NiahSettings {
    std::vector<std::int64_t> lengths = {1000, 2500};  // tokens of the document
    std::vector<double> depths = {10, 50, 90};         // percent
    std::int64_t max_tokens = 24;                      // of a greedy answer
    std::int64_t limit = 0;                            // most probes, 0: all
    std::uint64_t seed = 1;
    std::optional<ChatTemplate> chat;
    std::string system = {};   // message; empty: the template's own
    bool keep_system = false;  // every head keeps what the template puts before the document
};

// What one configuration made of one probe.
struct NiahAnswer {
    std::string method;
    double rows = 0;
    std::string text;  // greedy answer
    bool hit = false;
    double log_probability = 0;      // per token of the reference answer, teacher-forced
    double log_probability_key = 0;  // the same over the tokens of the key only
    std::int64_t kv_bytes = 0;       // rows kept of the prompt
    std::int64_t kv_bytes_full = 0;
    double rows_kept = 0;
};

struct NiahProbe {
    ProbeSpec spec;
    std::int64_t prompt_tokens = 0;
    double seconds = 0;
    std::vector<NiahAnswer> answers;  // full first, then the configurations in their order
};

// A right answer holds the key, ASCII case ignored; without a key, more than half of the words of
// the real needle.
bool is_hit(std::string_view answer, const Needle& needle);

std::string niah_probe_id(const ProbeSpec& spec);
nlohmann::json to_json(const NiahProbe& probe);
// Nothing if the entry is not of this form (the probe is then run again).
std::optional<NiahProbe> niah_probe_from_json(const nlohmann::json& json);

// Runs one probe on the engine; `configs` without full, which is added.
Result<NiahProbe> run_niah_probe(Engine& engine, const Haystack& haystack, const Needle& needle,
                                 const ProbeSpec& spec, std::span<const ConfigUnderTest> configs,
                                 const NiahSettings& settings, const Progress& progress);

// One line of results.json: a method at a budget over all probes.
struct NiahRow {
    std::string method;
    double rows = 0;
    std::int64_t n = 0, full_right = 0, kept_right = 0;  // kept_right: of full's right answers
    Estimate score;                                      // share of hits
    Estimate kept;                                       // kept_right / full_right
    Estimate dlog_probability;  // per token of the reference, minus full's, mean over probes
    Estimate dlog_probability_key;
    double kv_bytes = 0, kv_bytes_full = 0, rows_kept = 0;  // means over probes
};
std::vector<NiahRow> summarize(std::span<const NiahProbe> probes, std::uint64_t seed);

// Runs what `log_file` (answers.jsonl) does not hold yet.
using NiahRunner = std::function<Result<NiahProbe>(const ProbeSpec&)>;
using NiahRun = LoggedRun<NiahProbe>;
Result<NiahRun> run_niah(
    std::span<const ProbeSpec> specs, const NiahRunner& runner,
    const std::filesystem::path& log_file, const nlohmann::json& identity,
    const std::function<bool(std::int64_t done, std::int64_t total)>& progress);

}  // namespace headkv
