#include "cli/page.h"

#include <fmt/format.h>

namespace headkv::cli {

namespace {

constexpr std::string_view page_styles = R"(
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--ink:#1d1c1a;--soft:#6d6a64;--faint:#9d988f;--line:#e6e2da;--a:217 94 22;--b:26 115 160}
@media(prefers-color-scheme:dark){:root{--bg:#151515;--card:#1d1d1e;--ink:#ebe8e2;--soft:#a19d95;--faint:#7b776f;--line:#323130;--a:238 125 44;--b:92 178 222}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:40px 24px 80px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px;font-weight:650;letter-spacing:-.01em}
h2{font-size:16px;margin:0 0 2px;font-weight:650}
p{margin:0;color:var(--soft);font-size:14px}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0}
.figures div,section{background:var(--card);border:1px solid var(--line);border-radius:10px}
.figures div{padding:12px 16px}
.figures b{display:block;font-size:22px;font-weight:650;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.figures span{color:var(--soft);font-size:13px}
section{padding:20px 22px 22px;margin:0 0 16px}
.settings{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13px;color:var(--soft);margin-top:10px}
.settings b{color:var(--ink);font-weight:600}
svg{display:block;width:100%;height:auto;margin-top:14px;overflow:visible}
svg text{fill:var(--soft);font-size:11px;font-family:inherit}
.axis{stroke:var(--line);stroke-width:1}
.legend{display:flex;align-items:center;flex-wrap:wrap;gap:6px 14px;font-size:13px;color:var(--soft);margin-top:14px}
.legend i{display:inline-block;width:22px;height:14px;border-radius:3px;border:1px solid var(--line);margin-right:6px;vertical-align:-2px}
)";

}  // namespace

std::string page_head(std::string_view title, std::string_view styles) {
    return fmt::format(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src "
        "'unsafe-inline'; script-src 'unsafe-inline'\">"
        "<title>{}</title><style>{}{}</style></head><body><main>",
        escape_html(title), page_styles, styles);
}

std::string figure(const std::string& value, const std::string& what) {
    return fmt::format("<div><b>{}</b><span>{}</span></div>", escape_html(value),
                       escape_html(what));
}

std::string escape_html(std::string_view text) {
    std::string html;
    for (const char c : text) {
        switch (c) {
            case '&':
                html += "&amp;";
                break;
            case '<':
                html += "&lt;";
                break;
            case '>':
                html += "&gt;";
                break;
            case '"':
                html += "&quot;";
                break;
            case '\'':
                html += "&#39;";
                break;
            default: {
                const auto code = static_cast<unsigned char>(c);
                const bool control = code < 0x20 && c != '\n' && c != '\t';
                // U+2400 and up are the pictures of the control characters.
                if (control) {
                    html += "\xE2\x90";
                    html += static_cast<char>(0x80 + code);
                } else {
                    html += c == '\x7f' ? std::string("\xE2\x90\xA1") : std::string(1, c);
                }
            }
        }
    }
    return html;
}

}  // namespace headkv::cli
