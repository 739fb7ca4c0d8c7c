// The tokens of a vocabulary: texts, attributes, and the way from a text to its id.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/tokenizer.h"
#include "text/hash_tables.h"

namespace headkv {

// Attributes are bits, because a token that looks like an end mark gets `control` on top of the
// type that the file states.
enum TokenAttribute : std::uint8_t {
    attribute_normal = 1,
    attribute_unknown = 2,
    attribute_control = 4,
    attribute_user_defined = 8,
    attribute_byte = 16,
    attribute_strip_left = 32,   // swallows the white space before it
    attribute_strip_right = 64,  // ... and after it
};

struct TokenTable {
    std::vector<std::string> texts;        // [vocab]
    std::vector<std::uint8_t> attributes;  // [vocab] bits of TokenAttribute
    std::vector<bool> ends;                // [vocab] ends a turn or the text
    TextIndex index;                       // of texts
    std::size_t longest = 0;               // bytes of the longest text

    // -1 when no token has this text.
    Token find(std::string_view text) const { return index.find(texts, text); }
    bool has(Token token, unsigned attributes_wanted) const {
        return (attributes[static_cast<std::size_t>(token)] & attributes_wanted) != 0;
    }
};

// Takes the token texts out of the vocabulary; lengths and ids must have been checked.
TokenTable make_token_table(Vocabulary& vocabulary);

}  // namespace headkv
