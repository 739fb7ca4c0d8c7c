#include "calibrate/evidence.h"

#include <algorithm>
#include <cassert>
#include <map>
#include <numeric>
#include <utility>

#include "calibrate/metrics.h"
#include "calibrate/needles.h"

namespace headkv {
namespace {

constexpr std::size_t kMostOccurrences = 8;  // more often, and a word says nothing of a place
constexpr std::size_t kSinks = 4;
constexpr std::int64_t kDocumentTop = 16;

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// As words_of() cuts words.
bool is_word(std::string_view text, std::size_t at) {
    if (at >= text.size()) return false;
    const auto c = static_cast<unsigned char>(text[at]);
    return c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

// Where `part` begins in `text`, case ignored, no word being cut.
std::vector<std::size_t> occurrences(std::string_view text, std::string_view part) {
    std::vector<std::size_t> places;
    for (std::size_t from = 0; !part.empty() && from < text.size();) {
        const std::size_t found = find_ignoring_case(text.substr(from), part);
        if (found == std::string_view::npos) break;
        const std::size_t at = from + found, end = at + part.size();
        const bool cuts = (at > 0 && is_word(text, at - 1) && is_word(text, at)) ||
                          (is_word(text, end - 1) && is_word(text, end));
        if (!cuts) places.push_back(at);
        from = at + 1;
    }
    return places;
}

std::string_view trimmed(std::string_view text) {
    while (!text.empty() && is_blank(text.front())) text.remove_prefix(1);
    // A full stop at its end is the sentence's, not the answer's.
    while (!text.empty() && (is_blank(text.back()) || text.back() == '.')) text.remove_suffix(1);
    return text;
}

// Byte ranges of the words of a text, by word in lower case.
std::map<std::string, std::vector<WeightedBytes>> words_with_places(std::string_view text) {
    std::map<std::string, std::vector<WeightedBytes>> places;
    for (std::size_t begin = 0; begin < text.size();) {
        if (!is_word(text, begin)) {
            ++begin;
            continue;
        }
        std::size_t end = begin;
        while (is_word(text, end)) ++end;
        const auto words = words_of(text.substr(begin, end - begin));
        if (!words.empty()) places[words[0]].push_back({begin, end, 1});
        begin = end;
    }
    return places;
}

}  // namespace

Evidence evidence_of(std::span<const std::string> pieces, std::span<const WeightedBytes> parts,
                     std::string kind) {
    Evidence evidence{std::vector<float>(pieces.size(), 0.0F), 0, std::move(kind)};
    std::vector<WeightedBytes> sorted(parts.begin(), parts.end());
    std::sort(sorted.begin(), sorted.end(),
              [](const auto& a, const auto& b) { return a.begin < b.begin; });
    std::size_t start = 0, first = 0;  // no part before `first` reaches the piece
    for (std::size_t i = 0; i < pieces.size(); ++i) {
        const std::string& piece = pieces[i];
        const std::size_t end = start + piece.size();
        while (first < sorted.size() && sorted[first].end <= start) ++first;
        for (std::size_t p = first; p < sorted.size() && sorted[p].begin < end; ++p) {
            const std::size_t from = std::max(start, sorted[p].begin);
            const std::size_t to = std::min(end, sorted[p].end);
            const bool ink =
                from < to && std::any_of(piece.begin() + static_cast<long>(from - start),
                                         piece.begin() + static_cast<long>(to - start),
                                         [](char c) { return !is_blank(c); });
            if (ink) evidence.weight[i] = std::max(evidence.weight[i], sorted[p].weight);
        }
        evidence.top += evidence.weight[i] > 0 ? 1 : 0;
        start = end;
    }
    evidence.top = std::max<std::int64_t>(1, evidence.top);
    return evidence;
}

Evidence find_evidence(std::span<const std::string> pieces, TokenSpan context,
                       std::string_view answer) {
    assert(context.begin >= 0 && context.end <= static_cast<std::int64_t>(pieces.size()));
    const auto begin = static_cast<std::size_t>(context.begin);
    const auto end = static_cast<std::size_t>(context.end);
    std::size_t offset = 0;
    std::string text;
    for (std::size_t i = 0; i < begin; ++i) offset += pieces[i].size();
    for (std::size_t i = begin; i < end; ++i) text += pieces[i];

    std::vector<WeightedBytes> parts;
    const std::string_view whole = trimmed(answer);
    const auto places = occurrences(text, whole);
    if (!places.empty() && places.size() <= kMostOccurrences) {
        for (const std::size_t at : places) {
            parts.push_back({offset + at, offset + at + whole.size(), 1});
        }
        return evidence_of(pieces, parts, "verbatim");
    }
    const auto known = words_with_places(text);
    for (const std::string& word : words_of(answer)) {
        const auto found = known.find(word);
        if (found == known.end() || found->second.size() > kMostOccurrences) continue;
        for (const WeightedBytes& place : found->second) {
            parts.push_back({offset + place.begin, offset + place.end,
                             1.0F / static_cast<float>(found->second.size())});
        }
    }
    if (!parts.empty()) return evidence_of(pieces, parts, "words");
    Evidence evidence{std::vector<float>(pieces.size(), 0.0F), kDocumentTop, "document"};
    std::fill(evidence.weight.begin() + static_cast<long>(std::min(std::max(begin, kSinks), end)),
              evidence.weight.begin() + static_cast<long>(end), 1.0F);
    return evidence;
}

double evidence_score(std::span<const float> attention, const Evidence& evidence) {
    assert(!attention.empty() && evidence.top > 0);
    const auto n = std::min(static_cast<std::size_t>(evidence.top), attention.size());
    std::vector<std::size_t> order(attention.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::nth_element(order.begin(), order.begin() + static_cast<long>(n - 1), order.end(),
                     [&](std::size_t a, std::size_t b) {
                         return attention[a] != attention[b] ? attention[a] > attention[b] : a < b;
                     });
    double sum = 0;
    for (const std::size_t position : std::span(order).first(n)) {
        if (position >= evidence.weight.size()) continue;
        sum += static_cast<double>(attention[position]) *
               static_cast<double>(evidence.weight[position]);
    }
    return sum;
}

}  // namespace headkv
