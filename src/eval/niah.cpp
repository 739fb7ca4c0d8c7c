#include "eval/niah.h"

#include <cassert>

#include "calibrate/metrics.h"

namespace headkv {

bool is_hit(std::string_view answer, const Needle& needle) {
    if (needle.key.empty()) return rouge1_recall(answer, needle.real_needle) > 0.5;
    return find_ignoring_case(answer, needle.key) != std::string_view::npos;
}

std::string niah_probe_id(const ProbeSpec& spec) {
    return fmt::format("needle {} length {} depth {:g}", spec.needle + 1, spec.length, spec.depth);
}

nlohmann::json to_json(const NiahProbe& probe) {
    nlohmann::json answers = nlohmann::json::array();
    for (const NiahAnswer& answer : probe.answers) {
        answers.push_back({{"method", answer.method},
                           {"rows", answer.rows},
                           {"answer", answer.text},
                           {"hit", answer.hit},
                           {"log_probability", answer.log_probability},
                           {"log_probability_key", answer.log_probability_key},
                           {"kv_bytes", answer.kv_bytes},
                           {"kv_bytes_full", answer.kv_bytes_full},
                           {"rows_kept_mean", answer.rows_kept}});
    }
    return {{"probe", niah_probe_id(probe.spec)},
            {"length", probe.spec.length},
            {"depth", probe.spec.depth},
            {"needle", probe.spec.needle},
            {"prompt_tokens", probe.prompt_tokens},
            {"seconds", probe.seconds},
            {"answers", std::move(answers)}};
}

std::optional<NiahProbe> niah_probe_from_json(const nlohmann::json& json) {
    try {
        NiahProbe probe;
        json.at("length").get_to(probe.spec.length);
        json.at("depth").get_to(probe.spec.depth);
        json.at("needle").get_to(probe.spec.needle);
        json.at("prompt_tokens").get_to(probe.prompt_tokens);
        json.at("seconds").get_to(probe.seconds);
        for (const nlohmann::json& entry : json.at("answers")) {
            NiahAnswer answer;
            entry.at("method").get_to(answer.method);
            entry.at("rows").get_to(answer.rows);
            entry.at("answer").get_to(answer.text);
            entry.at("hit").get_to(answer.hit);
            entry.at("log_probability").get_to(answer.log_probability);
            entry.at("log_probability_key").get_to(answer.log_probability_key);
            entry.at("kv_bytes").get_to(answer.kv_bytes);
            entry.at("kv_bytes_full").get_to(answer.kv_bytes_full);
            entry.at("rows_kept_mean").get_to(answer.rows_kept);
            probe.answers.push_back(std::move(answer));
        }
        return probe;
    } catch (const nlohmann::json::exception&) {
        return std::nullopt;
    }
}

std::vector<NiahRow> summarize(std::span<const NiahProbe> probes, std::uint64_t seed) {
    std::vector<NiahRow> rows;
    if (probes.empty()) return rows;
    for (std::size_t config = 0; config < probes[0].answers.size(); ++config) {
        NiahRow row;
        row.method = probes[0].answers[config].method;
        row.rows = probes[0].answers[config].rows;
        std::vector<ProbeValue> hits;
        std::vector<ProbeValue> kept;
        std::vector<ProbeValue> loss;
        std::vector<ProbeValue> loss_key;
        for (const NiahProbe& probe : probes) {
            assert(probe.answers.size() == probes[0].answers.size());
            const NiahAnswer& full = probe.answers[0];
            const NiahAnswer& mine = probe.answers[config];
            const std::int64_t needle = probe.spec.needle;
            const bool both = full.hit && mine.hit;
            hits.push_back({needle, mine.hit ? 1.0 : 0.0});
            kept.push_back({needle, both ? 1.0 : 0.0, full.hit ? 1.0 : 0.0});
            loss.push_back({needle, mine.log_probability - full.log_probability});
            loss_key.push_back({needle, mine.log_probability_key - full.log_probability_key});
            row.n += 1;
            row.full_right += full.hit ? 1 : 0;
            row.kept_right += both ? 1 : 0;
            const auto n = static_cast<double>(probes.size());
            row.kv_bytes += static_cast<double>(mine.kv_bytes) / n;
            row.kv_bytes_full += static_cast<double>(mine.kv_bytes_full) / n;
            row.rows_kept += mine.rows_kept / n;
        }
        row.score = clustered_estimate(hits, seed);
        row.kept = clustered_estimate(kept, seed);
        row.dlog_probability = clustered_estimate(loss, seed);
        row.dlog_probability_key = clustered_estimate(loss_key, seed);
        rows.push_back(std::move(row));
    }
    return rows;
}

Result<NiahRun> run_niah(
    std::span<const ProbeSpec> specs, const NiahRunner& runner,
    const std::filesystem::path& log_file, const nlohmann::json& identity,
    const std::function<bool(std::int64_t done, std::int64_t total)>& progress) {
    const LogFormat<NiahProbe> format{
        [](const NiahProbe& probe) { return niah_probe_id(probe.spec); },
        [](const NiahProbe& probe) { return to_json(probe); }, niah_probe_from_json};
    return run_logged<NiahProbe, ProbeSpec>(specs, niah_probe_id, runner, format, log_file,
                                            identity, progress);
}

}  // namespace headkv
