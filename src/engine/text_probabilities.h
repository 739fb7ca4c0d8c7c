// Log-probabilities of a text out of the logits of its tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "headkv/error.h"
#include "headkv/tokenizer.h"

namespace headkv {

// log p(text[i + 1] | text[0..i]) for i = 0 .. text.size() - 2. `logits(first, count)`: those of
// tokens [first, first + count), [count][vocabulary]; asked for a few tokens at a time.
Result<std::vector<float>> text_log_probabilities(
    std::span<const Token> text, std::int64_t vocabulary,
    const std::function<Result<std::vector<float>>(std::int64_t first, std::int64_t count)>&
        logits);

}  // namespace headkv
