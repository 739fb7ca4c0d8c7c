#include "eval/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <map>
#include <numeric>
#include <set>
#include <utility>

namespace headkv {
namespace {

using nlohmann::json;

json interval(const Estimate& estimate) { return json::array({estimate.low, estimate.high}); }

// The configuration that `config` is compared with; nothing for itself and for full.
std::optional<std::size_t> baseline_of(const ReportHead& head, std::size_t config) {
    if (head.baseline.empty() || config == 0) return std::nullopt;
    std::vector<std::size_t> named;
    for (std::size_t i = 0; i < head.configs.size(); ++i) {
        if (head.configs[i].method == head.baseline) named.push_back(i);
    }
    std::optional<std::size_t> found;
    for (const std::size_t i : named) {
        if (named.size() == 1 || head.configs[i].rows == head.configs[config].rows) found = i;
    }
    return found == config ? std::nullopt : found;
}

// What the maps and the differences need of an example, whatever kind of task it is of.
struct Outcome {
    std::string group;
    std::int64_t cluster = 0;  // drawn together
    std::optional<std::int64_t> length;
    std::optional<double> depth;
    std::vector<double> scores;  // [configuration]
};

std::optional<Estimate> against_baseline(const ReportHead& head, std::size_t config,
                                         const std::string& group,
                                         std::span<const Outcome> outcomes) {
    const auto other = baseline_of(head, config);
    if (!other) return std::nullopt;
    std::vector<ProbeValue> differences;
    for (const Outcome& outcome : outcomes) {
        if (!group.empty() && outcome.group != group) continue;
        differences.push_back({outcome.cluster, outcome.scores[config] - outcome.scores[*other]});
    }
    assert(!differences.empty());
    return clustered_estimate(differences, head.seed);
}

std::vector<HeatMap> heat_maps(const ReportHead& head, std::span<const Outcome> outcomes) {
    std::set<std::int64_t> lengths;
    std::set<double> depths;
    for (const Outcome& outcome : outcomes) {
        if (!outcome.length || !outcome.depth) continue;
        lengths.insert(*outcome.length);
        depths.insert(*outcome.depth);
    }
    std::vector<HeatMap> maps;
    if (lengths.empty()) return maps;
    for (std::size_t config = 0; config < head.configs.size(); ++config) {
        HeatMap map;
        map.method = head.configs[config].method;
        map.rows = head.configs[config].rows;
        map.lengths.assign(lengths.begin(), lengths.end());
        map.depths.assign(depths.begin(), depths.end());
        map.cells.resize(lengths.size() * depths.size());
        for (const Outcome& outcome : outcomes) {
            if (!outcome.length || !outcome.depth) continue;
            const auto column = std::distance(lengths.begin(), lengths.find(*outcome.length));
            const auto row = std::distance(depths.begin(), depths.find(*outcome.depth));
            HeatMap::Cell& cell = map.cells[static_cast<std::size_t>(row) * lengths.size() +
                                            static_cast<std::size_t>(column)];
            cell.score += outcome.scores[config];
            ++cell.n;
        }
        for (HeatMap::Cell& cell : map.cells) {
            if (cell.n > 0) cell.score /= static_cast<double>(cell.n);
        }
        maps.push_back(std::move(map));
    }
    return maps;
}

// A run of other lengths than the head's is a bug of the caller's.
std::size_t config_of(std::size_t row, const ReportHead& head) { return row % head.configs.size(); }

std::vector<TurnScores> turn_scores(const ReportHead& head, std::span<const TaskResult> results) {
    std::vector<TurnScores> all;
    for (std::size_t config = 0; config < head.configs.size(); ++config) {
        std::vector<std::vector<ProbeValue>> turns;  // [turn]
        ClusterNumbers clusters;
        for (const TaskResult& result : results) {
            if (!result.skipped.empty()) continue;
            const std::int64_t cluster = clusters.of(result.cluster);
            const auto& asked = result.answers[config].turns;
            if (asked.size() > turns.size()) turns.resize(asked.size());
            for (std::size_t turn = 0; turn < asked.size(); ++turn) {
                turns[turn].push_back({cluster, asked[turn].score});
            }
        }
        if (turns.empty()) return {};
        TurnScores scores{head.configs[config].method, head.configs[config].rows, {}};
        for (const auto& turn : turns) {
            scores.turns.push_back(
                {static_cast<std::int64_t>(turn.size()), clustered_estimate(turn, head.seed)});
        }
        all.push_back(std::move(scores));
    }
    return all;
}

json to_json(const TurnScores& scores) {
    json turns = json::array();
    for (const TurnScores::Turn& turn : scores.turns) {
        turns.push_back(
            {{"n", turn.n}, {"score", turn.score.value}, {"interval", interval(turn.score)}});
    }
    return {{"method", scores.method}, {"rows", scores.rows}, {"turns", std::move(turns)}};
}

json to_json(const ParityGap& gap) {
    return {{"kind", gap.kind},
            {"method", gap.method},
            {"rows", gap.rows},
            {"pairs", gap.pairs},
            {"best", gap.best},
            {"worst", gap.worst},
            {"best_score", gap.best_score},
            {"worst_score", gap.worst_score},
            {"gap", gap.gap.value},
            {"gap_interval", interval(gap.gap)},
            {"beyond_full", gap.beyond_full.value},
            {"beyond_full_interval", interval(gap.beyond_full)}};
}

json to_json(const Report& report, const ReportRow& row, const ReportConfig& config) {
    const ReportHead& head = report.head;
    json line = {{"task", head.task},
                 {"group", row.group},
                 {"method", row.method},
                 {"rows", row.rows},
                 {"type_k", config.type_k},
                 {"type_v", config.type_v},
                 {"options", config.options},
                 {"metric", head.metric},
                 {"query_aware", head.query_aware},
                 {"n", row.n},
                 {"cut", row.cut},
                 {"score", row.score.value},
                 {"interval", interval(row.score)},
                 {"dscore", row.dscore.value},
                 {"dscore_interval", interval(row.dscore)},
                 {"share_of_full", row.share_of_full},
                 {"dlogprob", row.dlog_probability.value},
                 {"dlogprob_interval", interval(row.dlog_probability)},
                 {"kv_bytes", row.kv_bytes},
                 {"kv_bytes_full", row.kv_bytes_full},
                 {"rows_kept_mean", row.rows_kept},
                 {"model", head.model},
                 {"fingerprint", head.fingerprint},
                 {"seed", head.seed},
                 {"version", head.version},
                 {"commit", head.commit}};
    if (row.dbaseline) {
        line["baseline"] = head.baseline;
        line["dbaseline"] = row.dbaseline->value;
        line["dbaseline_interval"] = interval(*row.dbaseline);
    }
    if (row.text) {
        line["divergence"] = row.text->divergence.value;
        line["divergence_interval"] = interval(row.text->divergence);
        line["divergence_95"] = row.text->divergence_95;
        line["perplexity"] = row.text->perplexity;
    }
    return line;
}

// Quoted where a comma, a quote or a line break asks for it.
std::string csv_field(const std::string& text) {
    if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
    std::string quoted = "\"";
    for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
    return quoted + '"';
}

std::string csv_estimate(const Estimate& estimate) {
    return fmt::format("{:.6g},{:.6g},{:.6g}", estimate.value, estimate.low, estimate.high);
}

}  // namespace

json to_json(const ReportHead& head) {
    json configs = json::array();
    for (const ReportConfig& config : head.configs) {
        configs.push_back({{"method", config.method},
                           {"rows", config.rows},
                           {"type_k", config.type_k},
                           {"type_v", config.type_v},
                           {"options", config.options}});
    }
    json skipped = json::array();
    for (const SkippedLine& line : head.skipped) {
        skipped.push_back({{"file", line.file}, {"line", line.line}, {"reason", line.reason}});
    }
    return {{"task", head.task},
            {"metric", head.metric},
            {"model", head.model},
            {"fingerprint", head.fingerprint},
            {"version", head.version},
            {"commit", head.commit},
            {"baseline", head.baseline},
            {"query_aware", head.query_aware},
            {"seed", head.seed},
            {"flags", head.flags},
            {"configurations", std::move(configs)},
            {"skipped_lines", std::move(skipped)}};
}

Result<ReportHead> report_head_from_json(const json& from) {
    try {
        ReportHead head;
        from.at("task").get_to(head.task);
        from.at("metric").get_to(head.metric);
        from.at("model").get_to(head.model);
        from.at("fingerprint").get_to(head.fingerprint);
        from.at("version").get_to(head.version);
        from.at("commit").get_to(head.commit);
        from.at("baseline").get_to(head.baseline);
        from.at("query_aware").get_to(head.query_aware);
        from.at("seed").get_to(head.seed);
        head.flags = from.at("flags");
        for (const json& one : from.at("configurations")) {
            head.configs.push_back({one.at("method"), one.at("rows"), one.at("type_k"),
                                    one.at("type_v"), one.at("options")});
        }
        for (const json& line : from.at("skipped_lines")) {
            head.skipped.push_back({line.at("file"), line.at("line"), line.at("reason")});
        }
        if (head.configs.empty()) return bad_input("no configurations");
        return head;
    } catch (const json::exception& error) {
        return bad_input("{}", error.what());
    }
}

Result<void> check_baseline(const std::string& baseline, std::span<const ReportConfig> configs) {
    if (baseline.empty()) return {};
    std::set<std::string> seen;
    std::string names;
    for (const ReportConfig& config : configs) {
        if (config.method == baseline) return {};
        if (seen.insert(config.method).second) names += ' ' + config.method;
    }
    return bad_input("--baseline {} is not among --methods:{}", baseline, names);
}

namespace {

Outcome outcome_of(const TaskResult& result, std::int64_t cluster) {
    Outcome outcome{result.group, cluster, result.length, result.depth, {}};
    for (const TaskAnswer& answer : result.answers) outcome.scores.push_back(answer.score);
    return outcome;
}

}  // namespace

Report make_report(ReportHead head, std::span<const TaskResult> results) {
    Report report;
    report.head = std::move(head);
    std::vector<Outcome> outcomes;  // one an example
    ClusterNumbers clusters;
    std::vector<Outcome> of_turns;  // one a question of several, in their groups of summarize()
    for (const TaskResult& result : results) {
        report.seconds += result.seconds;
        if (!result.skipped.empty()) {
            report.left_out.emplace_back(result.id, result.skipped);
            continue;
        }
        const std::int64_t cluster = clusters.of(result.cluster);
        ++report.examples;
        outcomes.push_back(outcome_of(result, cluster));
        for (std::size_t turn = 0;; ++turn) {
            const auto one = turn_result(result, turn);
            if (!one) break;
            of_turns.push_back(outcome_of(*one, cluster));
        }
    }
    const auto has_own = [&](const std::string& group) {
        return group.empty() ||
               std::ranges::find(outcomes, group, &Outcome::group) != outcomes.end();
    };
    std::size_t at = 0;
    for (TaskRow& row : summarize(results, report.head.seed)) {
        const std::size_t config = config_of(at++, report.head);
        const auto difference = against_baseline(report.head, config, row.group,
                                                 has_own(row.group) ? outcomes : of_turns);
        report.rows.push_back({std::move(row), difference, {}});
    }
    report.maps = heat_maps(report.head, outcomes);
    report.turns = turn_scores(report.head, results);
    // Ids of other tasks may look alike by chance.
    if (report.head.task == "parity") report.gaps = parity_gaps(results, report.head.seed);
    return report;
}

Report make_report(ReportHead head, std::span<const NiahProbe> probes) {
    Report report;
    report.head = std::move(head);
    std::vector<Outcome> outcomes;
    for (const NiahProbe& probe : probes) {
        report.seconds += probe.seconds;
        ++report.examples;
        Outcome outcome{{}, probe.spec.needle, probe.spec.length, probe.spec.depth, {}};
        for (const NiahAnswer& answer : probe.answers) {
            outcome.scores.push_back(answer.hit ? 1.0 : 0.0);
        }
        outcomes.push_back(std::move(outcome));
    }
    std::size_t config = 0;
    for (const NiahRow& from : summarize(probes, report.head.seed)) {
        ReportRow row;
        row.method = from.method;
        row.rows = from.rows;
        row.n = from.n;
        row.score = from.score;
        row.dlog_probability = from.dlog_probability;
        row.kv_bytes = from.kv_bytes;
        row.kv_bytes_full = from.kv_bytes_full;
        row.rows_kept = from.rows_kept;
        std::vector<ProbeValue> differences;
        differences.reserve(outcomes.size());
        for (const Outcome& outcome : outcomes) {
            differences.push_back({outcome.cluster, outcome.scores[config] - outcome.scores[0]});
        }
        row.dscore = clustered_estimate(differences, report.head.seed);
        const double full = config == 0 ? from.score.value : report.rows[0].score.value;
        row.share_of_full = full > 0 ? from.score.value / full : 0;
        row.dbaseline = against_baseline(report.head, config, "", outcomes);
        report.rows.push_back(std::move(row));
        ++config;
    }
    report.maps = heat_maps(report.head, outcomes);
    return report;
}

Report make_report(ReportHead head, std::span<const DivergenceChunk> chunks) {
    Report report;
    report.head = std::move(head);
    report.examples = static_cast<std::int64_t>(chunks.size());
    std::vector<Outcome> outcomes;  // of chunks of one length: means of means are those of all
    for (const DivergenceChunk& chunk : chunks) {
        report.seconds += chunk.seconds;
        Outcome outcome{{}, chunk.chunk, {}, {}, {}};
        for (const DivergenceAnswer& answer : chunk.answers) {
            outcome.scores.push_back(
                std::accumulate(answer.same_best.begin(), answer.same_best.end(), 0.0) /
                static_cast<double>(answer.same_best.size()));
        }
        outcomes.push_back(std::move(outcome));
    }
    std::size_t config = 0;
    for (const DivergenceRow& from : summarize(chunks, report.head.seed)) {
        ReportRow row;
        row.method = from.method;
        row.rows = from.rows;
        row.n = from.tokens;
        row.score = from.same_best;
        // Full agrees with itself everywhere.
        row.dscore = {from.same_best.value - 1, from.same_best.low - 1, from.same_best.high - 1};
        row.share_of_full = from.same_best.value;
        row.dlog_probability = from.dlog_probability;
        row.kv_bytes = from.kv_bytes;
        row.kv_bytes_full = from.kv_bytes_full;
        row.rows_kept = from.rows_kept;
        row.dbaseline = against_baseline(report.head, config, "", outcomes);
        row.text = TextMeasures{from.divergence, from.divergence_95, from.perplexity};
        report.rows.push_back(std::move(row));
        ++config;
    }
    return report;
}

Report make_report(ReportHead head, const Perplexity& perplexity) {
    Report report;
    report.head = std::move(head);
    report.examples = perplexity.chunks;
    ReportRow row;
    row.method = report.head.configs.at(0).method;
    row.n = perplexity.tokens;
    const double wide = 1.96 * perplexity.standard_error;
    row.score = {perplexity.perplexity, perplexity.perplexity - wide, perplexity.perplexity + wide};
    row.share_of_full = 1;
    row.text = TextMeasures{{}, 0, perplexity.perplexity};
    report.rows.push_back(std::move(row));
    return report;
}

std::vector<std::string> sentences_of(std::span<const SkippedLine> skipped) {
    std::vector<std::string> sentences;
    for (std::size_t begin = 0, end = 0; begin < skipped.size(); begin = end) {
        const SkippedLine& first = skipped[begin];
        while (end < skipped.size() && skipped[end].file == first.file &&
               skipped[end].reason == first.reason) {
            ++end;
        }
        sentences.push_back(
            end - begin == 1
                ? fmt::format("{}, line {} is left out: {}", first.file, first.line, first.reason)
                : fmt::format("{}, {} lines from {} to {} are left out: {}", first.file,
                              end - begin, first.line, skipped[end - 1].line, first.reason));
    }
    return sentences;
}

json report_json(const Report& report) {
    json lines = json::array();
    for (std::size_t i = 0; i < report.rows.size(); ++i) {
        lines.push_back(
            to_json(report, report.rows[i], report.head.configs[config_of(i, report.head)]));
    }
    json skipped = json::array();
    for (const auto& [id, reason] : report.left_out) {
        skipped.push_back({{"id", id}, {"reason", reason}});
    }
    json whole = to_json(report.head);
    for (const json& line : whole["skipped_lines"]) skipped.push_back(line);
    whole["format"] = "headkv-eval/1";
    whole["examples"] = report.examples;
    whole["seconds"] = report.seconds;  // of the whole run: prefills are shared
    whole["skipped"] = std::move(skipped);
    whole["results"] = std::move(lines);
    for (const TurnScores& scores : report.turns) whole["turns"].push_back(to_json(scores));
    for (const ParityGap& gap : report.gaps) whole["gaps"].push_back(to_json(gap));
    return whole;
}

std::string report_csv(std::span<const Report> reports) {
    std::string csv =
        "task,group,method,rows,type_k,type_v,metric,query_aware,n,cut,score,score_low,score_high,"
        "dscore,dscore_low,dscore_high,share_of_full,dlogprob,dlogprob_low,dlogprob_high,baseline,"
        "dbaseline,dbaseline_low,dbaseline_high,kv_bytes,kv_bytes_full,rows_kept_mean,model,"
        "fingerprint,seed,version,commit,divergence,divergence_low,divergence_high,divergence_95,"
        "perplexity\n";
    for (const Report& report : reports) {
        const ReportHead& head = report.head;
        for (std::size_t i = 0; i < report.rows.size(); ++i) {
            const ReportRow& row = report.rows[i];
            const ReportConfig& config = head.configs[config_of(i, head)];
            csv += fmt::format("{},{},{},{:g},{},{},{},{},{},{},", csv_field(head.task),
                               csv_field(row.group), csv_field(row.method), row.rows, config.type_k,
                               config.type_v, head.metric, head.query_aware ? "yes" : "no", row.n,
                               row.cut);
            csv += fmt::format("{},{},{:.6g},{},{},{},", csv_estimate(row.score),
                               csv_estimate(row.dscore), row.share_of_full,
                               csv_estimate(row.dlog_probability),
                               row.dbaseline ? csv_field(head.baseline) : "",
                               row.dbaseline ? csv_estimate(*row.dbaseline) : ",,");
            csv +=
                fmt::format("{:.0f},{:.0f},{:.6g},{},{},{},{},{},", row.kv_bytes, row.kv_bytes_full,
                            row.rows_kept, csv_field(head.model), head.fingerprint, head.seed,
                            csv_field(head.version), csv_field(head.commit));
            csv += row.text ? fmt::format("{},{:.6g},{:.6g}\n", csv_estimate(row.text->divergence),
                                          row.text->divergence_95, row.text->perplexity)
                            : std::string(",,,,\n");
        }
    }
    return csv;
}

}  // namespace headkv
