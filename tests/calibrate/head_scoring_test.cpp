#include "calibrate/head_scoring.h"

#include <gtest/gtest.h>

#include <cmath>

namespace headkv {
namespace {

const std::vector<Token> kTokens = {10, 11, 12, 13, 14, 15};

TEST(RetrievalScore, NeedsTheTopRowInTheNeedleAndItsTokenEmitted) {
    const TokenSpan needle{2, 4};  // tokens 12, 13
    const std::vector<float> on_12 = {0.1F, 0.1F, 0.5F, 0.1F, 0.1F, 0.1F};
    EXPECT_DOUBLE_EQ(retrieval_score(on_12, kTokens, needle, 12), 0.5);
    EXPECT_DOUBLE_EQ(retrieval_score(on_12, kTokens, needle, 13), 0.0);  // attended, not copied
    const std::vector<float> on_11 = {0.1F, 0.5F, 0.3F, 0.1F, 0.0F, 0.0F};
    EXPECT_DOUBLE_EQ(retrieval_score(on_11, kTokens, needle, 11), 0.0);  // outside the needle
    // Of equal weights the lower position counts, here outside.
    const std::vector<float> tie = {0.0F, 0.4F, 0.4F, 0.0F, 0.0F, 0.0F};
    EXPECT_DOUBLE_EQ(retrieval_score(tie, kTokens, needle, 12), 0.0);
}

TEST(ReasoningScore, WeightsOfTheTopRowsInsideTheNeedle) {
    const TokenSpan needle{2, 5};  // 3 rows, so the 3 heaviest rows count
    // Heaviest: 0 (outside), 3, 2; row 4 lies in the needle but is not among them.
    const std::vector<float> weights = {0.4F, 0.05F, 0.125F, 0.25F, 0.1F, 0.075F};
    EXPECT_DOUBLE_EQ(reasoning_score(weights, needle), (0.125 + 0.25) / 3);
    const std::vector<float> outside = {0.3F, 0.3F, 0.05F, 0.05F, 0.05F, 0.25F};
    EXPECT_DOUBLE_EQ(reasoning_score(outside, needle), 0.0);
    const std::vector<float> ties = {0.2F, 0.0F, 0.2F, 0.2F, 0.2F, 0.2F};  // rows 0, 2, 3
    EXPECT_NEAR(reasoning_score(ties, needle), 0.4 / 3, 1e-7);
    const std::vector<float> all = {0.25F, 0.5F, 0.25F};
    EXPECT_DOUBLE_EQ(reasoning_score(all, {0, 3}), 1.0 / 3);
}

TEST(ScoreMeans, MeanAndStandardError) {
    ScoreMeans means(2);
    const std::vector<std::vector<double>> probes = {{1, 5}, {2, 5}, {6, 5}};
    for (const auto& probe : probes) means.add(probe);
    EXPECT_EQ(means.count(), 3);
    EXPECT_DOUBLE_EQ(means.mean()[0], 3);
    EXPECT_DOUBLE_EQ(means.mean()[1], 5);
    // Deviations -2, -1, 3: variance 14 / 2, over 3 probes.
    EXPECT_DOUBLE_EQ(means.standard_error()[0], std::sqrt(7.0 / 3));
    EXPECT_DOUBLE_EQ(means.standard_error()[1], 0);
    ScoreMeans one(1);
    one.add(std::vector<double>{4});
    EXPECT_DOUBLE_EQ(one.standard_error()[0], 0);
}

}  // namespace
}  // namespace headkv
