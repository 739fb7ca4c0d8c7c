// Head-score files: headkv-scores/1 (docs/formats.md) and the published HeadKV form.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <string_view>
#include <system_error>

#include "headkv/scores.h"
#include "method/json_files.h"

namespace headkv {
namespace {

using nlohmann::json;

constexpr std::string_view kFormat = "headkv-scores/1";
constexpr std::int64_t kMostHeads = 65536;  // of one layer, and layers: far above any model

Result<json> read_json(const std::filesystem::path& file) {
    std::error_code ignored;
    if (std::filesystem::is_directory(file, ignored)) {
        return bad_input("{}: is a folder, not a head-score file", file.string());
    }
    std::ifstream in(file, std::ios::binary);
    if (!in) {
        return bad_input("{}: cannot read the head scores: {}", file.string(),
                         std::strerror(errno));
    }
    const std::string text{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (in.bad()) return bad_input("{}: reading the head scores failed", file.string());
    try {
        return json::parse(text);
    } catch (const json::parse_error& error) {
        return bad_input("{}: not JSON, or cut short, at byte {} of {}: is it a head-score file?",
                         file.string(), error.byte, text.size());
    } catch (const json::exception&) {
        return bad_input("{}: holds a number that is too large to read", file.string());
    }
}

// Reads one file; every complaint names it.
class Reader {
public:
    explicit Reader(const std::filesystem::path& file) : name_(file.string()) {}

    template <class... Args>
    tl::unexpected<Error> wrong(fmt::format_string<Args...> text, Args&&... args) const {
        return bad_input("{}: {}", name_, fmt::format(text, std::forward<Args>(args)...));
    }

    // Missing optional text is empty.
    Result<std::string> text(const json& object, const char* key) const {
        const auto found = object.find(key);
        if (found == object.end()) return std::string{};
        if (!found->is_string()) return wrong("'{}' must be text", key);
        return found->get<std::string>();
    }

    Result<std::int64_t> count(const json& object, const char* key, std::int64_t least,
                               std::int64_t most) const {
        const auto found = object.find(key);
        if (found == object.end()) return wrong("'{}' is missing", key);
        if (!found->is_number_integer()) return wrong("'{}' must be a whole number", key);
        // Unsigned numbers above the signed range would wrap.
        const bool too_large = found->is_number_unsigned() &&
                               found->get<std::uint64_t>() > static_cast<std::uint64_t>(most);
        const auto value = found->get<std::int64_t>();
        if (too_large || value < least || value > most) {
            return wrong("'{}' is {}, expected {} to {}", key, found->dump(), least, most);
        }
        return value;
    }

    Result<double> score(const json& value, std::string_view where) const {
        if (!value.is_number()) return wrong("{}: not a number", where);
        const auto number = value.get<double>();
        if (!std::isfinite(number) || number < 0) {
            return wrong("{}: {} is no score, scores are 0 or more", where, value.dump());
        }
        return number;
    }

    Result<std::vector<ProbeFamily>> families(const json& object, std::int64_t most) const {
        if (!object.is_object()) return wrong("'families' must be an object");
        std::vector<ProbeFamily> families;
        for (const auto& [name, counts] : object.items()) {
            if (!counts.is_object()) return wrong("family '{}' must be an object", name);
            const auto tried = count(counts, "tried", 0, most);
            if (!tried) return tl::unexpected(tried.error());
            const auto passed = count(counts, "passed", 0, *tried);
            if (!passed) return tl::unexpected(passed.error());
            families.push_back({name, *tried, *passed});
        }
        return families;
    }

    Result<double> correlation(const json& object, const char* key) const {
        const auto found = object.find(key);
        if (found == object.end() || !found->is_number()) {
            return wrong("'reliability': '{}' must be a number", key);
        }
        const auto value = found->get<double>();
        if (!(value >= -1 && value <= 1)) {
            return wrong("'reliability': '{}' is {}, expected -1 to 1", key, found->dump());
        }
        return value;
    }

    Result<std::optional<ScoreReliability>> reliability(const json& object) const {
        if (!object.is_object()) return wrong("'reliability' must be an object");
        ScoreReliability result;
        const std::pair<const char*, double*> fields[] = {{"spearman", &result.spearman},
                                                          {"pearson", &result.pearson},
                                                          {"spearman_kv", &result.spearman_kv},
                                                          {"pearson_kv", &result.pearson_kv}};
        for (const auto& [key, target] : fields) {
            const auto value = correlation(object, key);
            if (!value) return tl::unexpected(value.error());
            *target = *value;
        }
        const auto splits = count(object, "splits", 1, std::int64_t{1} << 40);
        if (!splits) return tl::unexpected(splits.error());
        result.splits = *splits;
        return result;
    }

    // [layers][query_heads] of an array of arrays.
    Result<std::vector<double>> table(const json& rows, const char* key,
                                      const HeadShape& shape) const {
        if (!rows.is_array() || static_cast<std::int64_t>(rows.size()) != shape.layers) {
            return wrong("'{}' must be a list of {} layers, it has {}", key, shape.layers,
                         rows.is_array() ? rows.size() : 0);
        }
        std::vector<double> values;  // grows with what is there, not with what the file claims
        for (std::size_t layer = 0; layer < rows.size(); ++layer) {
            const json& row = rows[layer];
            if (!row.is_array() || static_cast<std::int64_t>(row.size()) != shape.query_heads) {
                return wrong("'{}', layer {}: expected {} query heads, found {}", key, layer,
                             shape.query_heads, row.is_array() ? row.size() : 0);
            }
            for (std::size_t head = 0; head < row.size(); ++head) {
                auto value = score(row[head], fmt::format("'{}' [{}][{}]", key, layer, head));
                if (!value) return tl::unexpected(value.error());
                values.push_back(*value);
            }
        }
        return values;
    }

private:
    std::string name_;
};

// Copies a result's value into `target`; keeps the first error.
template <class T>
void take(Result<T> result, T& target, std::optional<Error>& error) {
    if (error) return;
    if (result) {
        target = std::move(*result);
    } else {
        error = std::move(result.error());
    }
}

Result<HeadScores> read_own(const json& root, const Reader& reader) {
    HeadScores scores;
    std::optional<Error> error;
    const auto model = root.find("model");
    if (model == root.end() || !model->is_object()) return reader.wrong("'model' is missing");
    const auto data = root.find("scores");
    if (data == root.end()) return reader.wrong("'scores' is missing");

    take(reader.text(root, "kind"), scores.kind, error);
    take(reader.text(root, "created_by"), scores.created_by, error);
    take(reader.text(*model, "name"), scores.model_name, error);
    take(reader.text(*model, "architecture"), scores.architecture, error);
    take(reader.text(*model, "fingerprint"), scores.fingerprint, error);
    take(reader.count(*model, "layers", 1, kMostHeads), scores.shape.layers, error);
    take(reader.count(*model, "query_heads", 1, kMostHeads), scores.shape.query_heads, error);
    take(reader.count(*model, "kv_heads", 1, kMostHeads), scores.shape.kv_heads, error);
    if (error) return tl::unexpected(*error);
    if (scores.kind.empty()) return reader.wrong("'kind' is missing");
    const HeadShape& shape = scores.shape;
    if (shape.query_heads % shape.kv_heads != 0) {
        return reader.wrong("{} query heads do not divide over {} KV heads", shape.query_heads,
                            shape.kv_heads);
    }

    if (const auto probes = root.find("probes"); probes != root.end()) {
        if (!probes->is_object()) return reader.wrong("'probes' must be an object");
        constexpr auto kMost = std::int64_t{1} << 40;
        take(reader.count(*probes, "tried", 0, kMost), scores.probes_tried, error);
        take(reader.count(*probes, "passed", 0, kMost), scores.probes_passed, error);
        if (const auto families = probes->find("families"); families != probes->end()) {
            take(reader.families(*families, kMost), scores.families, error);
        }
    }
    if (const auto found = root.find("reliability"); found != root.end()) {
        take(reader.reliability(*found), scores.reliability, error);
    }
    if (const auto settings = root.find("settings"); settings != root.end()) {
        if (!settings->is_object()) return reader.wrong("'settings' must be an object");
        scores.settings_json = settings->dump();
    }
    take(reader.table(*data, "scores", shape), scores.mean, error);
    if (const auto errors = root.find("stderr"); errors != root.end()) {
        take(reader.table(*errors, "stderr", shape), scores.stderr_, error);
    }
    if (error) return tl::unexpected(*error);
    return scores;
}

struct HeadKey {
    std::int64_t layer = 0, head = 0;
};

// "12-3" -> layer 12, head 3.
std::optional<HeadKey> parse_key(std::string_view key) {
    HeadKey parsed;
    const char* end = key.data() + key.size();
    const auto layer = std::from_chars(key.data(), end, parsed.layer);
    if (layer.ec != std::errc{} || layer.ptr == end || *layer.ptr != '-') return std::nullopt;
    const auto head = std::from_chars(layer.ptr + 1, end, parsed.head);
    if (head.ec != std::errc{} || head.ptr != end) return std::nullopt;
    const bool in_range = parsed.layer >= 0 && parsed.layer < kMostHeads && parsed.head >= 0 &&
                          parsed.head < kMostHeads;
    return in_range ? std::optional(parsed) : std::nullopt;
}

struct Summary {
    double mean = 0, stderr_ = 0;
};

Summary summarize(const std::vector<double>& values) {
    const auto count = static_cast<double>(values.size());
    const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
    double squares = 0;
    for (const double value : values) squares += (value - mean) * (value - mean);
    return {mean, count > 1 ? std::sqrt(squares / (count - 1) / count) : 0.0};
}

// {"layer-head": [score of each probe, ...], ...}: neither model nor kind is named in it.
Result<HeadScores> read_published(const json& root, const Reader& reader) {
    HeadScores scores;
    HeadShape& shape = scores.shape;
    for (const auto& [key, value] : root.items()) {
        const auto parsed = parse_key(key);
        if (!parsed) {
            return reader.wrong(
                "neither {} (no 'format') nor the published form (key '{}' is not 'layer-head')",
                kFormat, key.substr(0, 40));
        }
        shape.layers = std::max(shape.layers, parsed->layer + 1);
        shape.query_heads = std::max(shape.query_heads, parsed->head + 1);
    }
    const auto expected = static_cast<std::size_t>(shape.layers * shape.query_heads);
    if (expected == 0) return reader.wrong("holds no heads");
    if (root.size() != expected) {
        return reader.wrong("{} heads for {} layers of {} query heads: {} are missing", root.size(),
                            shape.layers, shape.query_heads, expected - root.size());
    }

    scores.mean.resize(expected);
    scores.stderr_.resize(expected);
    std::vector<double> values;
    std::vector<char> seen(expected, 0);  // "1-2" and "01-2" are the same head
    for (const auto& [key, list] : root.items()) {
        const auto parsed = parse_key(key);
        const auto at = static_cast<std::size_t>(parsed->layer * shape.query_heads + parsed->head);
        if (seen[at]++ != 0) return reader.wrong("head '{}' is there twice", key);
        if (!list.is_array() || list.empty()) {
            return reader.wrong("head '{}': expected a list of scores", key);
        }
        values.clear();
        const std::string where = fmt::format("head '{}'", key);
        for (const json& item : list) {
            auto value = reader.score(item, where);
            if (!value) return tl::unexpected(value.error());
            values.push_back(*value);
        }
        const Summary summary = summarize(values);
        scores.mean[at] = summary.mean;
        scores.stderr_[at] = summary.stderr_;
        scores.probes_passed =
            std::max(scores.probes_passed, static_cast<std::int64_t>(values.size()));
    }
    return scores;
}

// The published files tell their kind by name only: *_retrieval_heads, *_retrieval_reasoning_heads.
std::string kind_of_published(const std::filesystem::path& file) {
    const std::string name = file.filename().string();
    if (name.find("retrieval_reasoning") != std::string::npos) return "r2";
    return name.find("retrieval") != std::string::npos ? "r" : "";
}

Result<HeadScores> parse_scores(const json& root, const std::filesystem::path& file) {
    const Reader reader(file);
    if (!root.is_object()) return reader.wrong("a head-score file is a JSON object");
    const auto format = root.find("format");
    if (format != root.end()) {
        if (*format == kFormat) return read_own(root, reader);
        return reader.wrong("format {} is unknown, this program reads {}",
                            format->dump(-1, ' ', false, json::error_handler_t::replace), kFormat);
    }
    auto scores = read_published(root, reader);
    if (scores) scores->kind = kind_of_published(file);
    return scores;
}

// One layer a line, so that a person can read the file and a diff shows what changed.
std::string table_text(const std::vector<double>& values, const HeadShape& shape) {
    std::string text = "[";
    for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
        const auto first = values.begin() + layer * shape.query_heads;
        text += layer == 0 ? "\n    " : ",\n    ";
        text += json(std::vector<double>(first, first + shape.query_heads)).dump();
    }
    return text + "\n  ]";
}

std::string quoted(const std::string& text) {
    return json(text).dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string probes_text(const HeadScores& scores) {
    json probes = {{"tried", scores.probes_tried}, {"passed", scores.probes_passed}};
    for (const ProbeFamily& family : scores.families) {
        probes["families"][family.name] = {{"tried", family.tried}, {"passed", family.passed}};
    }
    return probes.dump(-1, ' ', false, json::error_handler_t::replace);
}

std::string reliability_text(const ScoreReliability& reliability) {
    return json{{"spearman", reliability.spearman},
                {"pearson", reliability.pearson},
                {"spearman_kv", reliability.spearman_kv},
                {"pearson_kv", reliability.pearson_kv},
                {"splits", reliability.splits}}
        .dump();
}

std::string file_text(const HeadScores& scores, const json& settings) {
    const HeadShape& shape = scores.shape;
    std::string text = fmt::format(
        "{{\n  \"format\": {},\n  \"kind\": {},\n  \"model\": {{\"name\": {}, \"architecture\": "
        "{}, "
        "\"layers\": {}, \"query_heads\": {}, \"kv_heads\": {}, \"fingerprint\": {}}},\n"
        "  \"probes\": {},\n  \"settings\": {},\n  \"created_by\": {},\n{}  \"scores\": {}",
        quoted(std::string(kFormat)), quoted(scores.kind), quoted(scores.model_name),
        quoted(scores.architecture), shape.layers, shape.query_heads, shape.kv_heads,
        quoted(scores.fingerprint), probes_text(scores),
        settings.dump(-1, ' ', false, json::error_handler_t::replace), quoted(scores.created_by),
        scores.reliability
            ? fmt::format("  \"reliability\": {},\n", reliability_text(*scores.reliability))
            : "",
        table_text(scores.mean, shape));
    if (!scores.stderr_.empty()) {
        text += fmt::format(",\n  \"stderr\": {}", table_text(scores.stderr_, shape));
    }
    return text + "\n}\n";
}

// Write, flush to the disk, rename: a reader sees the old file or the new one, never a part.
Result<void> replace_file(const std::filesystem::path& file, const std::string& text) {
    auto temporary = file;
    temporary += fmt::format(".tmp{}", ::getpid());
    const auto give_up = [&](int code) {
        std::error_code ignored;
        std::filesystem::remove(temporary, ignored);
        return bad_input("{}: cannot write the head scores: {}", file.string(),
                         std::generic_category().message(code));
    };
    const int handle = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (handle < 0) return give_up(errno);
    std::size_t written = 0;
    int code = 0;
    while (written < text.size() && code == 0) {
        const auto count = ::write(handle, text.data() + written, text.size() - written);
        if (count >= 0) {
            written += static_cast<std::size_t>(count);
        } else if (errno != EINTR) {
            code = errno;
        }
    }
    if (code == 0 && ::fsync(handle) != 0 && errno != EINVAL) code = errno;
    if (::close(handle) != 0 && code == 0) code = errno;
    if (code != 0) return give_up(code);
    std::error_code renamed;
    std::filesystem::rename(temporary, file, renamed);
    if (renamed) return give_up(renamed.value());
    return {};
}

std::string shape_text(const HeadShape& shape) {
    const std::string kv = shape.kv_heads > 0 ? fmt::format(", {} KV heads", shape.kv_heads) : "";
    return fmt::format("{} layers of {} query heads{}", shape.layers, shape.query_heads, kv);
}

bool is_score(double value) { return std::isfinite(value) && value >= 0; }

// A table that can be stored and used: right size, nothing negative or unbounded.
bool is_table(const std::vector<double>& values, const HeadShape& shape) {
    return shape.layers > 0 && shape.query_heads > 0 &&
           static_cast<std::int64_t>(values.size()) == shape.layers * shape.query_heads &&
           std::all_of(values.begin(), values.end(), is_score);
}

}  // namespace

Result<HeadScores> load_head_scores(const std::filesystem::path& file) {
    const auto root = read_json(file);
    if (!root) return tl::unexpected(root.error());
    return parse_scores(*root, file);
}

Result<void> save_head_scores(const HeadScores& scores, const std::filesystem::path& file) {
    const bool errors_fit = scores.stderr_.empty() || is_table(scores.stderr_, scores.shape);
    if (!is_table(scores.mean, scores.shape) || !errors_fit) {
        return bad_input("{}: these head scores have wrong counts, or negative or infinite values",
                         file.string());
    }
    const json settings = json::parse(scores.settings_json, nullptr, false);
    if (!settings.is_object()) {
        return bad_input("{}: the settings of head scores must be a JSON object", file.string());
    }
    return replace_file(file, file_text(scores, settings));
}

Result<void> check_head_scores(const HeadScores& scores, const HeadShape& shape,
                               const std::string& fingerprint, bool force) {
    const bool same_kv = scores.shape.kv_heads == 0 || scores.shape.kv_heads == shape.kv_heads;
    if (scores.shape.layers != shape.layers || scores.shape.query_heads != shape.query_heads ||
        !same_kv) {
        return bad_input("the head scores are of another model: they have {}, the model has {}",
                         shape_text(scores.shape), shape_text(shape));
    }
    if (!is_table(scores.mean, scores.shape)) {
        return bad_input("the head scores have wrong counts, or negative or infinite values");
    }
    const bool comparable = !scores.fingerprint.empty() && !fingerprint.empty();
    if (comparable && !force && scores.fingerprint != fingerprint) {
        return bad_input(
            "the head scores were measured on another model ({}, fingerprint {}; this one is {}): "
            "calibrate this model, or insist with --force-scores",
            scores.model_name.empty() ? "unnamed" : scores.model_name, scores.fingerprint,
            fingerprint);
    }
    return {};
}

Result<HeadScores> find_head_scores(const std::vector<std::filesystem::path>& folders,
                                    const std::string& fingerprint, const std::string& kind) {
    std::string looked_in;
    for (const auto& folder : folders) {
        looked_in += (looked_in.empty() ? "" : ", ") + folder.string();
        for (const auto& file : json_files_of(folder)) {
            // A folder may hold other files too: what is no score file is passed over.
            auto scores = load_head_scores(file);
            if (scores && !fingerprint.empty() && scores->fingerprint == fingerprint &&
                scores->kind == kind) {
                return scores;
            }
        }
    }
    return bad_input(
        "no head scores of kind {} for this model (fingerprint {}) in {}: measure them with "
        "'headkv calibrate --kind {}', or name a file with --heads",
        kind, fingerprint, looked_in.empty() ? "any folder" : looked_in, kind);
}

}  // namespace headkv
