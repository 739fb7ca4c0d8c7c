#include "cli/inspect_page.h"

#include <algorithm>
#include <cmath>

#include "cli/common.h"
#include "cli/page.h"

namespace headkv::cli {

namespace {

// Few heads have most of the rows and most tokens few of the heads: both scales are bent, so that
// small figures can still be told apart.
constexpr double kHeatBend = 0.7, kTokenBend = 0.5;
double shade(double value, double most, double bend) {
    return most > 0 ? std::pow(value / most, bend) : 0;
}

constexpr int kLevels = 10;  // shades of a token

int token_level(std::int64_t heads, std::int64_t all) {
    if (heads == 0) return 0;
    const double share = shade(static_cast<double>(heads), static_cast<double>(all), kTokenBend);
    return std::max(1, static_cast<int>(std::lround(share * kLevels)));
}

// Shades of one accent over the background, so that one style serves both themes.
std::string level_styles() {
    std::string css;
    for (int level = 1; level <= kLevels; ++level) {
        css += fmt::format(".k{}{{background:rgb(var(--a)/{:.2f})}}", level,
                           0.85 * level / static_cast<double>(kLevels));
    }
    return css;
}

// What this page has beside the styles of page_head().
constexpr std::string_view styles = R"(
.cell rect{fill:rgb(var(--a));stroke:var(--line);stroke-width:1}
.cell{cursor:pointer;outline:none}
.cell:hover rect,.cell:focus rect{stroke:var(--ink);stroke-width:1.5}
.cell[aria-pressed=true] rect{stroke:rgb(var(--b));stroke-width:3}
.area{fill:rgb(var(--a)/.35);stroke:rgb(var(--a));stroke-width:1.2;vector-effect:non-scaling-stroke}
.bar{display:flex;justify-content:space-between;align-items:baseline;gap:16px;flex-wrap:wrap}
button{font:inherit;font-size:13px;color:var(--ink);background:var(--bg);border:1px solid var(--line);border-radius:6px;padding:3px 10px;cursor:pointer}
button[hidden]{display:none}
.text{white-space:pre-wrap;overflow-wrap:anywhere;unicode-bidi:plaintext;line-height:1.85;margin-top:14px;font-size:15px}
.text span{border-radius:2px;padding:1px 0}
.k0{color:var(--faint)}
.text .c{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:12px}
.text i{font-style:normal;opacity:.45;font-size:11px}
.one .t{visibility:hidden}
.one .text span{background:none;color:var(--faint)}
.one .text span.on{background:rgb(var(--b)/.32);color:var(--ink)}
)";

// A click on a head shows its own tokens; without scripts the page still shows all heads together.
constexpr std::string_view script = R"(
const spans=document.querySelectorAll('.text span'),cells=document.querySelectorAll('.cell'),
said=document.getElementById('said'),back=document.getElementById('back'),all=said.textContent;
function clear(){document.body.classList.remove('one');cells.forEach(c=>c.setAttribute('aria-pressed','false'));
said.textContent=all;back.hidden=true}
function show(cell){if(cell.getAttribute('aria-pressed')==='true')return clear();clear();
const on=new Set();for(const r of kept[cell.dataset.i].split(',')){if(!r)continue;
const [a,b]=r.split('-').map(Number);for(let i=a;i<=(b??a);i++)on.add(i)}
let begin=0;spans.forEach((s,i)=>{let hit=false;for(let p=begin;p<ends[i];p++)hit=hit||on.has(p);begin=ends[i];
s.classList.toggle('on',hit)});
document.body.classList.add('one');cell.setAttribute('aria-pressed','true');
said.textContent=cell.querySelector('title').textContent;back.hidden=false}
cells.forEach(c=>{c.addEventListener('click',()=>show(c));c.addEventListener('keydown',e=>{
if(e.key==='Enter'||e.key===' '){e.preventDefault();show(c)}})});
back.addEventListener('click',clear);
)";

std::size_t count_heads(const Inspection& inspection) {
    return inspection.kept.empty() ? 0 : inspection.kept[0].size();
}

std::size_t most_rows(const Inspection& inspection) {
    std::size_t most = 0;
    for (const auto& layer : inspection.kept) {
        for (const auto& head : layer) most = std::max(most, head.size());
    }
    return most;
}

std::string header(const Inspection& inspection) {
    const SequenceInfo& info = inspection.info;
    const auto bytes = static_cast<double>(info.plan_bytes);
    const auto full = static_cast<double>(info.full_bytes);
    std::string html = fmt::format(
        "<header><h1>What {} kept</h1><p>{}: key-value rows that each head still holds after "
        "reading the prompt</p></header><div class=figures>",
        escape_html(info.method), escape_html(inspection.model));
    html += figure(fmt::format("{}", info.prompt_tokens), "prompt tokens");
    html += figure(fmt::format("{:.1f}", info.rows_kept_mean), "rows per head, mean");
    html += figure(human_bytes(bytes), "KV cache");
    html += figure(fmt::format("{:.1f}%", full > 0 ? 100 * bytes / full : 0),
                   "of the full " + human_bytes(full));
    return html + "</div>";
}

std::string settings_line(const Inspection& inspection) {
    std::string html = "<div class=settings>";
    for (const auto& [name, value] : inspection.settings) {
        html += fmt::format("<span>{} <b>{}</b></span>", escape_html(name), escape_html(value));
    }
    return html + "</div>";
}

// Every swatch is a share of the most rows that its shade stands for.
std::string heat_legend(std::size_t most) {
    std::string html = "<div class=legend>";
    for (const double share : {0.0, 0.25, 0.5, 0.75, 1.0}) {
        html += fmt::format("<span><i style='background:rgb(var(--a)/{:.2f})'></i>{:.0f}</span>",
                            share, std::pow(share, 1 / kHeatBend) * static_cast<double>(most));
    }
    return html + "<span>rows</span></div>";
}

// Layers from left to right, heads from top to bottom.
std::string heat_map(const Inspection& inspection) {
    constexpr std::size_t left = 52, top = 4;
    const std::size_t layers = inspection.kept.size(), heads = count_heads(inspection);
    const std::size_t step = std::clamp<std::size_t>(980 / std::max<std::size_t>(layers, 1), 8, 34);
    const std::size_t height = heads > 16 ? std::max<std::size_t>(step / 2, 8) : step;
    const std::size_t most = most_rows(inspection);
    std::string cells;
    for (std::size_t l = 0; l < layers; ++l) {
        for (std::size_t h = 0; h < heads; ++h) {
            const std::size_t rows = inspection.kept[l][h].size();
            const double part =
                100 * static_cast<double>(rows) /
                static_cast<double>(std::max<std::int64_t>(inspection.info.prompt_tokens, 1));
            cells += fmt::format(
                "<g class=cell tabindex=0 role=button aria-pressed=false data-i={}>"
                "<title>layer {}, head {}: {} rows, {:.1f}% of the prompt</title>"
                "<rect x={} y={} width={} height={} rx=3 fill-opacity={:.3f} /></g>",
                l * heads + h, l, h, rows, part, left + l * step, top + h * height, step - 3,
                height - 3, shade(static_cast<double>(rows), static_cast<double>(most), kHeatBend));
        }
    }
    std::string labels;
    for (std::size_t h = 0; h<heads; h += heads> 16 ? 4 : 1) {
        labels += fmt::format("<text x={} y={} text-anchor=end>head {}</text>", left - 8,
                              top + h * height + (height - 3) / 2 + 4, h);
    }
    for (std::size_t l = 0; l<layers; l += layers> 16 ? 4 : 1) {
        labels += fmt::format("<text x={} y={} text-anchor=middle>{}</text>",
                              left + l * step + (step - 3) / 2, top + heads * height + 14, l);
    }
    labels += fmt::format("<text x=0 y={}>layer</text>", top + heads * height + 14);
    return fmt::format(
        "<svg viewBox='0 0 {} {}' role=group aria-label='rows per layer and head'>"
        "{}{}</svg>",
        left + layers * step, top + heads * height + 18, labels, cells);
}

// Mean number of heads that kept a token, over stretches of the prompt.
std::string density_chart(const std::vector<std::int64_t>& counts, std::int64_t all) {
    constexpr double width = 1000, height = 90;
    const std::size_t bins = std::min<std::size_t>(counts.size(), 250);
    std::string points = fmt::format("0,{:.0f}", height);
    for (std::size_t bin = 0; bin < bins; ++bin) {
        const std::size_t begin = bin * counts.size() / bins;
        const std::size_t end = (bin + 1) * counts.size() / bins;
        double sum = 0;
        for (std::size_t i = begin; i < end; ++i) sum += static_cast<double>(counts[i]);
        const double mean = sum / static_cast<double>(end - begin);
        const double y = height * (1 - shade(mean, static_cast<double>(all), kTokenBend));
        points += fmt::format(" {:.1f},{:.1f} {:.1f},{:.1f}",
                              width * static_cast<double>(bin) / static_cast<double>(bins), y,
                              width * static_cast<double>(bin + 1) / static_cast<double>(bins), y);
    }
    points += fmt::format(" {:.0f},{:.0f}", width, height);
    return fmt::format(
        "<svg viewBox='0 0 1000 108' role=img aria-label='heads that kept each part'>"
        "<polygon class=area points='{}' /><path class=axis d='M0 {:.0f}H1000' />"
        "<text x=0 y=104>first token</text><text x=1000 y=104 text-anchor=end>token "
        "{}</text></svg>",
        points, height, counts.size() - 1);
}

std::string token_legend(std::int64_t all) {
    std::string html = "<div class='legend t'><span class=k0>kept by no head</span>";
    for (const int level : {2, 5, 7, kLevels}) {
        const double share = static_cast<double>(level * level) / (kLevels * kLevels);
        html += fmt::format("<span><i class=k{}></i>{:.0f}</span>", level,
                            share * static_cast<double>(all));
    }
    return html + fmt::format("<span>of {} heads</span></div>", all);
}

// A line break has no area to shade: a sign stands in front of it.
std::string with_line_breaks(const std::string& escaped) {
    std::string html;
    for (const char c : escaped) {
        if (c == '\n') html += "<i>↵</i>";
        html += c;
    }
    return html;
}

std::string text_of(const Inspection& inspection, const std::vector<std::int64_t>& counts,
                    std::int64_t all) {
    std::string html = "<div class=text dir=auto>";
    std::int32_t begin = 0;
    for (const Piece& piece : inspection.pieces) {
        std::int64_t heads = 0;
        for (std::int32_t i = begin; i < piece.end; ++i) {
            heads = std::max(heads, counts[static_cast<std::size_t>(i)]);
        }
        html +=
            fmt::format("<span class='k{}{}' title='token {}: kept by {} of {} heads'>{}</span>",
                        token_level(heads, all), piece.control ? " c" : "", begin, heads, all,
                        with_line_breaks(escape_html(piece.text)));
        begin = piece.end;
    }
    return html + "</div>";
}

std::string script_data(const Inspection& inspection) {
    std::string kept;
    for (const auto& layer : inspection.kept) {
        for (const auto& head : layer) {
            kept += (kept.empty() ? "\"" : ",\n\"") + position_ranges(head) + "\"";
        }
    }
    std::string ends;
    for (const Piece& piece : inspection.pieces) {
        ends += fmt::format("{}{}", ends.empty() ? "" : ",", piece.end);
    }
    return fmt::format("<script>const kept=[{}],ends=[{}];{}</script>", kept, ends, script);
}

}  // namespace

std::vector<std::int64_t> heads_per_token(const Inspection& inspection) {
    std::vector<std::int64_t> counts(static_cast<std::size_t>(inspection.info.prompt_tokens), 0);
    for (const auto& layer : inspection.kept) {
        for (const auto& head : layer) {
            for (const std::int32_t position : head) ++counts[static_cast<std::size_t>(position)];
        }
    }
    return counts;
}

std::string inspection_page(const Inspection& inspection) {
    const auto counts = heads_per_token(inspection);
    const auto all = static_cast<std::int64_t>(inspection.kept.size() * count_heads(inspection));
    std::string html = page_head(fmt::format("{} on {}", inspection.info.method, inspection.model),
                                 std::string(styles) + level_styles());
    html += header(inspection);
    html +=
        "<section><h2>Rows per layer and head</h2><p>The stronger the colour, the more the head "
        "kept of the prompt. "
        "Select a head to see its own tokens below.</p>";
    html += heat_map(inspection) + heat_legend(most_rows(inspection)) + settings_line(inspection);
    html +=
        "</section><section><h2>Along the prompt</h2><p>Mean share of the heads that kept a "
        "token, from the first to the last (square-root scale).</p>";
    html += density_chart(counts, all);
    html +=
        "</section><section><div class=bar><div><h2>The text</h2><p id=said>Shaded by the "
        "number of heads, of all layers, that kept each token.</p></div>"
        "<button id=back hidden>all heads</button></div>";
    html += token_legend(all) + text_of(inspection, counts, all);
    return html + "</section></main>" + script_data(inspection) + "</body></html>\n";
}

std::string position_ranges(const std::vector<std::int32_t>& sorted) {
    std::string text;
    for (std::size_t i = 0; i < sorted.size();) {
        std::size_t last = i;
        while (last + 1 < sorted.size() && sorted[last + 1] == sorted[last] + 1) ++last;
        text += (text.empty() ? "" : ",") + std::to_string(sorted[i]);
        if (last > i) text += "-" + std::to_string(sorted[last]);
        i = last + 1;
    }
    return text;
}

}  // namespace headkv::cli
