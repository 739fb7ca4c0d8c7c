#include "cli/report_chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "cli/page.h"

namespace headkv::cli {
namespace {

// Drawn at the width of a small telephone, so that letters stay letters there.
constexpr double kWidth = 360, kHeight = 236, kLeft = 44, kRight = 352, kTop = 10, kBottom = 192;
constexpr std::size_t kColours = 6;

// Told apart by lightness, marker and dashes as well as by hue (after Okabe and Ito).
constexpr std::string_view kLight[kColours] = {"#0072b2", "#d55e00", "#00805d",
                                               "#a8518a", "#8f6b00", "#5a5752"};
constexpr std::string_view kDark[kColours] = {"#56b4e9", "#f28a3c", "#2bc49a",
                                              "#e39cc6", "#e6c229", "#c4c0b8"};
constexpr std::string_view kDashes[kColours] = {"", "7 3", "2 3", "9 3 2 3", "12 4", "4 4"};

// 1, 2 or 5 times a power of ten, so that about `parts` of it reach `most`.
double round_step(double most, double parts) {
    const double raw = std::max(most, 1e-6) / parts;
    const double power = std::pow(10, std::floor(std::log10(raw)));
    for (const double factor : {1.0, 2.0, 5.0}) {
        if (factor * power >= raw * 0.999) return factor * power;
    }
    return 10 * power;
}

struct Axis {
    double low = 0, high = 1, step = 0.25;
    double at(double value) const {
        return kBottom - (kBottom - kTop) * (value - low) / (high - low);
    }
};

Axis axis_of(const BudgetChart& chart) {
    double low = chart.from_zero || !chart.full ? 0 : chart.full->low, high = low;
    const auto include = [&](const Estimate& estimate) {
        low = std::min({low, estimate.low, estimate.value});
        high = std::max({high, estimate.high, estimate.value});
    };
    if (chart.full) include(*chart.full);
    for (const BudgetLine& line : chart.lines) {
        for (const BudgetPoint& point : line.points) include(point.value);
    }
    if (high - low < 1e-9) high = low + 1;
    Axis axis;
    axis.step = round_step(high - low, 5);
    axis.low = axis.step * std::floor(low / axis.step + 1e-9);
    axis.high = axis.step * std::ceil(high / axis.step - 1e-9);
    return axis;
}

// Round, square, triangle, diamond, and the last two upside down and on a corner.
std::string marker(std::size_t series, double x, double y) {
    constexpr double r = 3.6;
    const std::size_t shape = (series + series / kColours) % kColours;
    const std::string style = fmt::format("class='m s{}'", series % kColours);
    switch (shape) {
        case 0:
            return fmt::format("<circle {} cx={:.1f} cy={:.1f} r={} />", style, x, y, r);
        case 1:
            return fmt::format("<rect {} x={:.1f} y={:.1f} width={} height={} />", style, x - r,
                               y - r, 2 * r, 2 * r);
        case 2:
            return fmt::format("<path {} d='M{:.1f} {:.1f}l4.5 7.8h-9z' />", style, x, y - 5);
        case 3:
            return fmt::format("<path {} d='M{:.1f} {:.1f}l5 5l-5 5l-5 -5z' />", style, x, y - 5);
        case 4:
            return fmt::format("<path {} d='M{:.1f} {:.1f}l4.5 -7.8h-9z' />", style, x, y + 5);
        default:
            return fmt::format("<rect {} x={:.1f} y={:.1f} width=3 height=9 />", style, x - 1.5,
                               y - 4.5);
    }
}

std::string path_style(std::size_t series) {
    return fmt::format("class='l s{}' stroke-dasharray='{}'", series % kColours,
                       kDashes[(series + series / kColours) % kColours]);
}

std::string value_text(const Estimate& estimate) {
    return fmt::format("{:.3f} ({:.3f} to {:.3f})", estimate.value, estimate.low, estimate.high);
}

std::string draw_line(const BudgetLine& line, const Axis& axis, auto&& x, double shift) {
    std::string path, marks;
    for (const BudgetPoint& point : line.points) {
        const double at = x(point.rows) + shift, y = axis.at(point.value.value);
        path += fmt::format("{}{:.1f} {:.1f}", path.empty() ? "M" : "L", at, y);
        marks += fmt::format("<g><title>{}, {:g} rows: {}</title>", escape_html(line.name),
                             point.rows, value_text(point.value));
        marks +=
            fmt::format("<path class='w s{}' d='M{:.1f} {:.1f}V{:.1f}' />", line.series % kColours,
                        at, axis.at(point.value.low), axis.at(point.value.high));
        marks += marker(line.series, at, y) + "</g>";
    }
    return fmt::format("<path {} d='{}' />{}", path_style(line.series), path, marks);
}

std::string length_text(std::int64_t length) {
    if (length < 1000) return fmt::format("{}", length);
    return fmt::format("{:.3g}k", static_cast<double>(length) / 1000);
}

}  // namespace

std::string budget_chart(const BudgetChart& chart) {
    std::set<double> budgets;
    for (const BudgetLine& line : chart.lines) {
        for (const BudgetPoint& point : line.points) budgets.insert(point.rows);
    }
    if (budgets.empty()) return "";
    const Axis axis = axis_of(chart);
    const double first = std::log(*budgets.begin()), last = std::log(*budgets.rbegin());
    const auto x = [&](double rows) {
        constexpr double margin = 26;
        const double share = last > first ? (std::log(rows) - first) / (last - first) : 0.5;
        return kLeft + margin + (kRight - kLeft - 2 * margin) * share;
    };
    std::string svg =
        fmt::format("<svg viewBox='0 0 {:.0f} {:.0f}' role=img data-chart={} aria-label='{}'>",
                    kWidth, kHeight, chart.kind, escape_html(chart.label));
    for (double value = axis.low; value <= axis.high + axis.step / 2; value += axis.step) {
        const double shown = std::abs(value) < axis.step / 1e3 ? 0 : value;
        svg += fmt::format(
            "<path class=axis d='M{:.0f} {:.1f}H{:.0f}' /><text x={:.0f} y={:.1f} "
            "text-anchor=end>{:.3g}</text>",
            kLeft, axis.at(shown), kRight, kLeft - 6, axis.at(shown) + 4, shown);
    }
    double free = -1e9;  // labels that would touch are left out; the points stay
    for (const double rows : budgets) {
        if (x(rows) < free) continue;
        free = x(rows) + 30;
        svg += fmt::format("<text x={:.1f} y={:.0f} text-anchor=middle>{:g}</text>", x(rows),
                           kBottom + 16, rows);
    }
    svg += fmt::format(
        "<text x={:.0f} y={:.0f} text-anchor=middle>rows kept per head (mean, as asked)</text>",
        (kLeft + kRight) / 2, kBottom + 34);
    if (chart.full) {
        const double y = axis.at(chart.full->value);
        svg += fmt::format(
            "<g><title>full cache: {}</title><rect class=fb x={:.0f} y={:.1f} width={:.0f} "
            "height={:.1f} /><path class=fl d='M{:.0f} {:.1f}H{:.0f}' /></g>",
            value_text(*chart.full), kLeft, axis.at(chart.full->high), kRight - kLeft,
            std::max(0.0, axis.at(chart.full->low) - axis.at(chart.full->high)), kLeft, y, kRight);
    }
    // Whiskers at one budget stand side by side.
    const double step = std::min(7.0, 30 / static_cast<double>(chart.lines.size()));
    for (std::size_t i = 0; i < chart.lines.size(); ++i) {
        const double place =
            static_cast<double>(i) - (static_cast<double>(chart.lines.size()) - 1) / 2;
        svg += draw_line(chart.lines[i], axis, x, place * step);
    }
    return svg + "</svg>";
}

std::string budget_legend(const std::vector<BudgetLine>& lines, bool full) {
    std::string html = "<div class='legend series'>";
    for (const BudgetLine& line : lines) {
        html += fmt::format(
            "<span><svg viewBox='0 0 34 12' aria-hidden=true><path {} d='M1 6H33' />{}</svg>{}"
            "</span>",
            path_style(line.series), marker(line.series, 17, 6), escape_html(line.name));
    }
    if (full) {
        html +=
            "<span><svg viewBox='0 0 34 12' aria-hidden=true><rect class=fb x=0 y=1 width=34 "
            "height=10 /><path class=fl d='M1 6H33' /></svg>full cache</span>";
    }
    return html + "</div>";
}

std::string heat_map_chart(const HeatMap& map, std::string_view name) {
    constexpr double left = 40, height = 24, top = 2, least = 26;
    const std::size_t columns = map.lengths.size(), rows = map.depths.size();
    const double width = std::clamp(300 / static_cast<double>(columns), 9.0, 52.0);
    const double right = left + width * static_cast<double>(columns);
    const double bottom = top + height * static_cast<double>(rows);
    std::string svg = fmt::format(
        "<svg viewBox='0 0 {:.0f} {:.0f}' style='max-width:{:.0f}px' role=img data-chart=heat "
        "aria-label='{}: score by length and depth'>",
        std::max(right, 190.0), bottom + 34, 1.3 * std::max(right, 190.0), escape_html(name));
    for (std::size_t row = 0; row < rows; ++row) {
        const double y = top + height * static_cast<double>(row);
        svg += fmt::format("<text x={:.0f} y={:.1f} text-anchor=end>{:.3g}%</text>", left - 5,
                           y + height / 2 + 4, map.depths[row]);
        for (std::size_t column = 0; column < columns; ++column) {
            const HeatMap::Cell& cell = map.cells[row * columns + column];
            const double x = left + width * static_cast<double>(column);
            svg += fmt::format("<g><title>{} tokens, depth {:.3g}%: {:.3f}, n = {}</title>",
                               map.lengths[column], map.depths[row], cell.score, cell.n);
            svg += fmt::format(
                "<rect class={} x={:.1f} y={:.1f} width={:.1f} height={:.1f} rx=2 "
                "fill-opacity={:.3f} />",
                cell.n > 0 ? "h" : "none", x, y, width - 2, height - 2,
                cell.n > 0 ? 0.06 + 0.94 * cell.score : 0);
            if (cell.n > 0 && width >= least) {
                const char* shade = cell.score >= 0.85 ? "high" : cell.score >= 0.6 ? "mid" : "low";
                svg += fmt::format("<text class={} x={:.1f} y={:.1f} text-anchor=middle>{}</text>",
                                   shade, x + width / 2 - 1, y + height / 2 + 3,
                                   cell.score > 0.995 ? "1" : fmt::format("{:.2f}", cell.score));
            }
            svg += "</g>";
        }
    }
    double free = -1e9;
    for (std::size_t column = 0; column < columns; ++column) {
        const double x = left + width * (static_cast<double>(column) + 0.5) - 1;
        if (x < free) continue;
        free = x + 28;
        svg += fmt::format("<text x={:.1f} y={:.1f} text-anchor=middle>{}</text>", x, bottom + 13,
                           length_text(map.lengths[column]));
    }
    return svg + fmt::format("<text x={:.0f} y={:.1f}>tokens across, depth down</text></svg>", left,
                             bottom + 29);
}

std::string chart_styles() {
    std::string light, dark;
    std::string css;
    for (std::size_t i = 0; i < kColours; ++i) {
        light += fmt::format("--s{}:{};", i, kLight[i]);
        dark += fmt::format("--s{}:{};", i, kDark[i]);
        css += fmt::format(".s{0}{{--c:var(--s{0})}}", i);
    }
    light += "--heat:0 114 178;--mid:#1d1c1a;--high:#fff";
    dark += "--heat:86 180 233;--mid:#10151a;--high:#10151a";
    return fmt::format(":root{{{}}}@media(prefers-color-scheme:dark){{:root{{{}}}}}", light, dark) +
           css +
           ".l{fill:none;stroke:var(--c);stroke-width:2}.w{stroke:var(--c);stroke-width:1.4;"
           "opacity:.75}.m{fill:var(--c)}.fl{stroke:var(--ink);stroke-width:1.3;"
           "stroke-dasharray:2 2;opacity:.8}.fb{fill:var(--ink);opacity:.07}"
           ".h{fill:rgb(var(--heat))}.none{fill:none;stroke:var(--line)}"
           "svg text.low{fill:var(--ink)}svg text.mid{fill:var(--mid)}"
           "svg text.high{fill:var(--high)}"
           ".series svg{display:inline-block;width:34px;height:12px;margin:0 6px 0 0;"
           "vertical-align:-1px}";
}

}  // namespace headkv::cli
