#include "cli/report_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <set>

#include "cli/common.h"
#include "cli/page.h"
#include "cli/report_chart.h"

namespace headkv::cli {
namespace {

constexpr std::string_view kStyles = R"(
header{margin-bottom:8px}
h3{font-size:14px;margin:0;font-weight:600}
h3.part{margin-top:22px}
.note{font-size:12.5px;margin-top:8px}
.charts,.maps{display:grid;gap:18px 28px;margin-top:18px}
.charts{grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr))}
.charts.three{grid-template-columns:repeat(auto-fit,minmax(min(250px,100%),1fr))}
.maps{grid-template-columns:repeat(auto-fit,minmax(min(230px,100%),1fr))}
figure{margin:0;break-inside:avoid;min-width:0}
figure svg{margin-top:8px}
figcaption{color:var(--soft);font-size:12.5px;margin-top:6px}
.scroll{overflow-x:auto;margin-top:16px}
table{border-collapse:collapse;width:100%;font-size:13px;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:5px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th{color:var(--soft);font-weight:500;vertical-align:bottom}
th small,td small{display:block;font-weight:400;color:var(--soft);font-size:11px;line-height:1.25}
td.best{font-weight:650}
td.best::before{content:"\2605  ";color:var(--s1)}
a{color:inherit}
tr.full td{background:color-mix(in srgb,var(--line) 35%,transparent)}
tr.next td{border-top:2px solid var(--line)}
details{margin-top:14px;font-size:13px}
summary{cursor:pointer;color:var(--soft)}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px;color:var(--soft);margin:8px 0 0}
@media(max-width:560px){main{padding:22px 10px 40px}section{padding:14px 12px 16px}
h1{font-size:21px}}
@media print{:root{--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc}
body{font-size:12px}main{max-width:none;padding:0}section{border:0;padding:0 0 14px}
.scroll{overflow:visible}table{font-size:9.5px}th,td{padding:3px}th small,td small{font-size:8px}
th:first-child,td:first-child{white-space:normal;overflow-wrap:anywhere}
.charts.three{grid-template-columns:repeat(3,1fr);gap:18px}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
)";

const char* protocol(const ReportHead& head) {
    return head.query_aware ? "query-aware: methods see the question"
                            : "not query-aware: compressed before the question is read";
}
const char* short_protocol(const ReportHead& head) {
    return head.query_aware ? "query-aware" : "not query-aware";
}

std::string rows_text(double rows) { return rows > 0 ? fmt::format("{:g}", rows) : "all"; }

std::string with_interval(const Estimate& estimate, bool sign) {
    return sign ? fmt::format("{:+.3f}<small>{:+.3f} to {:+.3f}</small>", estimate.value,
                              estimate.low, estimate.high)
                : fmt::format("{:.3f}<small>{:.3f} to {:.3f}</small>", estimate.value, estimate.low,
                              estimate.high);
}

// Methods in their order over all tasks: one colour each on the whole page.
std::vector<std::string> methods_of(std::span<const Report> reports) {
    std::vector<std::string> names;
    for (const Report& report : reports) {
        for (const ReportConfig& config : report.head.configs) {
            if (config.rows <= 0 || std::ranges::find(names, config.method) != names.end())
                continue;
            names.push_back(config.method);
        }
    }
    return names;
}

std::vector<const ReportRow*> rows_of(const Report& report, std::string_view group) {
    std::vector<const ReportRow*> rows;
    for (const ReportRow& row : report.rows) {
        if (row.group == group) rows.push_back(&row);
    }
    return rows;
}

// The best of a budget, where there is a choice; those that are equal are all the best.
std::set<const ReportRow*> best_of(const std::vector<const ReportRow*>& rows) {
    std::map<double, std::vector<const ReportRow*>> budgets;
    for (const ReportRow* row : rows) {
        if (row->rows > 0) budgets[row->rows].push_back(row);
    }
    std::set<const ReportRow*> best;
    for (const auto& [budget, same] : budgets) {
        if (same.size() < 2) continue;
        const auto score = [](const ReportRow* row) { return row->score.value; };
        const double most = score(*std::ranges::max_element(same, {}, score));
        for (const ReportRow* row : same) {
            if (most > 0 && score(row) == most) best.insert(row);
        }
    }
    return best;
}

std::vector<BudgetLine> lines_of(const std::vector<const ReportRow*>& rows,
                                 const std::vector<std::string>& methods,
                                 const std::function<Estimate(const ReportRow&)>& value) {
    std::vector<BudgetLine> lines;
    for (std::size_t series = 0; series < methods.size(); ++series) {
        BudgetLine line{methods[series], series, {}};
        for (const ReportRow* row : rows) {
            if (row->rows > 0 && row->method == line.name) {
                line.points.push_back({row->rows, value(*row)});
            }
        }
        std::ranges::sort(line.points, {}, &BudgetPoint::rows);
        if (!line.points.empty()) lines.push_back(std::move(line));
    }
    return lines;
}

std::string figure_of(const std::string& title, const std::string& drawing,
                      const std::string& caption) {
    return fmt::format("<figure><h3>{}</h3>{}<figcaption>{}</figcaption></figure>",
                       escape_html(title), drawing, escape_html(caption));
}

// Of a task on plain text: what a row says is how far it is from the full cache.
bool on_text(const Report& report) { return !report.rows.empty() && report.rows[0].text; }

std::string curves(const Report& report, const std::vector<std::string>& methods) {
    const auto rows = rows_of(report, "");
    const auto scores = lines_of(rows, methods, [](const ReportRow& row) { return row.score; });
    if (scores.empty()) return "";
    const auto losses =
        lines_of(rows, methods, [](const ReportRow& row) { return row.dlog_probability; });
    const ReportHead& head = report.head;
    const bool text = on_text(report);
    const std::string basis =
        text ? fmt::format("n = {} predictions; bars and band: 95 % intervals", rows[0]->n)
             : fmt::format("n = {}, {}; bars and band: 95 % intervals", rows[0]->n,
                           short_protocol(head));
    const auto chart = [&](const char* kind, const std::string& label,
                           const std::vector<BudgetLine>& lines, std::optional<Estimate> full) {
        return budget_chart(
            {kind, fmt::format("{}: {} against rows kept", head.task, label), lines, full, true});
    };
    std::string html = text ? "<div class='charts three'>" : "<div class=charts>";
    if (text) {
        const auto divergences =
            lines_of(rows, methods, [](const ReportRow& row) { return row.text->divergence; });
        html += figure_of("Divergence from the full cache",
                          chart("divergence", "divergence", divergences, Estimate{}),
                          "KL divergence of the next token, nats; " + basis + ".");
    }
    html += figure_of(fmt::format("Score ({})", head.metric),
                      chart("score", "score", scores, rows[0]->score), basis + ".");
    html += figure_of("Loss in log-probability",
                      chart("loss", "loss in log-probability", losses, Estimate{}),
                      fmt::format("Of the {}, nats a token, minus the full cache's; {}.",
                                  text ? "text" : "right answer", basis));
    return html + "</div>" + budget_legend(scores, true);
}

std::string maps(const Report& report) {
    if (report.maps.empty()) return "";
    std::string html = "<div class=maps>";
    for (const HeatMap& map : report.maps) {
        std::int64_t least = 0, most = 0;
        for (const HeatMap::Cell& cell : map.cells) {
            if (cell.n == 0) continue;
            least = least == 0 ? cell.n : std::min(least, cell.n);
            most = std::max(most, cell.n);
        }
        const std::string name =
            map.rows > 0 ? fmt::format("{}, {:g} rows", map.method, map.rows) : map.method;
        const std::string n =
            least == most ? fmt::format("{}", most) : fmt::format("{} to {}", least, most);
        html += figure_of(name, heat_map_chart(map, name),
                          fmt::format("n = {} a cell, {}.", n, short_protocol(report.head)));
    }
    return html + "</div>";
}

std::string table(const Report& report, const std::vector<const ReportRow*>& rows, bool group) {
    const std::string& baseline = report.head.baseline;
    std::string html = "<div class=scroll><table><tr>";
    if (group) html += "<th>group</th>";
    html +=
        "<th>method</th><th>rows</th><th>n</th><th>score <small>95 %</small></th>"
        "<th>of full</th><th>KV</th><th>of full KV</th><th>rows kept</th>"
        "<th>minus full <small>95 %</small></th>";
    if (!baseline.empty()) {
        html += fmt::format("<th>minus {} <small>95 %</small></th>", escape_html(baseline));
    }
    html += "<th>log-prob. <small>minus full, 95 %</small></th></tr>";
    const auto best = best_of(rows);
    for (const ReportRow* row : rows) {
        const bool full = row->method == "full" && row->rows == 0;
        html += full ? "<tr class=full>" : "<tr>";
        if (group) html += fmt::format("<td>{}</td>", escape_html(row->group));
        html += fmt::format("<td>{}</td><td>{}</td><td>{}</td><td{}>{}</td><td>{:.1f}%</td>",
                            escape_html(row->method), rows_text(row->rows), row->n,
                            best.contains(row) ? " class=best" : "",
                            with_interval(row->score, false), 100 * row->share_of_full);
        html += fmt::format(
            "<td>{}</td><td>{:.1f}%</td><td>{:.1f}</td>", human_bytes(row->kv_bytes),
            row->kv_bytes_full > 0 ? 100 * row->kv_bytes / row->kv_bytes_full : 0, row->rows_kept);
        html += fmt::format("<td>{}</td>", full ? "" : with_interval(row->dscore, true));
        if (!baseline.empty()) {
            html += fmt::format("<td>{}</td>",
                                row->dbaseline ? with_interval(*row->dbaseline, true) : "");
        }
        html +=
            fmt::format("<td>{}</td></tr>", full ? "" : with_interval(row->dlog_probability, true));
    }
    return html + "</table></div>";
}

// A task on plain text; perplexity alone where nothing is compared with the full cache.
std::string text_table(const Report& report) {
    const std::string& baseline = report.head.baseline;
    const bool compared = report.rows.size() > 1;
    std::string html = "<div class=scroll><table><tr><th>method</th>";
    if (!compared) {
        const ReportRow& row = report.rows[0];
        return html + fmt::format(
                          "<th>predictions</th><th>perplexity <small>95 %</small></th></tr><tr "
                          "class=full><td>{}</td><td>{}</td><td>{}</td></tr></table></div>",
                          escape_html(row.method), row.n, with_interval(row.score, false));
    }
    html +=
        "<th>rows</th><th>n</th><th>divergence <small>95 %</small></th><th>95 % below</th>"
        "<th>same best <small>95 %</small></th><th>perplexity</th><th>KV <small>of "
        "full</small></th>"
        "<th>rows kept</th>";
    if (!baseline.empty()) {
        html +=
            fmt::format("<th>minus {} <small>same best, 95 %</small></th>", escape_html(baseline));
    }
    html += "<th>log-prob. <small>minus full, 95 %</small></th></tr>";
    const auto rows = rows_of(report, "");
    const auto best = best_of(rows);
    for (const ReportRow* row : rows) {
        const bool full = row->method == "full" && row->rows == 0;
        html +=
            fmt::format("<tr{}><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td>",
                        full ? " class=full" : "", escape_html(row->method), rows_text(row->rows),
                        row->n, full ? "" : with_interval(row->text->divergence, false),
                        full ? "" : fmt::format("{:.3f}", row->text->divergence_95));
        html += fmt::format(
            "<td{}>{}</td><td>{:.3f}</td><td>{}<small>{:.1f}%</small></td><td>{:.1f}</td>",
            best.contains(row) ? " class=best" : "", with_interval(row->score, false),
            row->text->perplexity, human_bytes(row->kv_bytes),
            100 * row->kv_bytes / row->kv_bytes_full, row->rows_kept);
        if (!baseline.empty()) {
            html += fmt::format("<td>{}</td>",
                                row->dbaseline ? with_interval(*row->dbaseline, true) : "");
        }
        html +=
            fmt::format("<td>{}</td></tr>", full ? "" : with_interval(row->dlog_probability, true));
    }
    return html +
           "</table></div><p class=note>&#9733; best of its budget. Divergence: KL divergence of "
           "the next-token distribution from the full cache's, nats. Same best: predictions with "
           "the full cache's most probable token. KV: mean bytes of the rows kept.</p>";
}

// Scores of the first question to the last.
std::string turns(const Report& report) {
    if (report.turns.empty()) return "";
    std::string html = "<div class=scroll><table><tr><th>method</th><th>rows</th>";
    std::size_t most = 0;
    for (const TurnScores& scores : report.turns) most = std::max(most, scores.turns.size());
    for (std::size_t turn = 0; turn < most; ++turn) {
        html += fmt::format("<th>question {}</th>", turn + 1);
    }
    html += "</tr>";
    for (const TurnScores& scores : report.turns) {
        html += fmt::format("<tr><td>{}</td><td>{}</td>", escape_html(scores.method),
                            rows_text(scores.rows));
        for (const TurnScores::Turn& turn : scores.turns) {
            html +=
                fmt::format("<td title='n = {}'>{}</td>", turn.n, with_interval(turn.score, false));
        }
        html += "</tr>";
    }
    return "<h3 class=part>Question by question</h3>" + html + "</table></div>";
}

std::string gaps(const Report& report) {
    if (report.gaps.empty()) return "";
    std::string html =
        "<h3 class=part>Gaps between groups</h3><p>Best group's score less the worst's. Above 0 by "
        "chance alone: the figure to read is what a method adds to the full cache's gap.</p>"
        "<div class=scroll><table><tr><th>kind</th><th>method</th><th>rows</th><th>pairs</th>"
        "<th>best</th><th>worst</th><th>gap <small>95 %</small></th>"
        "<th>beyond full's <small>95 %</small></th></tr>";
    for (const ParityGap& gap : report.gaps) {
        html +=
            fmt::format("<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td>", escape_html(gap.kind),
                        escape_html(gap.method), rows_text(gap.rows), gap.pairs);
        html += fmt::format("<td>{}<small>{:.3f}</small></td><td>{}<small>{:.3f}</small></td>",
                            escape_html(gap.best), gap.best_score, escape_html(gap.worst),
                            gap.worst_score);
        html += fmt::format("<td>{}</td><td>{}</td></tr>", with_interval(gap.gap, false),
                            with_interval(gap.beyond_full, true));
    }
    return html + "</table></div>";
}

std::string groups(const Report& report) {
    std::vector<const ReportRow*> rows;
    std::set<std::string> names;
    for (const ReportRow& row : report.rows) {
        if (row.group.empty()) continue;
        rows.push_back(&row);
        names.insert(row.group);
    }
    if (rows.empty()) return "";
    std::string html = fmt::format("<details><summary>{} groups</summary>", names.size());
    for (const std::string& name : names) {
        html += table(report, rows_of(report, name), true);
    }
    return html + "</details>";
}

std::string left_out(const Report& report) {
    const std::size_t count = report.left_out.size() + report.head.skipped.size();
    if (count == 0) return "";
    std::string html = fmt::format("<details><summary>{} left out</summary><pre>", count);
    for (const auto& [id, reason] : report.left_out) {
        html += escape_html(fmt::format("{}: {}\n", id, reason));
    }
    for (const std::string& sentence : sentences_of(report.head.skipped)) {
        html += escape_html(sentence) + '\n';
    }
    return html + "</pre></details>";
}

std::string flags(const ReportHead& head) {
    const std::string text =
        head.flags.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
    return fmt::format(
        "<details><summary>Settings</summary><pre>{}</pre></details>",
        escape_html(fmt::format(
            "model {}, fingerprint {}\nheadkv {}{}\nseed {}\n{}", head.model, head.fingerprint,
            head.version, head.commit.empty() ? "" : ", commit " + head.commit, head.seed, text)));
}

std::string section(const Report& report, const std::vector<std::string>& methods) {
    const ReportHead& head = report.head;
    const auto rows = rows_of(report, "");
    std::string about =
        on_text(report)
            ? fmt::format("{} chunks of text, {} predictions", report.examples, rows[0]->n)
            : fmt::format("n = {}, {}, score: {}", report.examples, protocol(head), head.metric);
    if (const std::size_t count = report.left_out.size() + head.skipped.size(); count > 0) {
        about += fmt::format("; {} left out", count);
    }
    if (!rows.empty() && rows[0]->cut > 0) {
        about +=
            fmt::format("; {} prompts beyond the context, their middle taken out", rows[0]->cut);
    }
    if (head.flags.contains("shard")) {
        about += fmt::format("; shard {} of {} only", head.flags["shard"].value("index", 0),
                             head.flags["shard"].value("of", 0));
    }
    std::string html =
        fmt::format("<section id='task-{}'><h2>{}</h2><p>{}.</p>", escape_html(head.task),
                    escape_html(head.task), escape_html(about));
    if (rows.empty()) html += "<p>No example could be asked.</p>";
    if (on_text(report)) {
        html += curves(report, methods) + text_table(report);
    } else if (!rows.empty()) {
        html += curves(report, methods) + table(report, rows, false);
        html +=
            "<p class=note>&#9733; best of its budget. \"Of full\": score in percent of the full "
            "cache's. KV: mean bytes of the rows kept. Log-prob.: of the right answer, nats a "
            "token.</p>";
        html += maps(report) + turns(report) + gaps(report) + groups(report);
    }
    return html + left_out(report) + flags(head) + "</section>";
}

const ReportRow* find_row(const Report& report, const ReportConfig& config) {
    for (const ReportRow& row : report.rows) {
        if (row.group.empty() && row.method == config.method && row.rows == config.rows) {
            return &row;
        }
    }
    return nullptr;
}

// Scores of all tasks side by side; a run of several tasks has the same configurations in all.
std::string overview(std::span<const Report> reports) {
    std::string html =
        "<section><h2>All tasks</h2><p>Scores; &#9733; best of its budget. \"Of full\": mean over "
        "the tasks of the share of the full cache's score.</p><div class=scroll><table><tr>"
        "<th>method</th><th>rows</th>";
    std::vector<std::set<const ReportRow*>> best;
    for (const Report& report : reports) {
        html += fmt::format("<th><a href='#task-{0}'>{0}</a><br><small>n = {1}, {2}</small></th>",
                            escape_html(report.head.task), report.examples,
                            short_protocol(report.head));
        best.push_back(best_of(rows_of(report, "")));
    }
    html += "<th>of full</th></tr>";
    for (const ReportConfig& config : reports[0].head.configs) {
        html += fmt::format("<tr><td>{}</td><td>{}</td>", escape_html(config.method),
                            rows_text(config.rows));
        double share = 0, counted = 0;
        for (std::size_t i = 0; i < reports.size(); ++i) {
            const ReportRow* row = find_row(reports[i], config);
            if (row == nullptr) {
                html += "<td>-</td>";
                continue;
            }
            html += fmt::format("<td{}>{:.3f}</td>", best[i].contains(row) ? " class=best" : "",
                                row->score.value);
            const ReportRow* full = find_row(reports[i], reports[i].head.configs[0]);
            if (full != nullptr && full->score.value > 0) {
                share += row->share_of_full;
                ++counted;
            }
        }
        html += counted > 0 ? fmt::format("<td>{:.1f}%</td></tr>", 100 * share / counted)
                            : std::string("<td>-</td></tr>");
    }
    return html + "</table></div></section>";
}

}  // namespace

std::string report_page(std::span<const Report> reports) {
    const ReportHead& head = reports[0].head;
    std::int64_t examples = 0;
    double bytes = 0;
    for (const Report& report : reports) {
        examples += report.examples;
        if (!report.rows.empty()) bytes = std::max(bytes, report.rows[0].kv_bytes_full);
    }
    const auto methods = methods_of(reports);
    std::string html =
        page_head("headkv eval: " + head.model, chart_styles() + std::string(kStyles));
    const bool text = std::ranges::all_of(reports, on_text);
    const std::size_t compared = head.configs.size() - 1;
    html += fmt::format("<header><h1>{}</h1><p>{}</p></header><div class=figures>",
                        escape_html(head.model),
                        compared == 0 ? "The full cache alone"
                        : text ? "Predictions from compressed caches beside those from the full one"
                               : "Answers from compressed caches beside those from the full one");
    html += figure(fmt::format("{}", examples), text ? "chunks" : "examples");
    html += figure(fmt::format("{}", reports.size()), reports.size() == 1 ? "task" : "tasks");
    if (compared > 0) html += figure(fmt::format("{}", compared), "configurations beside full");
    if (bytes > 0) html += figure(human_bytes(bytes), "full KV cache, mean");
    html += "</div>";
    if (reports.size() > 1) html += overview(reports);
    for (const Report& report : reports) html += section(report, methods);
    return html + "</main></body></html>\n";
}

}  // namespace headkv::cli
