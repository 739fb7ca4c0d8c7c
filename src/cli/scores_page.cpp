#include "cli/scores_page.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "cli/page.h"

namespace headkv::cli {

namespace {

// Few heads have most of the score: the scale is bent, so that small ones can be told apart.
constexpr double kBend = 0.5;

constexpr std::string_view styles = R"(
.s rect{fill:rgb(var(--a))}
.b rect{fill:rgb(var(--b))}
.s rect,.b rect{stroke:var(--line);stroke-width:1}
main>.settings{margin:0 0 16px}
g:hover>rect{stroke:var(--ink);stroke-width:1.5}
)";

struct Cell {
    double value = 0;
    std::string title;
};

// Layers from left to right, heads from top to bottom.
std::string map(std::string_view style, std::string_view label, std::int64_t layers,
                std::int64_t heads, const std::function<Cell(std::size_t)>& cell) {
    constexpr double left = 52, top = 4;
    const double width = std::clamp(980 / static_cast<double>(layers), 8.0, 34.0);
    const double height = heads > 16 ? std::max(width / 2, 8.0) : width;
    const auto count = static_cast<std::size_t>(layers * heads);
    double most = 0;
    for (std::size_t i = 0; i < count; ++i) most = std::max(most, cell(i).value);
    std::string drawn;
    for (std::size_t i = 0; i < count; ++i) {
        const Cell one = cell(i);
        const auto column = i / static_cast<std::size_t>(heads);
        const auto row = i % static_cast<std::size_t>(heads);
        const double shade = most > 0 ? std::pow(one.value / most, kBend) : 0;
        drawn += fmt::format(
            "<g><title>{}</title><rect x={:.1f} y={:.1f} width={:.1f} height={:.1f} rx=2 "
            "fill-opacity={:.3f} /></g>",
            escape_html(one.title), left + width * static_cast<double>(column),
            top + height * static_cast<double>(row), width - 2, height - 2, shade);
    }
    for (std::int64_t head = 0; head<heads; head += heads> 16 ? 4 : 1) {
        drawn += fmt::format("<text x={:.0f} y={:.1f} text-anchor=end>head {}</text>", left - 8,
                             top + height * (static_cast<double>(head) + 0.5) + 3, head);
    }
    const double bottom = top + height * static_cast<double>(heads) + 13;
    for (std::int64_t layer = 0; layer<layers; layer += layers> 16 ? 4 : 1) {
        drawn += fmt::format("<text x={:.1f} y={:.1f} text-anchor=middle>{}</text>",
                             left + width * (static_cast<double>(layer) + 0.5) - 1, bottom, layer);
    }
    return fmt::format(
        "<svg viewBox='0 0 {:.0f} {:.0f}' role=img aria-label='{}'><g class={}>{}"
        "<text x=0 y={:.1f}>layer</text></g></svg>",
        left + width * static_cast<double>(layers), bottom + 5, escape_html(label), style, drawn,
        bottom);
}

std::string figures(const HeadScores& scores) {
    std::string html = "<div class=figures>";
    html += figure(scores.kind.empty() ? "?" : scores.kind, "kind");
    html += figure(fmt::format("{} of {}", scores.probes_passed, scores.probes_tried),
                   "probes that count");
    if (scores.reliability) {
        html += figure(fmt::format("{:.2f}", scores.reliability->spearman),
                       "split-half Spearman, query heads");
        html += figure(fmt::format("{:.2f}", scores.reliability->pearson), "split-half Pearson");
    }
    html += figure(fmt::format("{} x {}", scores.shape.layers, scores.shape.query_heads),
                   "layers, query heads");
    return html + "</div>";
}

std::string families(const HeadScores& scores) {
    if (scores.families.empty()) return "";
    std::string html = "<div class=settings>";
    for (const ProbeFamily& family : scores.families) {
        html += fmt::format("<span>{} <b>{} of {}</b></span>", escape_html(family.name),
                            family.passed, family.tried);
    }
    return html + "</div>";
}

}  // namespace

std::string scores_page(const HeadScores& scores, const ScoresBudget& budget) {
    const auto& shape = scores.shape;
    const double sum = std::accumulate(scores.mean.begin(), scores.mean.end(), 0.0);
    std::string html = page_head("Head scores of " + scores.model_name, styles);
    html += fmt::format(
        "<header><h1>Head scores of {}</h1><p>What each query head was seen to do, and the rows "
        "that it gets for it. Attention is no proof of what a head is needed for.</p></header>{}{}",
        escape_html(scores.model_name.empty() ? "a model without a name" : scores.model_name),
        figures(scores), families(scores));
    html +=
        "<section><h2>Scores of query heads</h2><p>Share of all scores; shades follow its "
        "square root.</p>";
    html += map("s", "scores by layer and query head", shape.layers, shape.query_heads,
                [&](std::size_t i) {
                    const auto width = static_cast<std::size_t>(shape.query_heads);
                    std::string title = fmt::format("layer {}, query head {}: {:.4g}", i / width,
                                                    i % width, scores.mean[i]);
                    if (!scores.stderr_.empty()) {
                        title += fmt::format(" +- {:.2g}", scores.stderr_[i]);
                    }
                    const double share = sum > 0 ? scores.mean[i] / sum : 0;
                    return Cell{share, title + fmt::format(", {:.2f}% of all", 100 * share)};
                });
    html += "</section><section>";
    html += fmt::format(
        "<h2>Rows at {:g} a head</h2><p>{}, window {}, beta {:g}: {} rows in all.</p>", budget.rows,
        escape_html(budget.method), budget.window, budget.beta, budget.plan.total());
    html += map(
        "b", "rows by layer and head", budget.plan.layers, budget.plan.heads, [&](std::size_t i) {
            const auto width = static_cast<std::size_t>(budget.plan.heads);
            const auto rows = budget.plan.rows[i];
            return Cell{static_cast<double>(rows),
                        fmt::format("layer {}, head {}: {} rows", i / width, i % width, rows)};
        });
    return html + "</section></main></body></html>\n";
}

}  // namespace headkv::cli
