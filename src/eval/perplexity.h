// Perplexity of a text, counted as llama-perplexity counts it.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "headkv/error.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct Perplexity {
    double perplexity = 0;
    double standard_error = 0;  // of the perplexity, tokens taken as independent
    std::int64_t tokens = 0;    // predictions that counted
    std::int64_t chunks = 0;
};

// log p(text[i + 1] | text[0..i]), as Engine::log_probabilities.
using Scorer = std::function<Result<std::vector<float>>(std::span<const Token>)>;

// The text falls into whole chunks of `chunk` tokens (the rest is left out), each read by itself.
// With `bos`, the first token of a chunk is replaced by it. Only predictions made at the positions
// chunk / 2 .. chunk - 2 count: they all have half a chunk of context behind them.
// Errors: chunk below 4 or text shorter than one chunk (bad_input), the scorer's.
Result<Perplexity> perplexity(std::span<const Token> text, std::int64_t chunk,
                              std::optional<Token> bos, const Scorer& scorer);

// The BOS that the tokenizer puts before a text by itself, if it does.
std::optional<Token> added_bos(const Tokenizer& tokenizer);

}  // namespace headkv
