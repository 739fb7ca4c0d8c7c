#include <gtest/gtest.h>

#include <limits>

#include "method/naive.h"

namespace headkv {
namespace {

constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max();
constexpr HeadShape kShape{7, 6, 3};  // 21 KV heads

std::int64_t sum(const std::vector<std::int64_t>& values) {
    return std::accumulate(values.begin(), values.end(), std::int64_t{0});
}

TEST(LargestRemainder, EqualsTheNaiveReference) {
    for (const std::size_t count : {1U, 2U, 7U, 90U}) {
        for (const std::int64_t total : {0, 1, 6, 100, 9999}) {
            const auto values = naive::random_values(count, static_cast<std::uint32_t>(total + 1));
            const std::vector<double> weights(values.begin(), values.end());
            const auto counts = largest_remainder(weights, total);
            EXPECT_EQ(counts, naive::largest_remainder(weights, total));
            EXPECT_EQ(sum(counts), total);
        }
    }
}

TEST(LargestRemainder, TiesGoToTheLowerIndex) {
    const std::vector<double> equal(4, 1.0);
    EXPECT_EQ(largest_remainder(equal, 6), (std::vector<std::int64_t>{2, 2, 1, 1}));
}

TEST(LargestRemainder, NoWeightsMeansEqualOnes) {
    const std::vector<double> zero(3, 0.0);
    EXPECT_EQ(largest_remainder(zero, 7), (std::vector<std::int64_t>{3, 2, 2}));
    const std::vector<double> odd = {-1, std::numeric_limits<double>::quiet_NaN(), 1};
    EXPECT_EQ(largest_remainder(odd, 5), (std::vector<std::int64_t>{0, 0, 5}));
}

TEST(Shares, SumOverTheGroup) {
    HeadScores scores;
    scores.shape = {1, 4, 2};
    scores.mean = {1, 2, 3, 2};
    EXPECT_EQ(kv_head_shares(scores, {1, 4, 2}), (std::vector<double>{3.0 / 8, 5.0 / 8}));
    scores.mean.assign(4, 0.0);
    EXPECT_EQ(kv_head_shares(scores, {1, 4, 2}), (std::vector<double>{0.5, 0.5}));
}

TEST(Uniform, SpreadsTheRestOverTheFirstHeads) {
    const Plan plan = allocate_uniform({1, 4, 4}, 5.5, 100);
    EXPECT_EQ(plan.rows, (std::vector<std::int64_t>{6, 6, 5, 5}));
    EXPECT_EQ(allocate_uniform({1, 4, 4}, 5.5, 5).rows, (std::vector<std::int64_t>{5, 5, 5, 5}));
}

TEST(HeadImportance, EqualsTheNaiveLevelAtAnyLimit) {
    const auto shares = kv_head_shares(naive::random_scores(kShape, 3), kShape);
    for (const double rows : {8.0, 20.5, 64.0, 128.0}) {
        for (const double beta : {1.0, 1.2, 2.0, 10.0}) {
            for (const std::int64_t limit : {128, 131, 150, 300, 1000000}) {
                const auto expected =
                    naive::head_importance(shares, rows, 8, beta, static_cast<double>(limit));
                const Plan plan = allocate_head_importance(kShape, shares, rows, 8, beta, limit);
                EXPECT_EQ(plan.total(), std::llround(rows * 21));
                for (std::size_t i = 0; i < expected.size(); ++i) {
                    // Largest remainder moves an amount by less than one row.
                    EXPECT_LT(std::abs(static_cast<double>(plan.rows[i]) - expected[i]), 1.0 + 1e-6)
                        << "rows " << rows << " beta " << beta << " limit " << limit;
                    EXPECT_LE(plan.rows[i], limit);
                    EXPECT_GE(plan.rows[i], 8);
                }
            }
        }
    }
}

TEST(HeadImportance, SurplusOfOneHeadGoesOnByImportance) {
    // Pool 4 x 10: wishes 30, 8, 2, 0 above a floor of 10; head 0 stops at 25 and its 15 go 4 : 1.
    const std::vector<double> shares = {0.75, 0.2, 0.05, 0};
    const Plan plan = allocate_head_importance({1, 4, 4}, shares, 20, 0, 2, 25);
    EXPECT_EQ(plan.rows, (std::vector<std::int64_t>{25, 25, 20, 10}));
}

TEST(HeadImportance, OnceOnlyUnimportantHeadsHaveRoomTheyShareEvenly) {
    const Plan plan =
        allocate_head_importance({1, 4, 4}, std::vector<double>{1, 0, 0, 0}, 20, 0, 2, 22);
    EXPECT_EQ(plan.rows, (std::vector<std::int64_t>{22, 20, 19, 19}));
}

TEST(HeadImportance, EveryHeadAtTheLimit) {
    const auto shares = kv_head_shares(naive::random_scores(kShape, 3), kShape);
    const Plan plan = allocate_head_importance(kShape, shares, 128, 16, 2, 100);
    EXPECT_EQ(plan.rows, std::vector<std::int64_t>(21, 100));
}

TEST(HeadImportance, AllZeroScoresAreUniform) {
    HeadScores scores;
    scores.shape = kShape;
    scores.mean.assign(42, 0.0);
    const auto shares = kv_head_shares(scores, kShape);
    EXPECT_EQ(allocate_head_importance(kShape, shares, 33, 8, 1.2, kUnbounded).rows,
              std::vector<std::int64_t>(21, 33));
}

TEST(Pyramid, IsTheStraightLineOfThePaper) {
    // b' = 120, beta 20: 234 down to 6 over 7 layers in steps of 38, window 8 on top.
    const Plan plan = allocate_pyramid(kShape, 128, 8, 20, kUnbounded);
    for (std::int64_t layer = 0; layer < 7; ++layer) {
        for (std::int64_t head = 0; head < 3; ++head) {
            EXPECT_EQ(plan.at(layer, head), 8 + 234 - 38 * layer);
        }
    }
    EXPECT_EQ(plan.total(), 128 * 21);
}

TEST(Pyramid, ALimitFlattensTheLine) {
    // Top cut to 200 - 8 = 192, so the bottom rises to 48: steps of 24.
    const Plan plan = allocate_pyramid(kShape, 128, 8, 20, 200);
    for (std::int64_t layer = 0; layer < 7; ++layer) {
        EXPECT_EQ(plan.at(layer, 0), 200 - 24 * layer);
    }
    EXPECT_EQ(plan.total(), 128 * 21);
    EXPECT_EQ(allocate_pyramid({1, 2, 2}, 10.5, 8, 20, 50).rows,
              (std::vector<std::int64_t>{11, 10}));
}

TEST(Adaptive, EqualsTheNaiveReference) {
    constexpr std::int64_t kHeads = 3;
    for (const std::int64_t positions : {40, 129}) {
        const auto values = naive::random_values(static_cast<std::size_t>(kHeads * positions),
                                                 static_cast<std::uint32_t>(positions));
        for (const std::int64_t total : {24, 25, 61, 100, 144}) {
            for (const double floor : {0.0, 0.2, 1.0}) {
                for (const bool normalize : {false, true}) {
                    const auto rows = allocate_adaptive(values, kHeads, total, 8, floor, normalize);
                    const auto expected =
                        naive::adaptive(values, kHeads, total, 8, floor, normalize);
                    EXPECT_EQ(sum(rows), total);
                    for (std::size_t head = 0; head < kHeads; ++head) {
                        EXPECT_LT(std::abs(static_cast<double>(rows[head]) - expected[head]),
                                  1.0 + 1e-6);
                        if (floor == 0.0) {
                            EXPECT_EQ(static_cast<double>(rows[head]), expected[head]);
                        }
                    }
                }
            }
        }
    }
}

TEST(Adaptive, NormalizingFavoursConcentratedHeads) {
    // Head 0 puts its mass on 2 positions, head 1 spreads more mass over all of them.
    std::vector<float> values(200, 0.011F);
    std::fill_n(values.begin(), 100, 0.0F);
    values[3] = values[50] = 0.01F;
    const auto plain = allocate_adaptive(values, 2, 20, 8, 0, false);
    const auto normalized = allocate_adaptive(values, 2, 20, 8, 0, true);
    EXPECT_EQ(plain, (std::vector<std::int64_t>{8, 12}));
    EXPECT_EQ(normalized, (std::vector<std::int64_t>{10, 10}));
}

TEST(Adaptive, EqualValuesComeOutEven) {
    const std::vector<float> same(300, 0.5F);
    EXPECT_EQ(allocate_adaptive(same, 3, 31, 8, 0.2, true),
              (std::vector<std::int64_t>{11, 10, 10}));
    const std::vector<float> nothing(300, 0.0F);
    EXPECT_EQ(allocate_adaptive(nothing, 3, 30, 8, 0.2, true),
              (std::vector<std::int64_t>{10, 10, 10}));
    const std::vector<float> broken(300, std::numeric_limits<float>::quiet_NaN());
    EXPECT_EQ(sum(allocate_adaptive(broken, 3, 33, 8, 0.2, true)), 33);
}

TEST(Adaptive, NoHeadGetsMoreThanThereIs) {
    const auto values = naive::random_values(30, 1);  // 3 heads of 10 positions
    for (std::int64_t total = 12; total <= 50; ++total) {
        const auto rows = allocate_adaptive(values, 3, total, 4, 0.0, true);
        EXPECT_EQ(sum(rows), std::min<std::int64_t>(total, 42));
        EXPECT_LE(*std::max_element(rows.begin(), rows.end()), 14);
    }
}

}  // namespace
}  // namespace headkv
