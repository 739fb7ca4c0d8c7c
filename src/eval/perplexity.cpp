#include "eval/perplexity.h"

#include <cassert>
#include <cmath>

namespace headkv {

Result<Perplexity> perplexity(std::span<const Token> text, std::int64_t chunk,
                              std::optional<Token> bos, const Scorer& scorer) {
    if (chunk < 4) return bad_input("--chunk {}: must be at least 4 tokens", chunk);
    const auto size = static_cast<std::size_t>(chunk);
    if (text.size() < size) {
        return bad_input(
            "the text has only {} tokens; perplexity in chunks of {} needs at least "
            "one whole chunk: give a longer text or a smaller --chunk",
            text.size(), chunk);
    }
    Perplexity result;
    double sum = 0;
    double squares = 0;
    for (std::size_t start = 0; start + size <= text.size(); start += size) {
        std::vector<Token> tokens(text.begin() + static_cast<std::ptrdiff_t>(start),
                                  text.begin() + static_cast<std::ptrdiff_t>(start + size));
        if (bos) tokens[0] = *bos;
        auto scored = scorer(tokens);
        if (!scored) return tl::unexpected(scored.error());
        assert(scored->size() == size - 1);
        for (const float value : std::span(*scored).subspan(size / 2)) {
            const double loss = -static_cast<double>(value);
            sum += loss;
            squares += loss * loss;
            ++result.tokens;
        }
        ++result.chunks;
    }
    const auto n = static_cast<double>(result.tokens);
    const double mean = sum / n;
    result.perplexity = std::exp(mean);
    const double variance = squares / n - mean * mean;
    if (result.tokens > 1 && variance > 0) {
        result.standard_error = result.perplexity * std::sqrt(variance / (n - 1));
    }
    return result;
}

std::optional<Token> added_bos(const Tokenizer& tokenizer) {
    const auto with = tokenizer.encode("a", false, true);
    const auto without = tokenizer.encode("a", false, false);
    const bool added = tokenizer.bos() && !with.empty() && with.front() == *tokenizer.bos() &&
                       (without.empty() || without.front() != *tokenizer.bos());
    return added ? tokenizer.bos() : std::nullopt;
}

}  // namespace headkv
