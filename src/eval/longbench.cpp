#include "eval/longbench.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <set>

#include "eval/metrics_longbench.h"

namespace headkv {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 4> kLoogle = {"comprehension_and_reasoning", "computation",
                                                     "multiple_information_retrieval",
                                                     "timeline_reorder"};
// Few-shot examples and code: LongBench asks them without a chat template.
constexpr std::array<std::string_view, 6> kRaw = {"lcc",    "lsht", "repobench-p",
                                                  "samsum", "trec", "triviaqa"};

template <std::size_t n>
bool among(const std::array<std::string_view, n>& names, std::string_view name) {
    return std::find(names.begin(), names.end(), name) != names.end();
}

// LongBench's name of a metric, and ours; none where it needs words of Chinese text, which no
// library at hand finds. Another way of cutting words would give figures that compare with nothing.
struct MetricEntry {
    std::string_view name;
    std::optional<Metric> metric;
};
constexpr std::array<MetricEntry, 9> kMetrics = {{{"qa_f1", Metric::f1},
                                                  {"rouge_l", Metric::rouge_l_sets},
                                                  {"classification", Metric::classification},
                                                  {"retrieval", Metric::retrieval},
                                                  {"retrieval_zh", Metric::retrieval},
                                                  {"count", Metric::count},
                                                  {"code_sim", Metric::code},
                                                  {"qa_f1_zh", std::nullopt},
                                                  {"rouge_l_zh", std::nullopt}}};

// A prompt: head, context, middle, input, tail. The input may stand before the context, or nowhere.
struct Template {
    std::string head, middle, tail;
    bool has_input = false, input_first = false;
};

struct Setting {
    std::string set, metric_name;
    std::optional<Metric> metric;
    Template prompt;
    std::int64_t max_tokens = 0;
    bool first_line = false, raw = false;
};

std::optional<Template> parse_template(const std::string& text) {
    constexpr std::string_view context = "{context}";
    constexpr std::string_view input = "{input}";
    const std::size_t c = text.find(context);
    const std::size_t i = text.find(input);
    if (c == std::string::npos) return std::nullopt;
    Template result;
    result.has_input = i != std::string::npos;
    result.input_first = result.has_input && i < c;
    if (!result.has_input) {
        result.head = text.substr(0, c);
        result.tail = text.substr(c + context.size());
        return result;
    }
    const auto [first, skip] = std::pair(std::min(c, i), c < i ? context.size() : input.size());
    const std::size_t second = std::max(c, i);
    result.head = text.substr(0, first);
    result.middle = text.substr(first + skip, second - first - skip);
    result.tail = text.substr(second + (c < i ? input.size() : context.size()));
    return result;
}

// The prompt to the letter, cut in two where compression before the question (--query-aware no)
// stops: before the line that the input stands in ("Question: ..."), or, where the input stands
// before the context or nowhere, before the instruction behind the context.
void split(const Setting& setting, const std::string& context, const std::string& input,
           TaskExample& example) {
    const Template& t = setting.prompt;
    const std::string& first = t.input_first ? input : context;
    const std::string second = t.has_input ? (t.input_first ? context : input) : "";
    if (t.has_input && !t.input_first) {
        const std::size_t line = t.middle.rfind('\n') + 1;  // 0 where there is no line break
        example.context = t.head + first + t.middle.substr(0, line);
        example.question = t.middle.substr(line) + second + t.tail;
        return;
    }
    const std::size_t line = std::min(t.tail.find_first_not_of('\n'), t.tail.size());
    example.context = t.head + first + t.middle + second + t.tail.substr(0, line);
    example.question = t.tail.substr(line);
}

// The benchmark's own settings where the file is not there.
Result<json> read_settings(const std::filesystem::path& file) {
    std::error_code none;
    if (!std::filesystem::exists(file, none)) return longbench_settings();
    std::ifstream in(file);
    json settings = json::parse(in, nullptr, false);
    if (!settings.is_object()) return bad_input("{}: is no JSON object of sets", file.string());
    return settings;
}

std::string names_of(const json& settings) {
    std::string names;
    for (const auto& [name, about] : settings.items()) names += (names.empty() ? "" : ", ") + name;
    return names;
}

Result<Setting> setting_of(const json& settings, const std::string& set, const std::string& file) {
    const auto found = settings.find(set);
    if (found == settings.end()) {
        return bad_input("{}: knows no set {}; it has {}", file, set, names_of(settings));
    }
    Setting setting;
    setting.set = set;
    setting.raw = among(kRaw, set);
    try {
        found->at("metric").get_to(setting.metric_name);
        found->at("max_new_tokens").get_to(setting.max_tokens);
        setting.first_line = found->value("first_line_only", false);
        const auto prompt = parse_template(found->at("prompt").get<std::string>());
        if (!prompt) return bad_input("{}: the prompt of {} has no {{context}}", file, set);
        setting.prompt = *prompt;
        if (const auto how = found->value("multi_answer", "max"); how != "max") {
            return bad_input("{}: {} has \"multi_answer\" {}; only max is known", file, set, how);
        }
    } catch (const json::exception& error) {
        return bad_input("{}: {}: {}", file, set, error.what());
    }
    if (setting.max_tokens <= 0) {
        return bad_input("{}: {} has \"max_new_tokens\" {}; it must be above 0", file, set,
                         setting.max_tokens);
    }
    const auto metric = std::find_if(kMetrics.begin(), kMetrics.end(), [&](const auto& entry) {
        return entry.name == setting.metric_name;
    });
    if (metric == kMetrics.end()) {
        return bad_input("{}: {} has the unknown metric {}", file, set, setting.metric_name);
    }
    setting.metric = metric->metric;
    return setting;
}

// Texts that are not empty; false if it is no list of texts.
bool read_texts(const json& row, const char* name, std::vector<std::string>& texts) {
    const auto found = row.find(name);
    if (found == row.end() || !found->is_array()) return false;
    for (const json& text : *found) {
        if (!text.is_string()) return false;
        if (!text.get_ref<const std::string&>().empty()) texts.push_back(text);
    }
    return true;
}

// What is wrong with a line, or the example.
Result<TaskExample> parse_row(const Setting& setting, const std::string& line,
                              std::int64_t number) {
    if (!setting.metric) {
        return bad_input("{} is not scored: {} counts Chinese words, and no word segmenter is here",
                         setting.set, setting.metric_name);
    }
    const json row = json::parse(line, nullptr, false);
    if (!row.is_object()) return bad_input("no JSON object");
    for (const char* name : {"context", "input"}) {
        if (!row.contains(name) || !row[name].is_string()) return bad_input("no \"{}\"", name);
    }
    TaskExample example;
    if (!read_texts(row, "answers", example.answers) || example.answers.empty()) {
        return bad_input("no \"answers\"");
    }
    if (setting.metric == Metric::classification &&
        (!read_texts(row, "all_classes", example.labels) || example.labels.empty())) {
        return bad_input("no \"all_classes\", which {} needs", setting.metric_name);
    }
    if (setting.metric == Metric::retrieval) {
        for (const std::string& answer : example.answers) {
            if (!paragraph_number(answer)) {
                return bad_input("the answer \"{}\" names no paragraph", answer);
            }
        }
    }
    const std::string context = row["context"];
    const std::string input = row["input"];
    if (context.empty()) return bad_input("\"context\" is empty");
    if (input.empty() && setting.prompt.has_input && !setting.raw) {
        return bad_input("\"input\" is empty, and {} asks with it", setting.set);
    }
    const auto id = row.find("_id");
    const bool named = id != row.end() && id->is_string();
    example.id =
        fmt::format("{}/{}", setting.set, named ? id->get<std::string>() : std::to_string(number));
    example.group = setting.set;
    example.metric = setting.metric;
    example.max_tokens = setting.max_tokens;
    example.first_line = setting.first_line;
    example.raw = setting.raw;
    example.verbatim = true;
    split(setting, context, input, example);
    return example;
}

Result<void> read_set(const std::filesystem::path& folder, const Setting& setting,
                      std::set<std::string>& ids, TaskData& data) {
    const auto file = folder / (setting.set + ".jsonl");
    if (!std::ifstream(file)) {
        return bad_input(
            "{}: is missing; it holds the set's JSON lines of {{\"context\", \"input\", "
            "\"answers\": [...]}}",
            file.string());
    }
    return each_line(file, [&](const std::string& line, std::int64_t number) {
        auto example = parse_row(setting, line, number);
        if (example && !ids.insert(example->id).second) {
            example = bad_input("id {} was there before", example->id);
        }
        if (example) {
            data.examples.push_back(std::move(*example));
        } else {
            data.skipped.push_back({file.filename().string(), number, example.error().message});
        }
    });
}

Result<TaskData> load_sets(const std::filesystem::path& folder,
                           const std::filesystem::path& settings_file,
                           std::span<const std::string> named, bool loogle) {
    const auto settings = read_settings(settings_file);
    if (!settings) return tl::unexpected(settings.error());
    std::vector<std::string> sets;  // each once, in the order named
    for (const std::string& set : named) {
        if (std::find(sets.begin(), sets.end(), set) == sets.end()) sets.push_back(set);
    }
    if (sets.empty()) {
        std::error_code none;
        for (const auto& [set, about] : settings->items()) {
            if (among(kLoogle, set) == loogle &&
                std::filesystem::exists(folder / (set + ".jsonl"), none)) {
                sets.push_back(set);
            }
        }
        if (sets.empty()) {
            return bad_input(
                "{}: has no SET.jsonl, JSON lines of {{\"context\", \"input\", \"answers\": "
                "[...]}}; sets are {}",
                folder.string(), names_of(*settings));
        }
    }
    TaskData data;
    std::set<std::string> ids;
    for (const std::string& set : sets) {
        const auto setting = setting_of(*settings, set, settings_file.string());
        if (!setting) return tl::unexpected(setting.error());
        if (auto read = read_set(folder, *setting, ids, data); !read) {
            return tl::unexpected(read.error());
        }
    }
    if (!data.examples.empty()) return data;
    if (data.skipped.empty()) return bad_input("{}: holds no example", folder.string());
    return bad_input("{}: holds no example that can be used; {}, line {}: {}", folder.string(),
                     data.skipped[0].file, data.skipped[0].line, data.skipped[0].reason);
}

}  // namespace

Result<TaskData> load_longbench(const std::filesystem::path& folder,
                                std::span<const std::string> sets) {
    return load_sets(folder, folder / "tasks.json", sets, false);
}

Result<TaskData> load_loogle(const std::filesystem::path& folder,
                             std::span<const std::string> sets) {
    std::error_code none;
    const auto own = folder / "tasks.json";
    const auto beside = folder / ".." / "longbench" / "tasks.json";
    return load_sets(folder, std::filesystem::exists(own, none) ? own : beside, sets, true);
}

}  // namespace headkv
