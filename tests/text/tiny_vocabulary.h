// Small vocabularies built by hand, large enough for every rule of the tokenizer.
#pragma once

#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "headkv/tokenizer.h"
#include "text/unicode.h"

namespace headkv::testing {

inline void add_token(Vocabulary& v, std::string_view text, TokenType type = TokenType::normal,
                      float score = 0) {
    v.tokens.emplace_back(text);
    v.types.push_back(static_cast<std::int32_t>(type));
    if (v.model == "llama") {
        v.scores.push_back(score);
    }
}

// The stand-in of each byte of a text in a byte-level vocabulary.
inline std::string mapped(std::string_view bytes) {
    std::string out;
    for (const char c : bytes) {
        out += byte_alphabet()[static_cast<unsigned char>(c)];
    }
    return out;
}

inline void add_merge(Vocabulary& v, std::string_view left, std::string_view right) {
    v.merges.push_back(mapped(left) + " " + mapped(right));
    add_token(v, mapped(left) + mapped(right));
}

// Ids 0..255 are the bytes; then come the merges, then the special tokens.
inline Vocabulary bpe_vocabulary(std::string pre = "gpt-2") {
    Vocabulary v;
    v.model = "gpt2";
    v.pre = std::move(pre);
    for (const std::string& text : byte_alphabet()) {
        add_token(v, text);
    }
    const std::pair<const char*, const char*> merges[] = {
        {"h", "e"}, {"l", "l"},  {"he", "ll"}, {"hell", "o"}, {" ", "w"},      {"o", "r"},
        {"a", "b"}, {"ab", "c"}, {"b", "c"},   {"aa", "a"},   {"a", "a"},      {"aa", "aa"},
        {"1", "2"}, {"12", "3"}, {" ", " "},   {"\n", "\n"},  {"\xC3", "\xA9"}};
    for (const auto& [left, right] : merges) {
        add_merge(v, left, right);
    }
    add_token(v, "<|endoftext|>", TokenType::control);
    add_token(v, "<|im_start|>", TokenType::control);
    add_token(v, "<|im_end|>", TokenType::control);
    add_token(v, "<tool>", TokenType::user_defined);
    v.eos = static_cast<Token>(v.tokens.size() - 2);
    v.bos = static_cast<Token>(v.tokens.size() - 3);
    return v;
}

// <unk> <s> </s>, the 256 byte tokens, then pieces with scores.
inline Vocabulary spm_vocabulary() {
    Vocabulary v;
    v.model = "llama";
    add_token(v, "<unk>", TokenType::unknown);
    add_token(v, "<s>", TokenType::control);
    add_token(v, "</s>", TokenType::control);
    for (int byte = 0; byte < 256; ++byte) {
        add_token(v, fmt::format("<0x{:02X}>", byte), TokenType::byte);
    }
    const char* pieces[] = {"\u2581t", "he",    "\u2581the", "in",       "\u2581\u2581",
                            "ab",      "bc",    "abc",       "a\u2581b", "x'",
                            "\u2581",  "t",     "h",         "e",        "i",
                            "n",       "a",     "b",         "c",        "x",
                            "'",       "\u00E9"};
    float score = 0;
    for (const char* piece : pieces) {
        add_token(v, piece, TokenType::normal, score);
        score -= 1;
    }
    return v;
}

inline Tokenizer make(Vocabulary v) {
    auto tokenizer = Tokenizer::create(std::move(v));
    if (!tokenizer) {
        throw std::runtime_error(tokenizer.error().message);
    }
    return std::move(*tokenizer);
}

// Appends a part to a list that is separated by '|'. (g++ 12 warns about "literal" + string.)
inline void append_part(std::string& list, std::string_view part) {
    if (!list.empty()) {
        list += '|';
    }
    list += part;
}

// The texts of the tokens, joined by '|'.
inline std::string pieces(const Tokenizer& tokenizer, std::span<const Token> tokens) {
    std::string out;
    for (const Token token : tokens) {
        append_part(out, tokenizer.piece(token, true));
    }
    return out;
}

// Valid UTF-8 with a liking for spaces, digits, apostrophes and rare characters.
inline std::string random_text(std::mt19937& rng, int characters) {
    constexpr std::string_view common = "abcABC hello 123 \n\t'sS.!";
    std::string out;
    for (int i = 0; i < characters; ++i) {
        const auto dice = rng() % 10;
        if (dice < 7) {
            out.push_back(common[rng() % common.size()]);
            continue;
        }
        const std::uint32_t limit = dice == 7 ? 0x800U : dice == 8 ? 0x10000U : 0x110000U;
        auto point = static_cast<std::uint32_t>(rng() % limit);
        if (point >= 0xD800 && point < 0xE000) {
            point = 0x20;
        }
        append_utf8(point, out);
    }
    return out;
}

}  // namespace headkv::testing
