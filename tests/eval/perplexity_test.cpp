#include "eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace headkv {
namespace {

// A made-up model: the log-probability of a token depends on it, on the one before and on the
// position, so that any mistake in the counting shows.
float fake_score(Token before, Token token, std::size_t position) {
    return -0.01F * static_cast<float>(
                        (before * 31 + token * 17 + static_cast<Token>(position) * 7) % 97) -
           0.1F;
}

Result<std::vector<float>> fake_scorer(std::span<const Token> text) {
    std::vector<float> scores;
    for (std::size_t i = 0; i + 1 < text.size(); ++i) {
        scores.push_back(fake_score(text[i], text[i + 1], i));
    }
    return scores;
}

std::vector<Token> text_of(std::size_t size) {
    std::vector<Token> text(size);
    std::iota(text.begin(), text.end(), 100);
    return text;
}

// Written from the description of llama-perplexity: for each whole chunk, positions first ..
// chunk - 2 predict the token after them.
double naive(const std::vector<Token>& text, std::size_t chunk, std::optional<Token> bos,
             std::int64_t& count) {
    double nll = 0;
    count = 0;
    for (std::size_t c = 0; c < text.size() / chunk; ++c) {
        for (std::size_t position = chunk / 2; position <= chunk - 2; ++position) {
            const std::size_t at = c * chunk + position;
            const Token before = position == 0 && bos ? *bos : text[at];
            nll -= static_cast<double>(fake_score(before, text[at + 1], position));
            ++count;
        }
    }
    return std::exp(nll / static_cast<double>(count));
}

TEST(Perplexity, CountsSecondHalvesOfWholeChunks) {
    for (const std::int64_t chunk : {4, 5, 16, 33}) {
        for (const std::size_t size : {40U, 66U, 101U}) {
            const auto text = text_of(size);
            std::int64_t tokens = 0;
            const double expected = naive(text, static_cast<std::size_t>(chunk), {}, tokens);
            const auto result = perplexity(text, chunk, {}, fake_scorer);
            ASSERT_TRUE(result);
            EXPECT_NEAR(result->perplexity, expected, 1e-9);
            EXPECT_EQ(result->tokens, tokens);
            EXPECT_EQ(result->chunks, static_cast<std::int64_t>(size) / chunk);
        }
    }
    // 512 at a time: 255 predictions a chunk.
    const auto result = perplexity(text_of(1100), 512, {}, fake_scorer);
    ASSERT_TRUE(result);
    EXPECT_EQ(result->tokens, 510);
}

TEST(Perplexity, BosReplacesTheFirstTokenOfEveryChunk) {
    std::vector<std::vector<Token>> seen;
    const auto result = perplexity(text_of(25), 8, Token{1}, [&](std::span<const Token> chunk) {
        seen.emplace_back(chunk.begin(), chunk.end());
        return fake_scorer(chunk);
    });
    ASSERT_TRUE(result);
    ASSERT_EQ(seen.size(), 3U);
    for (std::size_t c = 0; c < 3; ++c) {
        EXPECT_EQ(seen[c].size(), 8U);
        EXPECT_EQ(seen[c][0], 1);
        EXPECT_EQ(seen[c][1], static_cast<Token>(100 + 8 * c + 1));
    }
}

TEST(Perplexity, UniformModelGivesItsVocabulary) {
    const auto result = perplexity(text_of(64), 16, {}, [](std::span<const Token> chunk) {
        return Result<std::vector<float>>(std::vector<float>(chunk.size() - 1, -std::log(50.0F)));
    });
    ASSERT_TRUE(result);
    EXPECT_NEAR(result->perplexity, 50, 1e-4);
    EXPECT_NEAR(result->standard_error, 0, 1e-4);
}

TEST(Perplexity, RefusesWhatCannotBeCounted) {
    const auto shorter = perplexity(text_of(511), 512, {}, fake_scorer);
    ASSERT_FALSE(shorter);
    EXPECT_EQ(shorter.error().kind, ErrorKind::bad_input);
    EXPECT_NE(shorter.error().message.find("511"), std::string::npos);
    EXPECT_FALSE(perplexity(text_of(100), 3, {}, fake_scorer));
    const auto failing =
        perplexity(text_of(100), 10, {}, [](std::span<const Token>) -> Result<std::vector<float>> {
            return failure("out of memory");
        });
    ASSERT_FALSE(failing);
    EXPECT_EQ(failing.error().message, "out of memory");
}

}  // namespace
}  // namespace headkv
