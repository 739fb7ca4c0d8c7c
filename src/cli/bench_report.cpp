#include "cli/bench_report.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <set>

#include "cli/common.h"
#include "cli/page.h"
#include "cli/run_report.h"

namespace headkv::cli {

namespace {

const PeerSpeed* peer_of(const BenchReport& report, const BenchResult& result) {
    const auto found = report.peer.find({result.what.depth, result.what.slots});
    return found == report.peer.end() ? nullptr : &found->second;
}

double ratio(double ours, const std::vector<double>& theirs) {
    if (theirs.empty()) return 0;
    const double other = median(theirs);
    return other > 0 ? ours / other : 0;
}

// (largest - smallest) / median, in percent.
double spread(const std::vector<double>& values) {
    if (values.empty()) return 0;
    const auto [low, high] = std::minmax_element(values.begin(), values.end());
    return 100 * (*high - *low) / median(values);
}

std::string ratio_text(double ratio) {
    return ratio > 0 ? fmt::format("{:.2f}x", ratio) : std::string("-");
}

// "+3.1% (+2.8..+3.6)": the median, and the lowest and highest of several repeats.
std::string overhead_text(const BenchResult& result) {
    if (result.overhead_all.empty()) return "-";
    const auto [low, high] = std::ranges::minmax(result.overhead_all);
    auto text = fmt::format("{:+.1f}%", 100 * result.overhead);
    if (low < high) text += fmt::format(" ({:+.1f}..{:+.1f})", 100 * low, 100 * high);
    return text;
}

// What the column says, with the names of the cases that it is of; empty where none has one.
std::string overhead_note(const BenchReport& report) {
    std::set<std::string> names;
    for (const BenchResult& result : report.results) {
        if (!result.overhead_of.empty()) names.insert(result.overhead_of);
    }
    if (names.empty()) return "";
    return fmt::format(
        "overhead: prefill beyond that of {} in the same repeat, as a share of it (lowest..highest "
        "of the repeats)",
        fmt::join(names, ", "));
}

std::string machine_line(const BenchReport& report) {
    const MachineSpeed& machine = *report.machine;
    std::string text =
        fmt::format("this machine, {} threads: reads {:.1f} GB/s, copies {:.1f} GB/s",
                    report.threads, machine.read_gb_s, machine.copy_gb_s);
    if (machine.f32_gflop_s > 0) {
        text += fmt::format(", f32 products {:.0f} GFLOP/s", machine.f32_gflop_s);
    }
    if (machine.bf16_gflop_s > 0) {
        text += fmt::format(", bf16 products {:.0f} GFLOP/s", machine.bf16_gflop_s);
    }
    return text;
}

// Share of what the machine was measured to do, in percent; 0 if it was not measured.
double share(double value, double most) { return most > 0 ? 100 * value / most : 0; }

double products_of(const MachineSpeed& machine) {
    return std::max(machine.f32_gflop_s, machine.bf16_gflop_s);
}

// --- charts

struct Line {
    std::string name;
    std::vector<std::pair<double, double>> points;  // depth, tokens a second
};

constexpr double kWidth = 1000, kHeight = 300, kLeft = 56, kBottom = 28;

// 1, 2 or 5 times a power of ten, so that about `parts` of it reach `most`.
double round_step(double most, double parts) {
    const double raw = std::max(most, 1e-9) / parts;
    const double power = std::pow(10, std::floor(std::log10(raw)));
    for (const double factor : {1.0, 2.0, 5.0}) {
        if (factor * power >= raw) return factor * power;
    }
    return 10 * power;
}

// What lies inside the picture; well-formed as XML, for it may stand alone.
std::string chart_body(const std::vector<Line>& lines) {
    double most = 0, deepest = 1;
    for (const Line& line : lines) {
        for (const auto& [depth, speed] : line.points) {
            most = std::max(most, speed);
            deepest = std::max(deepest, depth);
        }
    }
    const double step = round_step(most, 4), top = step * std::ceil(most / step);
    const auto x = [&](double depth) { return kLeft + (kWidth - kLeft - 8) * depth / deepest; };
    const auto y = [&](double speed) { return 8 + (kHeight - kBottom - 8) * (1 - speed / top); };
    std::string svg;
    for (double value = 0; value <= top * 1.001; value += step) {
        svg += fmt::format(
            "<path class='axis' d='M{:.0f} {:.1f}H{:.0f}' /><text x='{:.0f}' y='{:.1f}' "
            "text-anchor='end'>{:g}</text>",
            kLeft, y(value), kWidth - 8, kLeft - 8, y(value) + 4, value);
    }
    const double mark = round_step(deepest, 5);
    for (double depth = 0; depth <= deepest * 1.001; depth += mark) {
        svg += fmt::format("<text x='{:.1f}' y='{:.0f}' text-anchor='middle'>{:g}</text>", x(depth),
                           kHeight - 8, depth);
    }
    for (std::size_t i = 0; i < lines.size(); ++i) {
        std::string points, dots;
        for (const auto& [depth, speed] : lines[i].points) {
            points += fmt::format("{:.1f},{:.1f} ", x(depth), y(speed));
            dots += fmt::format(
                "<circle cx='{:.1f}' cy='{:.1f}' r='4' class='f{}'><title>{}: {:.1f} tok/s at {:g}"
                "</title></circle>",
                x(depth), y(speed), i % 6, escape_html(lines[i].name), speed, depth);
        }
        svg += fmt::format("<polyline class='l{}' points='{}' />{}", i % 6, points, dots);
    }
    return svg;
}

std::string line_chart(const std::vector<Line>& lines, std::string_view label) {
    std::string svg = fmt::format("<svg viewBox='0 0 {:.0f} {:.0f}' role='img' aria-label='{}'>",
                                  kWidth, kHeight, escape_html(label));
    svg += chart_body(lines) + "</svg><div class=legend>";
    for (std::size_t i = 0; i < lines.size(); ++i) {
        svg += fmt::format("<span><i class='b{}'></i>{}</span>", i % 6, escape_html(lines[i].name));
    }
    return svg + "<span>across: prompt tokens</span></div>";
}

// One line a method and number of slots, and the peer's.
std::vector<Line> lines_of(const BenchReport& report,
                           const std::function<double(const BenchResult&)>& ours,
                           const std::function<std::vector<double>(const PeerSpeed&)>& theirs) {
    std::vector<Line> lines;
    const auto line = [&](const std::string& name) -> Line& {
        const auto found = std::find_if(lines.begin(), lines.end(),
                                        [&](const Line& one) { return one.name == name; });
        return found != lines.end() ? *found : lines.emplace_back(Line{name, {}});
    };
    const auto slots_text = [](std::int64_t slots) {
        return slots > 1 ? fmt::format(", {} slots", slots) : std::string();
    };
    for (const BenchResult& result : report.results) {
        const double value = ours(result);
        if (value <= 0) continue;
        line(result.what.name + slots_text(result.what.slots))
            .points.emplace_back(static_cast<double>(result.what.depth), value);
    }
    for (const auto& [key, speed] : report.peer) {
        const auto values = theirs(speed);
        if (values.empty()) continue;
        line("llama.cpp" + slots_text(key.second))
            .points.emplace_back(static_cast<double>(key.first), median(values));
    }
    for (Line& one : lines) std::sort(one.points.begin(), one.points.end());
    return lines;
}

std::vector<Line> decode_lines(const BenchReport& report) {
    return lines_of(
        report, [](const BenchResult& r) { return r.decode_tok_s; },
        [](const PeerSpeed& peer) { return peer.decode; });
}

// `first` and `second` are ours most of the time.
std::string line_styles(std::string_view first, std::string_view second) {
    // Told apart by lightness as well as by hue.
    const std::string_view colours[] = {first, second, "#7a8a3a", "#8a5ab0", "#b03a5a", "#6d6a64"};
    std::string css;
    for (std::size_t i = 0; i < std::size(colours); ++i) {
        css += fmt::format(
            ".l{0}{{fill:none;stroke:{1};stroke-width:2.5}}.f{0}{{fill:{1}}}.b{0}{{background:{1}}"
            "}",
            i, colours[i]);
    }
    return css;
}

std::string chart_styles() {
    return line_styles("rgb(var(--a))", "rgb(var(--b))") +
           "header{margin-bottom:20px}table{border-collapse:collapse;width:100%;font-size:13px;"
           "margin-top:12px;"
           "font-variant-numeric:tabular-nums}th,td{text-align:right;padding:4px 8px;"
           "border-bottom:1px solid var(--line)}th:first-child,td:first-child{text-align:left}"
           "th{color:var(--soft);font-weight:500}.scroll{overflow-x:auto}";
}

}  // namespace

double prefill_ratio(const BenchReport& report, const BenchResult& result) {
    const PeerSpeed* peer = peer_of(report, result);
    return peer == nullptr ? 0 : ratio(result.prefill_tok_s, peer->prefill);
}

double decode_ratio(const BenchReport& report, const BenchResult& result) {
    const PeerSpeed* peer = peer_of(report, result);
    return peer == nullptr ? 0 : ratio(result.decode_tok_s, peer->decode);
}

double first_token_ms(const BenchReport& report, const BenchResult& result) {
    return result.prefill_ms + result.decode_ms / static_cast<double>(report.settings.tokens);
}

std::string bench_table(const BenchReport& report) {
    const bool vs = !report.peer.empty();
    const auto overhead = overhead_note(report);
    std::vector<std::vector<std::string>> rows = {
        {"method", "depth", "slots", "rows/head", "prefill tok/s", "+-", "first token",
         "decode tok/s", "+-", "type", "KV cache", "peak RSS"}};
    if (!overhead.empty()) rows[0].emplace_back("overhead");
    if (vs) rows[0].insert(rows[0].end(), {"prefill vs", "decode vs"});
    if (report.machine) rows[0].insert(rows[0].end(), {"GFLOP/s", "GB/s"});
    if (!report.stalls.empty()) rows[0].insert(rows[0].end(), {"longest stall", "step", "read"});
    for (const BenchResult& result : report.results) {
        std::vector<std::string> row = {result.what.name,
                                        fmt::format("{}", result.what.depth),
                                        fmt::format("{}", result.what.slots),
                                        fmt::format("{:.1f}", result.rows_kept_mean),
                                        fmt::format("{:.1f}", result.prefill_tok_s),
                                        fmt::format("{:.0f}%", spread(result.prefill_ms_all)),
                                        human_ms(first_token_ms(report, result)),
                                        fmt::format("{:.1f}", result.decode_tok_s),
                                        fmt::format("{:.0f}%", spread(result.decode_ms_all)),
                                        name_of(result.what.method.store),
                                        human_bytes(static_cast<double>(result.kv_bytes)),
                                        human_bytes(static_cast<double>(result.rss_peak_bytes))};
        if (!overhead.empty()) row.push_back(overhead_text(result));
        if (vs) {
            row.push_back(ratio_text(prefill_ratio(report, result)));
            row.push_back(ratio_text(decode_ratio(report, result)));
        }
        if (report.machine) {
            row.push_back(fmt::format("{:.0f} ({:.0f}%)", result.prefill_gflop_s,
                                      share(result.prefill_gflop_s, products_of(*report.machine))));
            row.push_back(fmt::format("{:.1f} ({:.0f}%)", result.decode_gb_s,
                                      share(result.decode_gb_s, report.machine->read_gb_s)));
        }
        if (!report.stalls.empty()) {
            const auto& stall = report.stalls[rows.size() - 1];
            row.push_back(human_ms(stall.longest_ms));
            row.push_back(human_ms(stall.step_ms));
            row.push_back(human_ms(stall.read_ms));
        }
        rows.push_back(std::move(row));
    }
    std::string text = render_table(rows, false);
    text +=
        fmt::format("medians of {}, {} threads, precision {}; +-: (largest - smallest) / median\n",
                    report.settings.repeats, report.threads, report.precision);
    if (!overhead.empty()) text += overhead + "\n";
    if (vs) text += "vs: tokens a second over llama.cpp's, full cache, in this same run\n";
    if (!report.stalls.empty()) {
        text += fmt::format(
            "longest stall: of running answers while one more prompt is read, {:g} ms asked\n",
            report.stalls[0].limit_ms);
    }
    if (report.machine) text += machine_line(report) + "\n";
    return text;
}

std::string bench_csv(const BenchReport& report) {
    std::string text =
        "depth,method,slots,rows_kept_mean,prefill_tok_s,decode_tok_s,first_token_ms,compress_ms,"
        "kv_bytes,kv_bytes_full,rss_peak_bytes,prefill_gflop_s,decode_gb_s,prefill_ratio,"
        "decode_ratio,kv_type_k,kv_type_v,stall_ms_longest,stall_ms_step,overhead,overhead_low,"
        "overhead_high,overhead_of\n";
    for (std::size_t i = 0; i < report.results.size(); ++i) {
        const BenchResult& r = report.results[i];
        const auto stall = report.stalls.empty() ? std::string(",")
                                                 : fmt::format("{},{}", report.stalls[i].longest_ms,
                                                               report.stalls[i].step_ms);
        auto overhead = std::string(",,,");
        if (!r.overhead_all.empty()) {
            const auto [low, high] = std::ranges::minmax(r.overhead_all);
            overhead = fmt::format("{},{},{},{}", r.overhead, low, high, r.overhead_of);
        }
        text += fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}\n",
                            r.what.depth, r.what.name, r.what.slots, r.rows_kept_mean,
                            r.prefill_tok_s, r.decode_tok_s, first_token_ms(report, r),
                            r.compress_ms, r.kv_bytes, r.kv_bytes_full, r.rss_peak_bytes,
                            r.prefill_gflop_s, r.decode_gb_s, prefill_ratio(report, r),
                            decode_ratio(report, r), name_of(r.what.method.store.keys),
                            name_of(r.what.method.store.values), stall, overhead);
    }
    for (const auto& [key, speed] : report.peer) {
        text += fmt::format("{},llama.cpp,{},,{},{},,,,,,,,,,,,,,,,,\n", key.first, key.second,
                            speed.prefill.empty() ? 0 : median(speed.prefill),
                            speed.decode.empty() ? 0 : median(speed.decode));
    }
    return text;
}

std::string bench_page(const BenchReport& report) {
    std::string html = page_head("headkv bench: " + report.model, chart_styles());
    html += fmt::format(
        "<header><h1>Speed against depth</h1><p>{}, {} threads, precision {}, medians of {}</p>"
        "</header>",
        escape_html(report.model), report.threads, report.precision, report.settings.repeats);
    if (report.machine) {
        html += "<div class=figures>" +
                figure(fmt::format("{:.1f} GB/s", report.machine->read_gb_s), "memory read") +
                figure(fmt::format("{:.1f} GB/s", report.machine->copy_gb_s), "memory copied") +
                figure(fmt::format("{:.0f} GFLOP/s", report.machine->f32_gflop_s), "f32 products");
        if (report.machine->bf16_gflop_s > 0) {
            html += figure(fmt::format("{:.0f} GFLOP/s", report.machine->bf16_gflop_s),
                           "bf16 products");
        }
        html += "</div>";
    }
    html +=
        "<section><h2>Decoding</h2><p>Tokens a second behind a prompt, all slots together.</p>" +
        line_chart(decode_lines(report), "decode tokens a second against depth") +
        "</section><section><h2>Reading the prompt</h2><p>Prompt tokens a second.</p>" +
        line_chart(
            lines_of(
                report, [](const BenchResult& r) { return r.what.depth > 0 ? r.prefill_tok_s : 0; },
                [](const PeerSpeed& peer) { return peer.prefill; }),
            "prefill tokens a second against depth") +
        "</section><section><h2>All figures</h2><div class=scroll><table><tr><th>method</th>"
        "<th>depth</th><th>slots</th><th>prefill tok/s</th><th>overhead</th><th>first "
        "token</th><th>decode tok/s"
        "</th><th>type</th><th>KV cache</th><th>of full</th><th>peak RSS</th></tr>";
    for (const BenchResult& r : report.results) {
        html += fmt::format(
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{:.1f}</td><td>{}</td><td>{}</td><td>{:.1f}"
            "</td><td>{}</td><td>{}</td><td>{:.1f}%</td><td>{}</td></tr>",
            escape_html(r.what.name), r.what.depth, r.what.slots, r.prefill_tok_s, overhead_text(r),
            human_ms(first_token_ms(report, r)), r.decode_tok_s, name_of(r.what.method.store),
            human_bytes(static_cast<double>(r.kv_bytes)),
            share(static_cast<double>(r.kv_bytes), static_cast<double>(r.kv_bytes_full)),
            human_bytes(static_cast<double>(r.rss_peak_bytes)));
    }
    html += "</table></div>";
    if (const auto note = overhead_note(report); !note.empty()) {
        html += "<p>" + escape_html(note) + "</p>";
    }
    return html + "</section></main></body></html>\n";
}

std::string bench_svg(const BenchReport& report) {
    const auto lines = decode_lines(report);
    constexpr double kLegend = 28;
    // No background of its own: readable on the light and on the dark one of a page.
    std::string svg = fmt::format(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {0:.0f} {1:.0f}' role='img' "
        "aria-label='decode tokens a second against prompt tokens'><style>text{{font:13px "
        "sans-serif;fill:#6d6a64}}.axis{{stroke:#6d6a6440;fill:none}}{2}@media "
        "(prefers-color-scheme:dark){{text{{fill:#b5b1a8}}}}</style>",
        kWidth, kHeight + kLegend, line_styles("#c2571a", "#1f6f8b"));
    svg += chart_body(lines);
    double x = kLeft;
    for (std::size_t i = 0; i < lines.size(); ++i) {
        svg += fmt::format("<circle cx='{:.0f}' cy='{:.0f}' r='5' class='f{}' />", x, kHeight + 14,
                           i % 6);
        svg += fmt::format("<text x='{:.0f}' y='{:.0f}'>{}</text>", x + 12, kHeight + 18,
                           escape_html(lines[i].name));
        x += 40 + 8 * static_cast<double>(lines[i].name.size());
    }
    svg += fmt::format("<text x='{:.0f}' y='{:.0f}' text-anchor='end'>{}</text>", kWidth - 8,
                       kHeight + 18, "decode tok/s after so many prompt tokens");
    return svg + "</svg>\n";
}

}  // namespace headkv::cli
