#include "eval/curves.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace headkv {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kFormat = "headkv-curves/1", kResults = "headkv-eval/1";

// Bits of a value as stored; 0: unknown.
double bits_of(const std::string& type) {
    if (type == "f16") return 16;
    if (type == "q8_0") return 8.5;
    return type == "q4_0" ? 4.5 : 0;
}

bool has_numbers(const json& result, std::initializer_list<const char*> names) {
    return std::ranges::all_of(names, [&](const char* name) {
        const auto at = result.find(name);
        return at != result.end() && at->is_number();
    });
}

std::string text_of(const json& object, const char* name) {
    const auto at = object.find(name);
    return at != object.end() && at->is_string() ? at->get<std::string>() : std::string();
}

// Adds one result of a task where it is one that counts.
void add_result(const json& result, Curves& curves) {
    if (!result.is_object() || !text_of(result, "group").empty()) return;
    if (!has_numbers(result, {"rows", "dlogprob", "share_of_full", "n", "kv_bytes", "kv_bytes_full",
                              "rows_kept_mean"})) {
        return;
    }
    const auto interval = result.find("dlogprob_interval");
    if (interval == result.end() || !interval->is_array() || interval->size() != 2 ||
        !(*interval)[0].is_number() || !(*interval)[1].is_number()) {
        return;
    }
    const auto method = text_of(result, "method");
    const double bits = (bits_of(text_of(result, "type_k")) + bits_of(text_of(result, "type_v")));
    const double full = result["kv_bytes_full"].get<double>();
    const bool whole = result["rows"].get<double>() == 0;
    // The reference itself says nothing of a budget, and a file of scores nothing on another
    // machine.
    if (method.find(":heads=") != std::string::npos) return;
    if (method.find(":share=") != std::string::npos) return;
    if (method.empty() || bits == 0 || full <= 0 || (whole && bits == 32)) return;
    const auto task = text_of(result, "task");
    auto curve = std::ranges::find_if(curves.curves, [&](const Curve& other) {
        return other.method == method && other.task == task;
    });
    if (curve == curves.curves.end()) {
        curves.curves.push_back({.method = method,
                                 .task = task,
                                 .options = without_budget(result.value("options", json())),
                                 .whole = whole,
                                 .points = {}});
        curve = std::prev(curves.curves.end());
    }
    // A mean over examples is 32.00000000000002 where each had 32, and 32 would be too few for it.
    const double rows = std::round(result["rows_kept_mean"].get<double>() * 1e6) / 1e6;
    curve->points.push_back({.rows = rows * bits / 32,
                             .share = result["kv_bytes"].get<double>() / full,
                             .dlogprob = result["dlogprob"].get<double>(),
                             .low = (*interval)[0].get<double>(),
                             .high = (*interval)[1].get<double>(),
                             .share_of_full = result["share_of_full"].get<double>(),
                             .examples = result["n"].get<std::int64_t>()});
}

void sort_points(Curves& curves) {
    for (Curve& curve : curves.curves) std::ranges::sort(curve.points, {}, &CurvePoint::rows);
}

Result<Curves> curves_of_json(const json& text) {
    Curves curves{
        text_of(text, "model"), text_of(text, "fingerprint"), text_of(text, "commit"), {}};
    const auto list = text.find("curves");
    if (list == text.end() || !list->is_array() || curves.fingerprint.empty()) {
        return bad_input("it lacks 'fingerprint' or 'curves'");
    }
    for (const json& one : *list) {
        const auto points = one.find("points");
        if (!one.is_object() || text_of(one, "method").empty() || points == one.end() ||
            !points->is_array() || points->empty()) {
            return bad_input("a curve lacks 'method' or 'points'");
        }
        Curve curve{.method = text_of(one, "method"),
                    .task = text_of(one, "task"),
                    .options = one.value("options", json()),
                    .whole = one.value("whole", false),
                    .points = {}};
        for (const json& point : *points) {
            if (!point.is_object() || !has_numbers(point, {"rows", "share", "dlogprob", "low",
                                                           "high", "share_of_full", "n"})) {
                return bad_input("a point of {} on {} lacks a number", curve.method, curve.task);
            }
            curve.points.push_back({point["rows"], point["share"], point["dlogprob"], point["low"],
                                    point["high"], point["share_of_full"],
                                    point["n"].get<std::int64_t>()});
        }
        curves.curves.push_back(std::move(curve));
    }
    sort_points(curves);
    return curves;
}

// Between two points of a curve, `part` of the way from a to b.
CurvePoint between(const CurvePoint& a, const CurvePoint& b, double part) {
    const auto mix = [part](double x, double y) { return x + (y - x) * part; };
    return {.rows = mix(a.rows, b.rows),
            .share = mix(a.share, b.share),
            .dlogprob = mix(a.dlogprob, b.dlogprob),
            .low = mix(a.low, b.low),
            .high = mix(a.high, b.high),
            .share_of_full = mix(a.share_of_full, b.share_of_full),
            .examples = std::min(a.examples, b.examples)};
}

struct Read {
    CurvePoint point;
    double low = 0, high = 0;  // rows of the measurements around it
    bool beyond = false;
};

// Nothing where the budget is below what was measured, or the whole does not fit.
std::optional<Read> read_curve(const Curve& curve, double rows, double prompt) {
    const auto& points = curve.points;
    if (curve.whole) {
        const auto& only = points.back();
        if (rows < only.share * prompt) return std::nullopt;
        return Read{only, rows, rows, false};
    }
    if (rows < points.front().rows) return std::nullopt;
    const auto above =
        std::ranges::find_if(points, [&](const CurvePoint& point) { return point.rows >= rows; });
    if (above == points.end()) return Read{points.back(), points.back().rows, rows, true};
    if (above == points.begin()) return Read{*above, above->rows, above->rows, false};
    const auto& below = *std::prev(above);
    const double part = std::log(rows / below.rows) / std::log(above->rows / below.rows);
    return Read{between(below, *above, part), below.rows, above->rows, false};
}

}  // namespace

json without_budget(json options) {
    if (options.is_object()) {
        options.erase("rows");
        options.erase("beta");
    }
    return options;
}

Result<Curves> curves_of_results(const json& results) {
    if (!results.is_object() || text_of(results, "format") != kResults) {
        return bad_input("it is no results.json of `headkv eval` (format {})", kResults);
    }
    std::vector<const json*> tasks;
    const auto several = results.find("tasks");
    if (several != results.end() && several->is_array()) {
        for (const json& task : *several) tasks.push_back(&task);
    } else {
        tasks.push_back(&results);
    }
    Curves all;
    for (const json* task : tasks) {
        Curves curves{
            text_of(*task, "model"), text_of(*task, "fingerprint"), text_of(*task, "commit"), {}};
        const auto list = task->find("results");
        if (list != task->end() && list->is_array()) {
            for (const json& result : *list) add_result(result, curves);
        }
        if (auto added = add_curves(all, std::move(curves)); !added) {
            return tl::unexpected(added.error());
        }
    }
    if (all.curves.empty()) {
        return bad_input("it has no result of a whole task with a log-probability");
    }
    sort_points(all);
    return all;
}

Result<void> add_curves(Curves& into, Curves more) {
    if (into.fingerprint.empty()) {
        into = std::move(more);
        return {};
    }
    if (more.fingerprint != into.fingerprint) {
        return bad_input(
            "results of {} (fingerprint {}) beside those of {} ({}): curves are of one model",
            more.model, more.fingerprint, into.model, into.fingerprint);
    }
    for (Curve& curve : more.curves) {
        std::erase_if(into.curves, [&](const Curve& old) {
            return old.method == curve.method && old.task == curve.task;
        });
        into.curves.push_back(std::move(curve));
    }
    into.commit = std::move(more.commit);
    return {};
}

ordered_json curves_json(const Curves& curves) {
    ordered_json list = ordered_json::array();
    for (const Curve& curve : curves.curves) {
        ordered_json points = ordered_json::array();
        for (const CurvePoint& point : curve.points) {
            points.push_back({{"rows", point.rows},
                              {"share", point.share},
                              {"dlogprob", point.dlogprob},
                              {"low", point.low},
                              {"high", point.high},
                              {"share_of_full", point.share_of_full},
                              {"n", point.examples}});
        }
        list.push_back({{"method", curve.method},
                        {"task", curve.task},
                        {"options", curve.options},
                        {"whole", curve.whole},
                        {"points", std::move(points)}});
    }
    return {{"format", kFormat},
            {"model", curves.model},
            {"fingerprint", curves.fingerprint},
            {"commit", curves.commit},
            {"curves", std::move(list)}};
}

Result<Curves> load_curves(const std::filesystem::path& file) {
    std::ifstream stream(file);
    if (!stream) return bad_input("{}: cannot be read", file.string());
    const json text = json::parse(stream, nullptr, false);
    if (text.is_discarded() || !text.is_object()) {
        return bad_input("{}: is no JSON object; it may be cut off", file.string());
    }
    auto curves =
        text_of(text, "format") == kFormat ? curves_of_json(text) : curves_of_results(text);
    if (!curves) return bad_input("{}: {}", file.string(), curves.error().message);
    return curves;
}

std::vector<Expectation> expectations(const Curves& curves, double rows,
                                      std::int64_t prompt_tokens) {
    std::set<std::string> tasks;
    std::map<std::string, std::vector<const Curve*>> by_method;
    for (const Curve& curve : curves.curves) {
        tasks.insert(curve.task);
        by_method[curve.method].push_back(&curve);
    }
    std::vector<Expectation> found;
    for (const auto& [method, all] : by_method) {
        if (all.size() != tasks.size()) continue;
        Expectation mean{.method = method, .options = all.front()->options};
        bool known = true;
        for (const Curve* curve : all) {
            const auto read = read_curve(*curve, rows, static_cast<double>(prompt_tokens));
            if (!read) {
                known = false;
                break;
            }
            const auto part = 1.0 / static_cast<double>(all.size());
            mean.dlogprob += read->point.dlogprob * part;
            mean.low += read->point.low * part;
            mean.high += read->point.high * part;
            mean.share_of_full += read->point.share_of_full * part;
            mean.examples += read->point.examples;
            mean.measured_low = std::max(mean.measured_low, read->low);
            mean.measured_high = std::max(mean.measured_high, read->high);
            mean.beyond = mean.beyond || read->beyond;
        }
        if (known) found.push_back(std::move(mean));
    }
    // By name already: equal figures stay in that order.
    std::ranges::stable_sort(found, [](const Expectation& a, const Expectation& b) {
        return std::pair(-a.dlogprob, -a.share_of_full) < std::pair(-b.dlogprob, -b.share_of_full);
    });
    return found;
}

}  // namespace headkv
