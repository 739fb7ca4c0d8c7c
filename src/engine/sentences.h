// Where the sentences of a prompt begin, by its tokens, for methods that keep the rows of a
// sentence together.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "headkv/tokenizer.h"

namespace headkv {

constexpr std::int64_t kLongestSentence = 64;  // tokens; what is longer is cut into such parts

// Ascending from 0. A sentence ends with '.', '!' or '?' (and what closes a quotation or a bracket)
// before white space, with their full-width forms, with a line, and before and behind control
// tokens. White space in front of a word belongs to the word's sentence, as tokenizers have it.
std::vector<std::int32_t> sentence_starts(const Tokenizer& tokenizer,
                                          std::span<const Token> tokens);

}  // namespace headkv
