// Head scores: how much each query head retrieves or reasons, measured once per model.
// File format headkv-scores/1 (docs/formats.md); the published HeadKV form is read too.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "headkv/error.h"

namespace headkv {

// Attention shape of a model: all that allocation needs to know of it.
struct HeadShape {
    std::int64_t layers = 0;
    std::int64_t query_heads = 0;  // per layer
    std::int64_t kv_heads = 0;     // per layer; divides query_heads
    std::int64_t group() const { return query_heads / kv_heads; }
    bool operator==(const HeadShape&) const = default;
};

// Probes of one kind of question, or of one kind of evidence.
struct ProbeFamily {
    std::string name;
    std::int64_t tried = 0, passed = 0;
    bool operator==(const ProbeFamily&) const = default;
};

// Split-half reliability: how well the scores of one half of the probes agree with those of the
// other, mean over random splits that never part the probes of one needle. All probes together
// agree better with another such set than that.
struct ScoreReliability {
    double spearman = 0, pearson = 0;        // over query heads
    double spearman_kv = 0, pearson_kv = 0;  // over KV heads, which is what allocation uses
    std::int64_t splits = 0;
    bool operator==(const ScoreReliability&) const = default;
};

struct HeadScores {
    std::string kind;                                   // "r", "r2", "causal", "task", "icl"
    std::string model_name, architecture, fingerprint;  // empty in the published form
    HeadShape shape;  // kv_heads 0 in the published form (unknown there)
    std::int64_t probes_tried = 0, probes_passed = 0;
    std::vector<ProbeFamily> families;            // in order of their names; may be empty
    std::optional<ScoreReliability> reliability;  // nothing from too few probes
    std::string settings_json = "{}";             // free-form object of the calibration's settings
    std::string created_by;
    std::vector<double> mean;     // [layers][query_heads], >= 0
    std::vector<double> stderr_;  // [layers][query_heads], may be empty
};

// Errors (bad_input): unreadable, not JSON, wrong format or counts, negative or non-finite values.
Result<HeadScores> load_head_scores(const std::filesystem::path& file);
// Writes to a temporary name, then renames. Error (bad_input): cannot write (disk full, no
// permission).
Result<void> save_head_scores(const HeadScores& scores, const std::filesystem::path& file);
// Refuses scores of another shape (both shapes named) and, unless `force`, of another fingerprint
// (names --force-scores). An empty fingerprint on either side is not compared.
Result<void> check_head_scores(const HeadScores& scores, const HeadShape& shape,
                               const std::string& fingerprint, bool force);
// The file in one of `folders` (first hit wins) whose fingerprint and kind match; error (bad_input)
// names the folders looked in and `headkv calibrate`.
Result<HeadScores> find_head_scores(const std::vector<std::filesystem::path>& folders,
                                    const std::string& fingerprint, const std::string& kind);

}  // namespace headkv
