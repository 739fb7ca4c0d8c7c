#include "calibrate/probe.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

#include "calibrate/random.h"
#include "headkv/session.h"

namespace headkv {

std::vector<ProbeSpec> plan_probes(std::span<const std::int64_t> lengths,
                                   std::span<const double> depths, std::int64_t needles,
                                   std::uint64_t seed) {
    std::vector<ProbeSpec> probes;
    for (const std::int64_t length : lengths) {
        for (const double depth : depths) {
            for (std::int64_t needle = 0; needle < needles; ++needle) {
                probes.push_back({length, depth, needle});
            }
        }
    }
    Random(seed).shuffle(probes);
    return probes;
}

std::vector<ProbeSpec> balanced(std::vector<ProbeSpec> probes,
                                std::span<const std::string> families) {
    // A probe's turn is how many of its family stand before it; names decide within a turn.
    std::map<std::string_view, std::size_t> seen;
    std::vector<std::pair<std::size_t, std::string_view>> turns;
    for (const ProbeSpec& probe : probes) {
        const std::string_view family = families[static_cast<std::size_t>(probe.needle)];
        turns.emplace_back(seen[family]++, family);
    }
    std::vector<std::size_t> order(probes.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::sort(order.begin(), order.end(),
              [&](std::size_t a, std::size_t b) { return turns[a] < turns[b]; });
    std::vector<ProbeSpec> result;
    result.reserve(probes.size());
    for (const std::size_t i : order) result.push_back(probes[i]);
    return result;
}

std::string insert_needle(std::string_view text, std::string_view needle, std::size_t offset) {
    const std::size_t border = offset >= text.size() ? text.size() : sentence_border(text, offset);
    std::string result(text.substr(0, border));
    if (border > 0) result += ' ';
    result += needle;
    if (border == 0 && !text.empty()) result += ' ';
    result += text.substr(border);
    return result;
}

std::string build_document(const Tokenizer& tokenizer, const Haystack& haystack,
                           const Needle& needle, const ProbeSpec& spec) {
    // What is put into the text, and at which share of it.
    std::vector<std::pair<double, const std::string*>> inserted = {
        {spec.depth / 100, &needle.needle}};
    for (std::size_t i = 0; i < needle.elsewhere.size(); ++i) {
        const double at = spec.depth / 100 + static_cast<double>(i + 1) /
                                                 static_cast<double>(needle.elsewhere.size() + 1);
        inserted.emplace_back(at - std::floor(at), &needle.elsewhere[i]);
    }
    std::int64_t inserted_tokens = 0;
    for (const auto& [share, part] : inserted) {
        inserted_tokens +=
            static_cast<std::int64_t>(tokenizer.encode(" " + *part, false, false).size());
    }
    // From the end on, so that earlier places stay where they are.
    std::stable_sort(inserted.begin(), inserted.end(),
                     [](const auto& a, const auto& b) { return a.first > b.first; });
    const std::int64_t room = std::max<std::int64_t>(0, spec.length - inserted_tokens);
    std::vector<Token> tokens;
    std::string text;
    const auto wanted = static_cast<std::size_t>(room);
    if (wanted > 0) {
        // English has about four bytes a token; a text of longer tokens asks for more on the way.
        for (std::size_t bytes = wanted * 6; tokens.size() < wanted; bytes *= 2) {
            tokens = tokenizer.encode(haystack.text(spec.needle, bytes), false, false);
        }
        text = tokenizer.decode(std::span(tokens).first(wanted));
        text.resize(sentence_border(text, text.size()));
    }
    for (const auto& [share, part] : inserted) {
        const auto before = static_cast<std::size_t>(static_cast<double>(wanted) * share);
        const std::size_t offset =
            tokenizer.decode(std::span(tokens).first(std::min(before, wanted))).size();
        text = insert_needle(text, *part, offset);
    }
    return text;
}

std::optional<TokenSpan> find_span(std::span<const std::string> pieces, std::string_view within,
                                   std::string_view part) {
    std::string text;
    std::vector<std::size_t> starts;  // [pieces]
    for (const std::string& piece : pieces) {
        starts.push_back(text.size());
        text += piece;
    }
    const std::size_t outer = find_ignoring_case(text, within);
    if (outer == std::string::npos || part.empty()) return std::nullopt;
    const std::string_view inside = std::string_view(text).substr(outer, within.size());
    const std::size_t inner = find_ignoring_case(inside, part);
    if (inner == std::string::npos) return std::nullopt;
    const std::size_t begin = outer + inner;
    const std::size_t end = begin + part.size();

    TokenSpan span{-1, -1};
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const std::size_t from = std::max(begin, starts[i]);
        const std::size_t to = std::min(end, starts[i] + pieces[i].size());
        if (from >= to) continue;
        const std::string_view shared = std::string_view(text).substr(from, to - from);
        if (shared.find_first_not_of(" \t\n") == std::string_view::npos) continue;
        if (span.begin < 0) span.begin = static_cast<std::int64_t>(i);
        span.end = static_cast<std::int64_t>(i) + 1;
    }
    if (span.begin < 0) return std::nullopt;
    return span;
}

std::optional<TokenSpan> find_span(const Tokenizer& tokenizer, std::span<const Token> tokens,
                                   std::string_view within, std::string_view part) {
    std::vector<std::string> pieces;
    pieces.reserve(tokens.size());
    for (const Token token : tokens) pieces.push_back(tokenizer.piece(token, true));
    return find_span(pieces, within, part);
}

namespace {

std::string_view trimmed(std::string_view text) {
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    if (first == std::string_view::npos) return {};
    return text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1);
}

}  // namespace

Result<PreparedProbe> prepare_probe(const Model& model, const Haystack& haystack,
                                    const Needle& needle, const ProbeSpec& spec,
                                    std::optional<ChatTemplate> chat, std::string_view system,
                                    bool keep_system) {
    const std::string document = build_document(model.tokenizer(), haystack, needle, spec);
    auto prompt =
        marked_prompt(model, document, needle.question, chat, system, {.system = keep_system});
    if (!prompt) return tl::unexpected(prompt.error());
    const auto tokens = std::ssize(prompt->tokens);
    if (tokens > model.info().context) {
        return bad_input(
            "the probe of length {} has a prompt of {} tokens, the model's context is "
            "{}; give shorter --lengths",
            spec.length, tokens, model.info().context);
    }
    const auto span = find_span(model.tokenizer(), prompt->tokens, trimmed(needle.needle),
                                trimmed(needle.real_needle));
    if (!span) {
        return bad_input("needle {}: its text is not found in the tokenized prompt (\"{}\")",
                         spec.needle + 1, needle.real_needle);
    }
    return PreparedProbe{std::move(prompt->tokens), *span, std::move(prompt->keep)};
}

bool line_complete(const Tokenizer& tokenizer, std::span<const Token> answer) {
    const std::string text = tokenizer.decode(answer);
    const std::size_t first = text.find_first_not_of(" \t\r\n");
    return first != std::string::npos && text.find('\n', first) != std::string::npos;
}

}  // namespace headkv
