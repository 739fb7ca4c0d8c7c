// Log-probabilities of a text while it is read.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "headkv/engine.h"

namespace headkv {

// log p(text[i + 1] | text[0..i]) for i = 0 .. text.size() - 2. `logits(first, count)`: those of
// tokens [first, first + count), [count][vocabulary]; asked for a few tokens at a time.
Result<std::vector<float>> text_log_probabilities(
    std::span<const Token> text, std::int64_t vocabulary,
    const std::function<Result<std::vector<float>>(std::int64_t first, std::int64_t count)>&
        logits);

// Runs a Prefill or DevicePrefill to its end. Errors: the reader's, and interrupted where
// `progress` returns false.
template <class Reader>
Result<void> read_text(Reader& reader, std::int64_t layers, const Progress& progress) {
    for (bool done = false; !done;) {
        const auto layer = reader.layer();
        auto step = reader.step();
        if (!step) return tl::unexpected(step.error());
        done = *step;
        if (progress && reader.layer() != layer && !progress(reader.layer(), layers)) {
            return tl::unexpected(
                Error{ErrorKind::interrupted, "interrupted while reading the text"});
        }
    }
    return {};
}

// The same of a Prefill or DevicePrefill over `text` that computes all tokens, which it runs to its
// end. Errors: the reader's, and interrupted where `progress` returns false.
template <class Reader>
Result<std::vector<float>> text_log_probabilities(Reader& reader, std::span<const Token> text,
                                                  std::int64_t layers, std::int64_t vocabulary,
                                                  const Progress& progress) {
    if (auto read = read_text(reader, layers, progress); !read) {
        return tl::unexpected(read.error());
    }
    return text_log_probabilities(text, vocabulary, [&](std::int64_t first, std::int64_t count) {
        return reader.logits(first, count);
    });
}

}  // namespace headkv
