#include "engine/token_kinds.h"

#include <algorithm>
#include <cctype>
#include <string>

namespace headkv {

namespace {

bool is_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

// Of the "C" locale: no other is ever set.
bool is_mark(char c) { return std::ispunct(static_cast<unsigned char>(c)) != 0; }

}  // namespace

std::vector<TokenKind> token_kinds(const Tokenizer& tokenizer, std::span<const Token> tokens) {
    std::vector<TokenKind> kinds;
    kinds.reserve(tokens.size());
    for (const Token token : tokens) {
        if (tokenizer.is_control(token) || tokenizer.is_end(token)) {
            kinds.push_back(TokenKind::special);
            continue;
        }
        const std::string piece = tokenizer.piece(token);
        const bool marks =
            std::ranges::any_of(piece, is_mark) &&
            std::ranges::all_of(piece, [](char c) { return is_mark(c) || is_blank(c); });
        kinds.push_back(marks ? TokenKind::punctuation : TokenKind::text);
    }
    return kinds;
}

}  // namespace headkv
