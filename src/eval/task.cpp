#include "eval/task.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <fstream>
#include <map>
#include <set>

#include "calibrate/random.h"

namespace headkv {
namespace {

using nlohmann::json;

// What is wrong with a line, or the example.
Result<TaskExample> parse_example(const std::string& line, std::int64_t number) {
    const json row = json::parse(line, nullptr, false);
    if (!row.is_object()) return bad_input("no JSON object");
    TaskExample example;
    example.id = std::to_string(number);
    const auto text = [&](const char* name, std::string& to) {
        const auto found = row.find(name);
        if (found == row.end() || found->is_null()) return true;
        if (!found->is_string()) return false;
        to = found->get<std::string>();
        return true;
    };
    for (const auto& [name, to] : {std::pair{"context", &example.context},
                                   {"question", &example.question},
                                   {"group", &example.group}}) {
        if (!text(name, *to)) return bad_input("\"{}\" is no text", name);
    }
    if (const auto id = row.find("id"); id != row.end() && !id->is_null()) {
        example.id = id->is_string() ? id->get<std::string>() : id->dump();
    }
    if (example.context.empty() && example.question.empty()) {
        return bad_input("neither context nor question");
    }
    const auto answers = row.contains("answers") ? row["answers"] : row.value("answer", json());
    if (answers.is_string()) {
        example.answers = {answers.get<std::string>()};
    } else if (answers.is_array()) {
        for (const json& answer : answers) {
            if (!answer.is_string()) return bad_input("an answer is no text");
            example.answers.push_back(answer.get<std::string>());
        }
    }
    std::erase(example.answers, "");
    if (example.answers.empty()) return bad_input("no \"answers\"");
    return example;
}

}  // namespace

Result<void> each_line(const std::filesystem::path& file,
                       const std::function<void(const std::string&, std::int64_t)>& use) {
    std::ifstream in(file);
    if (!in) return bad_input("{}: cannot be read", file.string());
    std::string line;
    for (std::int64_t number = 1; std::getline(in, line); ++number) {
        if (!line.empty() && line.back() == '\r') line.pop_back();
        if (line.find_first_not_of(" \t") != std::string::npos) use(line, number);
    }
    if (in.bad()) return bad_input("{}: reading failed", file.string());
    return {};
}

Result<TaskData> load_examples(const std::filesystem::path& file) {
    TaskData data;
    std::set<std::string> ids;
    const auto read = each_line(file, [&](const std::string& line, std::int64_t number) {
        auto example = parse_example(line, number);
        if (example && !ids.insert(example->id).second) {
            example = bad_input("id {} was there before", example->id);
        }
        if (!example) {
            data.skipped.push_back({file.filename().string(), number, example.error().message});
            return;
        }
        data.examples.push_back(std::move(*example));
    });
    if (!read) return tl::unexpected(read.error());
    if (!data.examples.empty()) return data;
    if (data.skipped.empty()) return bad_input("{}: holds no example", file.string());
    return bad_input(
        "{}, line {}: {}; wanted are lines of {{\"context\", \"question\", "
        "\"answers\": [...]}}",
        file.string(), data.skipped[0].line, data.skipped[0].reason);
}

Result<TaskData> load_babilong(const std::filesystem::path& folder,
                               std::span<const std::string> tasks,
                               std::span<const std::string> lengths) {
    const auto settings_file = folder / "tasks.json";
    std::ifstream in(settings_file);
    if (!in) {
        return bad_input("{}: is missing; it holds the prompts and labels of BABILong's tasks",
                         settings_file.string());
    }
    const json settings = json::parse(in, nullptr, false);
    TaskData data;
    try {
        for (const std::string& task : tasks) {
            if (!settings.at("tasks").contains(task)) {
                return bad_input("{}: knows no task {}", settings_file.string(), task);
            }
        }
        for (const std::string& length : lengths) {
            const auto file = folder / (length + ".jsonl");
            const auto read = each_line(file, [&](const std::string& line, std::int64_t number) {
                const json row = json::parse(line, nullptr, false);
                const auto skip = [&](std::string reason) {
                    data.skipped.push_back({file.filename().string(), number, std::move(reason)});
                };
                if (!row.is_object()) return skip("no JSON object");
                for (const char* name : {"task", "input", "question", "target"}) {
                    if (!row.contains(name) || !row[name].is_string()) {
                        return skip(fmt::format("no \"{}\"", name));
                    }
                }
                const std::string task = row["task"];
                if (std::find(tasks.begin(), tasks.end(), task) == tasks.end()) return;
                const json& about = settings.at("tasks").at(task);
                TaskExample example;
                example.id = fmt::format("{}/{}/{}", task, length, row.value("index", number));
                example.group = fmt::format("{}/{}", task, length);
                example.context = fmt::format("{}\n\n{}\n\n{}\n\n<context>\n{}\n</context>",
                                              about.at("instruction").get<std::string>(),
                                              about.at("examples").get<std::string>(),
                                              about.at("post_prompt").get<std::string>(),
                                              row["input"].get<std::string>());
                example.question = row["question"];
                while (!example.question.empty() && example.question.back() == ' ') {
                    example.question.pop_back();
                }
                example.answers = {row["target"].get<std::string>()};
                example.labels = about.at("labels").get<std::vector<std::string>>();
                data.examples.push_back(std::move(example));
            });
            if (!read) return tl::unexpected(read.error());
        }
    } catch (const json::exception& error) {
        return bad_input("{}: {}", settings_file.string(), error.what());
    }
    if (data.examples.empty()) return bad_input("{}: holds no example", folder.string());
    return data;
}

json to_json(const TaskResult& result) {
    json answers = json::array();
    for (const TaskAnswer& answer : result.answers) {
        json entry = {{"method", answer.method},
                      {"rows", answer.rows},
                      {"answer", answer.text},
                      {"score", answer.score},
                      {"log_probability", answer.log_probability},
                      {"kv_bytes", answer.kv_bytes},
                      {"kv_bytes_full", answer.kv_bytes_full},
                      {"rows_kept_mean", answer.rows_kept}};
        if (answer.archive_bytes > 0) entry["archive_bytes"] = answer.archive_bytes;
        for (const TurnAnswer& turn : answer.turns) {
            entry["turns"].push_back({{"answer", turn.text},
                                      {"score", turn.score},
                                      {"log_probability", turn.log_probability}});
        }
        answers.push_back(std::move(entry));
    }
    json entry = {{"id", result.id},
                  {"group", result.group},
                  {"prompt_tokens", result.prompt_tokens},
                  {"cut_tokens", result.cut_tokens},
                  {"seconds", result.seconds},
                  {"skipped", result.skipped},
                  {"answers", std::move(answers)}};
    if (result.depth) entry["depth"] = *result.depth;
    if (result.length) entry["length"] = *result.length;
    if (!result.cluster.empty()) entry["cluster"] = result.cluster;
    return entry;
}

std::optional<TaskResult> task_result_from_json(const json& from) {
    try {
        TaskResult result;
        from.at("id").get_to(result.id);
        from.at("group").get_to(result.group);
        from.at("prompt_tokens").get_to(result.prompt_tokens);
        from.at("cut_tokens").get_to(result.cut_tokens);
        from.at("seconds").get_to(result.seconds);
        from.at("skipped").get_to(result.skipped);
        // Not all tasks have them.
        result.cluster = from.value("cluster", std::string());
        if (from.contains("depth")) result.depth = from.at("depth").get<double>();
        if (from.contains("length")) result.length = from.at("length").get<std::int64_t>();
        for (const json& entry : from.at("answers")) {
            TaskAnswer answer;
            entry.at("method").get_to(answer.method);
            entry.at("rows").get_to(answer.rows);
            entry.at("answer").get_to(answer.text);
            entry.at("score").get_to(answer.score);
            entry.at("log_probability").get_to(answer.log_probability);
            entry.at("kv_bytes").get_to(answer.kv_bytes);
            entry.at("kv_bytes_full").get_to(answer.kv_bytes_full);
            entry.at("rows_kept_mean").get_to(answer.rows_kept);
            answer.archive_bytes = entry.value("archive_bytes", std::int64_t{0});
            for (const json& turn : entry.value("turns", json::array())) {
                answer.turns.push_back({turn.at("answer").get<std::string>(),
                                        turn.at("score").get<double>(),
                                        turn.at("log_probability").get<double>()});
            }
            result.answers.push_back(std::move(answer));
        }
        if (result.answers.empty() != !result.skipped.empty()) return std::nullopt;
        return result;
    } catch (const json::exception&) {
        return std::nullopt;
    }
}

std::vector<TaskExample> chosen_examples(std::vector<TaskExample> examples,
                                         const TaskSettings& settings) {
    Random(settings.seed).shuffle(examples);
    if (settings.limit > 0 && examples.size() > static_cast<std::size_t>(settings.limit)) {
        examples.resize(static_cast<std::size_t>(settings.limit));
    }
    return examples;
}

std::optional<TaskResult> turn_result(const TaskResult& result, std::size_t turn) {
    if (result.answers.empty() || turn >= result.answers[0].turns.size()) return std::nullopt;
    TaskResult one = result;
    const std::string name = fmt::format("turn {}", turn + 1);
    one.id += '/' + name;
    one.group += (result.group.empty() ? "" : "/") + name;
    for (TaskAnswer& answer : one.answers) {
        assert(turn < answer.turns.size());
        answer.text = answer.turns[turn].text;
        answer.score = answer.turns[turn].score;
        answer.log_probability = answer.turns[turn].log_probability;
        answer.turns.clear();
    }
    return one;
}

std::vector<TaskRow> summarize(std::span<const TaskResult> results, std::uint64_t seed) {
    std::vector<TaskRow> rows;
    std::map<std::string, std::vector<const TaskResult*>> groups;
    std::vector<const TaskResult*> all;
    for (const TaskResult& result : results) {
        if (!result.skipped.empty()) continue;
        groups[result.group].push_back(&result);
        all.push_back(&result);
    }
    if (all.empty()) return rows;
    const auto add = [&](const std::string& group, std::span<const TaskResult* const> members) {
        double full_score = 0;
        for (std::size_t config = 0; config < members[0]->answers.size(); ++config) {
            TaskRow row;
            row.group = group;
            row.method = members[0]->answers[config].method;
            row.rows = members[0]->answers[config].rows;
            std::vector<ProbeValue> scores;
            std::vector<ProbeValue> differences;
            std::vector<ProbeValue> losses;
            ClusterNumbers clusters;
            const auto n = static_cast<double>(members.size());
            for (const TaskResult* result : members) {
                assert(result->answers.size() == members[0]->answers.size());
                const TaskAnswer& full = result->answers[0];
                const TaskAnswer& mine = result->answers[config];
                const std::int64_t cluster = clusters.of(result->cluster);
                ++row.n;
                scores.push_back({cluster, mine.score});
                differences.push_back({cluster, mine.score - full.score});
                losses.push_back({cluster, mine.log_probability - full.log_probability});
                row.cut += result->cut_tokens > 0 ? 1 : 0;
                row.kv_bytes += static_cast<double>(mine.kv_bytes) / n;
                row.kv_bytes_full += static_cast<double>(mine.kv_bytes_full) / n;
                row.rows_kept += mine.rows_kept / n;
            }
            row.score = clustered_estimate(scores, seed);
            row.dscore = clustered_estimate(differences, seed);
            row.dlog_probability = clustered_estimate(losses, seed);
            if (config == 0) full_score = row.score.value;
            row.share_of_full = full_score > 0 ? row.score.value / full_score : 0;
            rows.push_back(std::move(row));
        }
    };
    add("", all);
    for (const auto& [group, members] : groups) {
        if (groups.size() > 1) add(group, members);
        for (std::size_t turn = 0;; ++turn) {
            std::vector<TaskResult> of_turn;
            for (const TaskResult* result : members) {
                if (auto one = turn_result(*result, turn)) of_turn.push_back(std::move(*one));
            }
            if (of_turn.empty()) break;
            std::vector<const TaskResult*> pointers;
            pointers.reserve(of_turn.size());
            for (const TaskResult& result : of_turn) pointers.push_back(&result);
            add(of_turn[0].group, pointers);
        }
    }
    return rows;
}

Result<TaskRun> run_task(
    std::span<const TaskExample> examples,
    const std::function<Result<TaskResult>(const TaskExample&)>& runner,
    const std::filesystem::path& log_file, const json& identity,
    const std::function<bool(std::int64_t done, std::int64_t total)>& progress) {
    const LogFormat<TaskResult> format{[](const TaskResult& result) { return result.id; },
                                       [](const TaskResult& result) { return to_json(result); },
                                       task_result_from_json};
    return run_logged<TaskResult, TaskExample>(
        examples, [](const TaskExample& example) { return example.id; }, runner, format, log_file,
        identity, progress);
}

}  // namespace headkv
