#include "cli/run_report.h"

#include <utf8proc.h>

#include <algorithm>
#include <cmath>

#include "cli/common.h"

namespace headkv::cli {

namespace {

using Json = nlohmann::ordered_json;

double share_of_full(const SequenceInfo& info) {
    return info.full_bytes > 0
               ? static_cast<double>(info.plan_bytes) / static_cast<double>(info.full_bytes)
               : 0;
}

std::string bytes_text(std::int64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

std::string stop_text(const std::string& reason) {
    if (reason == "end") return "the model ended it";
    if (reason == "stop") return "ended by a stop text";
    if (reason == "length") return "cut at -n";
    return reason;
}

// Calls visit(code point, bytes) for each character; invalid bytes count as one character each.
template <class Visit>
void each_character(std::string_view text, const Visit& visit) {
    while (!text.empty()) {
        utf8proc_int32_t point = 0;
        const auto length = utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &point);
        const std::size_t bytes = length > 0 ? static_cast<std::size_t>(length) : 1;
        visit(length > 0 ? point : 0xFFFD, text.substr(0, bytes));
        text.remove_prefix(bytes);
    }
}

std::string pad(const std::string& text, std::size_t width, bool right) {
    const std::size_t used = display_width(text);
    const std::string space(width > used ? width - used : 0, ' ');
    return right ? space + text : text + space;
}

std::string trimmed(std::string_view text) {
    const auto first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos) return {};
    return std::string(text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1));
}

std::string archive_text(const SequenceInfo& info) {
    return info.archive_bytes > 0
               ? fmt::format("; {} of archive in host memory", bytes_text(info.archive_bytes))
               : "";
}

std::string answer_line(const Generation& answer) {
    return fmt::format("answer   {} tokens in {} ({:.1f} tok/s), {}\n", answer.tokens.size(),
                       human_ms(answer.decode_ms), decode_speed(answer),
                       stop_text(answer.stop_reason));
}

std::string against_full(const MethodRun& full, const MethodRun& run) {
    const double smaller = run.info.plan_bytes > 0 ? static_cast<double>(full.info.plan_bytes) /
                                                         static_cast<double>(run.info.plan_bytes)
                                                   : 0;
    const double slow = decode_speed(full.generation);
    const double faster = slow > 0 ? decode_speed(run.generation) / slow : 0;
    const bool same = trimmed(full.generation.text) == trimmed(run.generation.text);
    return fmt::format(
        "{} against full: a cache {:.1f} times smaller, decoding {:.1f} times as "
        "fast, {}\n",
        run.title, smaller, faster, same ? "the same answer" : "other words");
}

}  // namespace

std::string render_table(const std::vector<std::vector<std::string>>& rows, bool text_last) {
    std::vector<std::size_t> widths(rows[0].size(), 0);
    for (const auto& row : rows) {
        for (std::size_t i = 0; i < row.size(); ++i) {
            widths[i] = std::max(widths[i], display_width(row[i]));
        }
    }
    std::string text;
    for (std::size_t r = 0; r < rows.size(); ++r) {
        for (std::size_t i = 0; i < widths.size(); ++i) {
            const bool last = i + 1 == widths.size();
            const bool words = i == 0 || (last && text_last);
            text += pad(rows[r][i], last && text_last ? 0 : widths[i], !words);
            text += i + 1 == widths.size() ? "\n" : "  ";
        }
        if (r > 0) continue;
        for (std::size_t i = 0; i < widths.size(); ++i) {
            for (std::size_t j = 0; j < widths[i]; ++j) text += "─";
            text += i + 1 == widths.size() ? "\n" : "  ";
        }
    }
    return text;
}

std::int64_t decode_steps(const Generation& generation) {
    const auto tokens = static_cast<std::int64_t>(generation.tokens.size());
    return generation.stop_reason == "end" ? tokens : std::max<std::int64_t>(tokens - 1, 0);
}

double decode_speed(const Generation& generation) {
    return per_second(static_cast<double>(decode_steps(generation)), generation.decode_ms);
}

Json number(double value) {
    constexpr double exact = 9e15;  // whole numbers that a double holds
    if (std::abs(value) < exact && value == std::floor(value)) {
        return static_cast<std::int64_t>(value);
    }
    return value;
}

std::string dump(const Json& json, int indent) {
    return json.dump(indent, ' ', false, Json::error_handler_t::replace) + "\n";
}

namespace {

Json placement_json(std::span<const Placement> places) {
    auto json = Json::array();
    for (const Placement& place : places) {
        json.push_back({{"device", place.device},
                        {"first_layer", place.first_layer},
                        {"layers", place.layers},
                        {"weight_bytes", place.weight_bytes},
                        {"kv_bytes", place.kv_bytes},
                        {"peak_bytes", place.peak_bytes}});
    }
    return json;
}

// A line a device, where there are several.
std::string placement_text(std::span<const Placement> places) {
    std::string text;
    for (const Placement& place : places) {
        if (places.size() < 2) break;
        std::string what = &place == &places.front() ? "embedding, " : "";
        what += place.layers == 0 ? std::string("no layers")
                                  : fmt::format("layers {} to {}", place.first_layer,
                                                place.first_layer + place.layers - 1);
        if (&place == &places.back()) what += ", output";
        text += fmt::format("placed   {}: {}; weights {}, cache {}, peak {}\n", place.device, what,
                            bytes_text(place.weight_bytes), bytes_text(place.kv_bytes),
                            bytes_text(place.peak_bytes));
    }
    return text;
}

}  // namespace

Json run_json(const RunContext& context, const MethodRun& run) {
    const SequenceInfo& info = run.info;
    const Generation& answer = run.generation;
    return {{"model", context.model},
            {"method", info.method},
            {"title", run.title},
            {"prompt_tokens", context.prompt_tokens},
            {"prompt_readings", context.readings},
            {"generated_tokens", answer.tokens.size()},
            {"token_ids", answer.tokens},
            {"text", answer.text},
            {"stop_reason", answer.stop_reason},
            {"kv",
             {{"rows_budget", number(info.rows_budget)},
              {"rows_kept_mean", number(info.rows_kept_mean)},
              {"bytes", info.plan_bytes},
              {"bytes_full", info.full_bytes},
              {"bytes_peak_prefill", context.scratch_bytes},
              {"bytes_held", info.held_bytes},
              {"bytes_allocated", info.allocated_bytes},
              {"bytes_archive", info.archive_bytes},
              {"share_of_full", share_of_full(info)},
              {"runs_as_full", info.runs_as_full},
              {"type_k", name_of(info.store.keys)},
              {"type_v", name_of(info.store.values)}}},
            {"time_ms",
             {{"load", context.load_ms},
              {"prefill", context.prefill_ms},
              {"compress", context.compress_ms},
              {"decode", answer.decode_ms}}},
            {"speed",
             {{"prefill_tok_s",
               per_second(static_cast<double>(context.prompt_tokens), context.prefill_ms)},
              {"decode_tok_s", decode_speed(answer)}}},
            {"memory",
             {{"rss_peak_bytes", peak_resident_bytes()},
              {"device_peak_bytes", context.device_peak_bytes},
              {"weight_bytes", context.weight_bytes}}},
            {"device", context.device},
            {"placement", placement_json(run.places)},
            {"version", version()}};
}

std::string run_statistics(const RunContext& context, const MethodRun& run) {
    const SequenceInfo& info = run.info;
    const Generation& answer = run.generation;
    const double compress_share =
        context.prefill_ms > 0 ? 100 * context.compress_ms / context.prefill_ms : 0;
    std::string text;
    text += fmt::format(
        "prompt   {} tokens, read {} in {} ({:.0f} tok/s), compression {:.1f}% of it\n",
        context.prompt_tokens, times(context.readings), human_ms(context.prefill_ms),
        per_second(static_cast<double>(context.prompt_tokens), context.prefill_ms), compress_share);
    text += answer_line(answer);
    text += fmt::format("cache    {}: {:.1f} rows per head, {} in {}, {:.1f}% of the full {}{}{}\n",
                        info.method, info.rows_kept_mean, bytes_text(info.plan_bytes),
                        name_of(info.store), 100 * share_of_full(info), bytes_text(info.full_bytes),
                        info.store == StoreTypes() ? "" : " in f16", archive_text(info));
    if (context.device_peak_bytes > 0) {
        text +=
            fmt::format("device   peak {} in use; {} allocated for the cache and its reserve\n",
                        bytes_text(context.device_peak_bytes), bytes_text(info.allocated_bytes));
    }
    text += placement_text(run.places);
    text += fmt::format("memory   peak {} resident; weights {}, prefill scratch {}, loaded in {}\n",
                        bytes_text(peak_resident_bytes()), bytes_text(context.weight_bytes),
                        bytes_text(context.scratch_bytes), human_ms(context.load_ms));
    return text;
}

std::string turn_statistics(const MethodRun& run) {
    return answer_line(run.generation) +
           fmt::format("cache    {}: {} tokens so far, {} of {} rows held{}\n", run.info.method,
                       run.info.tokens, bytes_text(run.info.held_bytes), name_of(run.info.store),
                       archive_text(run.info));
}

std::string comparison_table(const std::vector<MethodRun>& runs) {
    std::vector<std::vector<std::string>> rows = {
        {"method", "rows/head", "type", "KV cache", "of full", "decode", "answer"}};
    for (const MethodRun& run : runs) {
        rows.push_back({run.title, fmt::format("{:.1f}", run.info.rows_kept_mean),
                        name_of(run.info.store), bytes_text(run.info.plan_bytes),
                        fmt::format("{:.1f}%", 100 * share_of_full(run.info)),
                        fmt::format("{:.1f} tok/s", decode_speed(run.generation)),
                        abbreviate(run.generation.text, 60)});
    }
    std::string text = render_table(rows, true);
    const auto full = std::find_if(runs.begin(), runs.end(), [](const MethodRun& run) {
        return run.info.method == "full" && run.info.store == StoreTypes();
    });
    if (full == runs.end()) return text;
    for (const MethodRun& run : runs) {
        if (&run != &*full) text += against_full(*full, run);
    }
    return text;
}

std::size_t display_width(std::string_view text) {
    std::size_t width = 0;
    each_character(text, [&](utf8proc_int32_t point, std::string_view) {
        width += static_cast<std::size_t>(std::max(utf8proc_charwidth(point), 0));
    });
    return width;
}

std::string abbreviate(std::string_view text, std::size_t width) {
    std::string line;
    std::string cut;  // what fits together with the dots
    std::size_t used = 0;
    bool overflow = false;
    const std::string whole = trimmed(text);
    each_character(whole, [&](utf8proc_int32_t point, std::string_view bytes) {
        const bool control = point < 0x20 || (point >= 0x7F && point < 0xA0);
        const auto columns =
            control ? 1 : static_cast<std::size_t>(std::max(utf8proc_charwidth(point), 0));
        if (overflow || used + columns > width) {
            overflow = true;
            return;
        }
        line += control ? " " : std::string(bytes);
        used += columns;
        if (used + 3 <= width) cut = line;
    });
    return overflow ? cut + "..." : line;
}

}  // namespace headkv::cli
