#include "headkv/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <random>
#include <set>

namespace headkv {
namespace {

using Probabilities = std::map<Token, double>;

// The chain written the slow way: a map of probabilities that each step cuts and renormalises.
Probabilities softmax(const std::vector<float>& logits, double temperature = 1) {
    Probabilities result;
    double sum = 0;
    for (std::size_t i = 0; i < logits.size(); ++i) {
        const double p = std::exp(static_cast<double>(logits[i]) / temperature);
        result[static_cast<Token>(i)] = p;
        sum += p;
    }
    for (auto& [token, p] : result) p /= sum;
    return result;
}

std::vector<Token> best_first(const Probabilities& all) {
    std::vector<Token> order;
    for (const auto& [token, p] : all) order.push_back(token);
    std::stable_sort(order.begin(), order.end(),
                     [&](Token a, Token b) { return all.at(a) > all.at(b); });
    return order;
}

std::set<Token> naive_support(const std::vector<float>& logits, const SamplerOptions& options) {
    Probabilities all = softmax(logits);
    auto order = best_first(all);
    if (options.top_k > 0) {
        order.resize(std::min(order.size(), static_cast<std::size_t>(options.top_k)));
    }
    double total = 0;
    for (const Token token : order) total += all[token];
    std::set<Token> kept;
    double sum = 0;
    for (const Token token : order) {
        if (options.top_p < 1 && sum >= static_cast<double>(options.top_p) * total) break;
        sum += all[token];
        if (all[token] >= static_cast<double>(options.min_p) * all[order[0]]) kept.insert(token);
    }
    return kept;
}

std::vector<float> some_logits(std::size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, 2);
    std::vector<float> logits(count);
    for (auto& logit : logits) logit = normal(random);
    return logits;
}

SamplerOptions everything() {
    SamplerOptions options;
    options.temperature = 1;
    options.top_k = 0;
    options.top_p = 1;
    options.min_p = 0;
    return options;
}

std::map<Token, int> draws(const std::vector<float>& logits, const SamplerOptions& options,
                           int count) {
    Sampler sampler(options);
    std::map<Token, int> seen;
    for (int i = 0; i < count; ++i) ++seen[sampler.sample(logits)];
    return seen;
}

TEST(Sampler, GreedyTakesTheBestAndTheLowerIdOfATie) {
    Sampler sampler(SamplerOptions{});
    EXPECT_EQ(sampler.sample(std::vector<float>{-3, 5, 2, 5}), 1);
    EXPECT_EQ(sampler.sample(std::vector<float>{-3}), 0);
    EXPECT_EQ(sampler.sample(std::vector<float>{7, 7, 7}), 0);
}

TEST(Sampler, NotANumberNeverWins) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    Sampler greedy(SamplerOptions{});
    EXPECT_EQ(greedy.sample(std::vector<float>{nan, -9, nan, -8}), 3);
    const auto seen = draws({nan, 1, nan, 1}, everything(), 200);
    EXPECT_EQ(seen.count(0) + seen.count(2), 0U);
}

TEST(Sampler, FrequenciesFollowTheProbabilitiesAtAnyTemperature) {
    const std::vector<float> logits = {1.0F, 0.0F, 2.0F, -1.0F, 0.5F};
    for (const float temperature : {0.5F, 1.0F, 2.0F}) {
        SamplerOptions options = everything();
        options.temperature = temperature;
        options.seed = 11;
        const int count = 40000;
        const auto seen = draws(logits, options, count);
        for (const auto& [token, p] : softmax(logits, static_cast<double>(temperature))) {
            const double sigma = std::sqrt(p * (1 - p) / count);
            const double measured = static_cast<double>(seen.at(token)) / count;
            EXPECT_NEAR(measured, p, 5 * sigma) << "token " << token << " at " << temperature;
        }
    }
}

struct Cut {
    std::int64_t top_k;
    float top_p, min_p;
};

class SamplerCuts : public testing::TestWithParam<Cut> {};

// Each allowed token turns up, no other ever does. The temperature makes even the rarest likely.
TEST_P(SamplerCuts, DrawExactlyFromTheNaiveSupport) {
    for (const unsigned seed : {1U, 2U, 3U}) {
        const auto logits = some_logits(23, seed);
        SamplerOptions options = everything();
        options.temperature = 50;
        options.top_k = GetParam().top_k;
        options.top_p = GetParam().top_p;
        options.min_p = GetParam().min_p;
        std::set<Token> seen;
        for (const auto& [token, count] : draws(logits, options, 2000)) seen.insert(token);
        EXPECT_EQ(seen, naive_support(logits, options));
    }
}

INSTANTIATE_TEST_SUITE_P(Cuts, SamplerCuts,
                         testing::Values(Cut{0, 1, 0}, Cut{1, 1, 0}, Cut{5, 1, 0}, Cut{100, 1, 0},
                                         Cut{0, 0.5F, 0}, Cut{0, 0.9F, 0}, Cut{0, 1e-6F, 0},
                                         Cut{0, 1, 0.1F}, Cut{0, 1, 1}, Cut{8, 0.8F, 0.05F},
                                         Cut{40, 0.95F, 0.05F}));

TEST(Sampler, TiesAtTheCutGoToLowerIds) {
    SamplerOptions options = everything();
    options.top_k = 2;
    const auto seen = draws({1, 1, 1, 1}, options, 200);
    EXPECT_EQ(seen.size(), 2U);
    EXPECT_TRUE(seen.contains(0) && seen.contains(1));
}

TEST(Sampler, ASeedDecidesEverything) {
    const auto logits = some_logits(100, 5);
    const auto sequence = [&](std::uint64_t seed) {
        SamplerOptions options = everything();
        options.seed = seed;
        Sampler sampler(options);
        std::vector<Token> tokens;
        for (int i = 0; i < 50; ++i) tokens.push_back(sampler.sample(logits));
        return tokens;
    };
    EXPECT_EQ(sequence(1), sequence(1));
    EXPECT_NE(sequence(1), sequence(2));
    EXPECT_NE(sequence(0), sequence(1));
}

TEST(Sampler, ThePenaltyDividesPositiveAndMultipliesNegativeLogits) {
    SamplerOptions options;
    options.repetition_penalty = 2;
    Sampler sampler(options);
    sampler.accept(1);
    sampler.accept(1);  // counts once: 6 / 2 = 3 still beats 2.9
    EXPECT_EQ(sampler.sample(std::vector<float>{2.9F, 6, -1}), 1);
    EXPECT_EQ(sampler.sample(std::vector<float>{3.1F, 6, -1}), 0);
    // -1 * 2 falls below -1.5.
    EXPECT_EQ(sampler.sample(std::vector<float>{-1.5F, -1, -9}), 0);
}

TEST(Sampler, ThePenaltyForgetsBeyondItsWindow) {
    SamplerOptions options;
    options.repetition_penalty = 10;
    options.repetition_window = 2;
    Sampler sampler(options);
    const std::vector<float> logits = {1, 2, 0.5F};
    sampler.accept(1);
    EXPECT_EQ(sampler.sample(logits), 0);
    sampler.accept(2);
    EXPECT_EQ(sampler.sample(logits), 0);
    sampler.accept(2);  // pushes the 1 out
    EXPECT_EQ(sampler.sample(logits), 1);
    sampler.accept(-1);  // ids outside the vocabulary do nothing
    sampler.accept(99);
    EXPECT_EQ(sampler.sample(logits), 1);
}

TEST(LogProbability, EqualsTheNaiveSoftmax) {
    const auto logits = some_logits(31, 9);
    for (const auto& [token, p] : softmax(logits)) {
        EXPECT_NEAR(log_probability(logits, token), std::log(p), 1e-9);
    }
    // Far from zero, where a naive exp would overflow.
    EXPECT_NEAR(log_probability(std::vector<float>{1000, 1000}, 1), std::log(0.5), 1e-12);
}

}  // namespace
}  // namespace headkv
