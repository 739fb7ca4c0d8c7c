// Which tokens of a prompt are marks of its form, for methods that class rows by it.
#pragma once

#include <span>
#include <vector>

#include "headkv/method.h"
#include "headkv/tokenizer.h"

namespace headkv {

// Special: control tokens and ends of a turn. Punctuation: tokens that hold nothing but ASCII
// punctuation and blanks, and at least one of the former.
std::vector<TokenKind> token_kinds(const Tokenizer& tokenizer, std::span<const Token> tokens);

}  // namespace headkv
