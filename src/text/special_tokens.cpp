#include "text/special_tokens.h"

#include <algorithm>
#include <cctype>

namespace headkv {
namespace {

constexpr unsigned guarded = attribute_control | attribute_unknown;
constexpr unsigned special = guarded | attribute_user_defined;

std::uint64_t edge(std::uint32_t node, char byte) {
    return (static_cast<std::uint64_t>(node) << 8U) | static_cast<unsigned char>(byte);
}

bool is_space(char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; }

}  // namespace

SpecialTokens::SpecialTokens(const TokenTable& table)
    : table_(&table), priority_(table.texts.size(), 0), ends_here_(1, -1), first_byte_(256) {
    std::vector<Token> tokens;
    for (Token token = 0; token < static_cast<Token>(table.texts.size()); ++token) {
        if (table.has(token, special)) {
            tokens.push_back(token);
        }
    }
    const auto length = [&table](Token token) {
        return table.texts[static_cast<std::size_t>(token)].size();
    };
    std::stable_sort(tokens.begin(), tokens.end(),
                     [&length](Token a, Token b) { return length(a) > length(b); });
    std::uint32_t place = 0;
    for (const Token token : tokens) {
        priority_[static_cast<std::size_t>(token)] = ++place;
        const std::string& text = table.texts[static_cast<std::size_t>(token)];
        first_byte_[static_cast<unsigned char>(text[0])] = true;
        std::uint32_t node = 0;
        for (const char c : text) {
            const auto [found, added] =
                edges_.try_emplace(edge(node, c), static_cast<std::uint32_t>(ends_here_.size()));
            if (added) {
                ends_here_.push_back(-1);
            }
            node = found->second;
        }
        ends_here_[node] = token;
    }
}

bool SpecialTokens::accepts(Token token, ByteRange match,
                            std::span<const ByteRange> allowed) const {
    if (!table_->has(token, guarded)) {
        return true;
    }
    // The last range that starts at or before the match.
    const auto next = std::upper_bound(
        allowed.begin(), allowed.end(), match.begin,
        [](std::size_t begin, const ByteRange& range) { return begin < range.begin; });
    return next != allowed.begin() && match.end <= std::prev(next)->end;
}

// One pass over the text, so that a vocabulary with thousands of special tokens costs no more than
// one with two. By priority.
std::vector<Token> SpecialTokens::occurring(std::string_view text,
                                            std::span<const ByteRange> allowed) const {
    std::vector<Token> tokens;
    std::vector<bool> seen(priority_.size());
    for (std::size_t begin = 0; begin < text.size(); ++begin) {
        if (!first_byte_[static_cast<unsigned char>(text[begin])]) {
            continue;
        }
        std::uint32_t node = 0;
        for (std::size_t pos = begin; pos < text.size(); ++pos) {
            const auto found = edges_.find(edge(node, text[pos]));
            if (found == edges_.end()) {
                break;
            }
            node = found->second;
            const Token token = ends_here_[node];
            if (token >= 0 && !seen[static_cast<std::size_t>(token)] &&
                accepts(token, {begin, pos + 1}, allowed)) {
                seen[static_cast<std::size_t>(token)] = true;
                tokens.push_back(token);
            }
        }
    }
    std::sort(tokens.begin(), tokens.end(), [this](Token a, Token b) {
        return priority_[static_cast<std::size_t>(a)] < priority_[static_cast<std::size_t>(b)];
    });
    return tokens;
}

// Appends the plain text `range`, cut at the occurrences of one token, from left to right.
void SpecialTokens::carve(std::string_view text, Token token, std::span<const ByteRange> allowed,
                          ByteRange range, std::vector<Fragment>& out) const {
    const std::string& mark = table_->texts[static_cast<std::size_t>(token)];
    const std::string_view visible = text.substr(0, range.end);
    std::size_t search = range.begin;
    while (true) {
        const std::size_t match = visible.find(mark, search);
        if (match == std::string_view::npos) {
            break;
        }
        const ByteRange found{match, match + mark.size()};
        if (!accepts(token, found, allowed)) {
            search = match + 1;
            continue;
        }
        std::size_t left_end = match;
        if (table_->has(token, attribute_strip_left)) {
            while (left_end > range.begin && is_space(text[left_end - 1])) {
                --left_end;
            }
        }
        if (left_end > range.begin) {
            out.push_back({{range.begin, left_end}, -1});
        }
        out.push_back({found, token});
        range.begin = found.end;
        if (table_->has(token, attribute_strip_right)) {
            while (range.begin < range.end && is_space(text[range.begin])) {
                ++range.begin;
            }
        }
        search = range.begin;
    }
    if (range.begin < range.end) {
        out.push_back({range, -1});
    }
}

std::vector<Fragment> SpecialTokens::partition(std::string_view text,
                                               std::span<const ByteRange> allowed) const {
    std::vector<Fragment> fragments;
    if (text.empty()) {
        return fragments;
    }
    fragments.push_back({{0, text.size()}, -1});
    for (const Token token : occurring(text, allowed)) {
        std::vector<Fragment> next;
        for (const Fragment& fragment : fragments) {
            if (fragment.token >= 0) {
                next.push_back(fragment);
            } else {
                carve(text, token, allowed, fragment.range, next);
            }
        }
        fragments = std::move(next);
    }
    return fragments;
}

}  // namespace headkv
