// What a finished evaluation says: rows of methods and budgets with their intervals, differences
// from a named baseline, maps of length and depth; as JSON and as CSV. Pages:
// src/cli/report_page.h.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/divergence.h"
#include "eval/niah.h"
#include "eval/parity.h"
#include "eval/perplexity.h"
#include "eval/statistics.h"
#include "eval/task.h"

namespace headkv {

// A configuration as the report names it; the full f16 cache is the first of a run.
struct ReportConfig {
    std::string method;
    double rows = 0;  // as asked for; 0: all of them
    std::string type_k = "f16", type_v = "f16";
    nlohmann::json options;  // of the method; null for full
};

// What was run, the same for every row of it.
struct ReportHead {
    std::string task, metric;
    std::string model, fingerprint, version, commit;
    std::string baseline;  // a method to compare with, beside full
    bool query_aware = true;
    std::uint64_t seed = 1;
    nlohmann::json flags;  // the run's identity: all that may change an answer
    std::vector<ReportConfig> configs;
    std::vector<SkippedLine> skipped;  // lines of the data that could not be used
};
nlohmann::json to_json(const ReportHead& head);
// Error (bad_input): a field is missing or of another kind.
Result<ReportHead> report_head_from_json(const nlohmann::json& json);

// Of tasks on plain text, whose n counts predictions.
struct TextMeasures {
    Estimate divergence;  // from full's next-token distribution, nats a token
    double divergence_95 = 0;
    double perplexity = 0;
};

struct ReportRow : TaskRow {
    std::optional<Estimate> dbaseline;  // score minus the baseline's at this budget, paired
    std::optional<TextMeasures> text;
};

// Scores of one configuration over the length of the prompt and the depth of what is looked for.
struct HeatMap {
    std::string method;
    double rows = 0;
    std::vector<std::int64_t> lengths;  // ascending
    std::vector<double> depths;         // ascending, percent
    struct Cell {
        double score = 0;  // mean
        std::int64_t n = 0;
    };
    std::vector<Cell> cells;  // [depth][length]; n is 0 where nothing was asked
};

// Score of every question of several to one cache, the first to the last.
struct TurnScores {
    std::string method;
    double rows = 0;
    struct Turn {
        std::int64_t n = 0;
        Estimate score;
    };
    std::vector<Turn> turns;
};

struct Report {
    ReportHead head;
    std::int64_t examples = 0;  // with answers; of plain text: chunks
    std::vector<std::pair<std::string, std::string>> left_out;  // id, reason
    double seconds = 0;                                         // of the whole run
    std::vector<ReportRow> rows;                                // as summarize() orders them
    std::vector<HeatMap> maps;                                  // a configuration; may be empty
    std::vector<TurnScores> turns;  // a configuration; empty where all ask one question
    std::vector<ParityGap> gaps;    // of parity; empty elsewhere
};

// Error (bad_input): no configuration has the baseline's name; lists those there are.
Result<void> check_baseline(const std::string& baseline, std::span<const ReportConfig> configs);

// The baseline's row of another budget is no baseline: a method with several budgets is compared at
// the same one, a method with one budget with all.
Report make_report(ReportHead head, std::span<const TaskResult> results);
// Needles share their wording, so they are drawn as clusters; rows of `kept` stay NiahRow's.
Report make_report(ReportHead head, std::span<const NiahProbe> probes);
// The score is the share of predictions with full's best token; chunks are drawn whole.
Report make_report(ReportHead head, std::span<const DivergenceChunk> chunks);
// One row, full's; the score is the perplexity, its interval 1.96 standard errors to each side.
Report make_report(ReportHead head, const Perplexity& perplexity);

// A sentence for every line that could not be used; neighbours of one reason share theirs, such as
// all lines of a set that is not scored.
std::vector<std::string> sentences_of(std::span<const SkippedLine> skipped);

// results.json of a task, and results.csv (one line a row, a header first).
nlohmann::json report_json(const Report& report);
std::string report_csv(std::span<const Report> reports);

}  // namespace headkv
