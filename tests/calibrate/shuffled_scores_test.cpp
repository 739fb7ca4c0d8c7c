#include "calibrate/shuffled_scores.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "headkv/method.h"

namespace headkv {
namespace {

// 20 layers of 3 KV heads, two query heads each; head i has the score i and the error 1000 + i.
HeadScores numbered() {
    HeadScores scores;
    scores.kind = "r2";
    scores.shape = {20, 6, 3};
    scores.reliability = ScoreReliability{};
    scores.settings_json = R"({"seed": 7})";
    for (int i = 0; i < 120; ++i) {
        scores.mean.push_back(i);
        scores.stderr_.push_back(1000 + i);
    }
    return scores;
}

TEST(ShuffledScores, GroupsMoveAsAWhole) {
    const HeadScores scores = numbered();
    const HeadScores shuffled = shuffled_scores(scores, 1);
    ASSERT_EQ(shuffled.mean.size(), scores.mean.size());
    std::size_t moved = 0;
    for (std::size_t i = 0; i < shuffled.mean.size(); ++i) {
        EXPECT_EQ(shuffled.stderr_[i], 1000 + shuffled.mean[i]);
        if (i % 2 == 1) {
            EXPECT_EQ(shuffled.mean[i], shuffled.mean[i - 1] + 1);
        }
        if (shuffled.mean[i] != scores.mean[i]) ++moved;
    }
    EXPECT_GT(moved, 100U);
    // What a method makes of them: the same shares in another order.
    auto before = kv_head_shares(scores, scores.shape);
    auto after = kv_head_shares(shuffled, shuffled.shape);
    EXPECT_NE(before, after);
    std::ranges::sort(before);
    std::ranges::sort(after);
    EXPECT_EQ(before, after);
}

TEST(ShuffledScores, SayWhatTheyAre) {
    const HeadScores scores = numbered();
    const HeadScores shuffled = shuffled_scores(scores, 3);
    EXPECT_EQ(shuffled.kind, "r2-shuffled");
    EXPECT_FALSE(shuffled.reliability);
    EXPECT_EQ(shuffled.settings_json, R"({"seed":7,"shuffled":{"seed":3}})");
    EXPECT_EQ(shuffled.mean, shuffled_scores(scores, 3).mean);
    EXPECT_NE(shuffled.mean, shuffled_scores(scores, 4).mean);
}

TEST(ShuffledScores, OfUnknownKvHeadsOrWithoutErrors) {
    HeadScores scores = numbered();
    scores.shape.kv_heads = 0;
    scores.stderr_.clear();
    auto dealt = shuffled_scores(scores, 1);
    EXPECT_TRUE(dealt.stderr_.empty());
    EXPECT_NE(dealt.mean, scores.mean);
    std::ranges::sort(dealt.mean);
    EXPECT_EQ(dealt.mean, scores.mean);
}

}  // namespace
}  // namespace headkv
