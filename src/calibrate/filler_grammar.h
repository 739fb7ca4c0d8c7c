// What a prose of filler.h is written from.
#pragma once

#include <span>
#include <string_view>

namespace headkv {

struct WordList {
    std::string_view name;
    std::span<const std::string_view> words;
};

// Each {name} of a sentence is replaced by one entry of the list of that name. Nouns carry their
// article, so that "a" and "an" need no rule.
struct Grammar {
    std::span<const std::string_view> sentences;
    std::span<const WordList> lists;
};

// Each is its own in all words: no sentence of one can be one of the other.
const Grammar& village_grammar();
const Grammar& city_grammar();

}  // namespace headkv
