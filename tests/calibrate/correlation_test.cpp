#include "calibrate/correlation.h"

#include <gtest/gtest.h>

#include <cmath>

namespace headkv {
namespace {

using Values = std::vector<double>;

TEST(Ranks, EqualValuesShareTheirMean) {
    EXPECT_EQ(ranks(Values{30, 10, 20}), (Values{3, 1, 2}));
    EXPECT_EQ(ranks(Values{5, 1, 5, 5}), (Values{3, 1, 3, 3}));
    EXPECT_EQ(ranks(Values{}), Values{});
}

TEST(Correlation, ByHand) {
    // Deviations -1, 0, 1 and -2, 1, 1: 3 / sqrt(2 * 6).
    EXPECT_DOUBLE_EQ(pearson(Values{1, 2, 3}, Values{0, 3, 3}), 3 / std::sqrt(12.0));
    EXPECT_DOUBLE_EQ(pearson(Values{1, 2, 3}, Values{3, 2, 1}), -1);
    EXPECT_DOUBLE_EQ(pearson(Values{1, 1, 1}, Values{3, 2, 1}), 0);
    // One outlier: ranks agree, values do not.
    EXPECT_DOUBLE_EQ(spearman(Values{1, 2, 3, 4}, Values{1, 2, 3, 1000}), 1);
    EXPECT_LT(pearson(Values{1, 2, 3, 4}, Values{1, 2, 3, 1000}), 0.8);
    // Ranks 1, 2, 3, 4 and 2, 1, 4, 3: 1 - 6 * 4 / (4 * 15).
    EXPECT_DOUBLE_EQ(spearman(Values{1, 2, 3, 4}, Values{6, 5, 8, 7}), 0.6);
}

TEST(TopDecile, ShareOfTheHighestTenth) {
    Values a(20), b(20);
    for (std::size_t i = 0; i < 20; ++i) a[i] = b[i] = static_cast<double>(i);
    EXPECT_DOUBLE_EQ(top_decile_overlap(a, b), 1);
    b[18] = -1;  // the highest two are 19, 17 now
    EXPECT_DOUBLE_EQ(top_decile_overlap(a, b), 0.5);
    EXPECT_DOUBLE_EQ(top_decile_overlap(Values{1, 2}, Values{2, 1}), 0);
}

TEST(PerKvHead, SumsTheGroup) {
    EXPECT_EQ(per_kv_head(Values{1, 2, 3, 4, 5, 6, 7, 8}, {2, 4, 2}), (Values{3, 7, 11, 15}));
}

TEST(SplitHalf, UnitsAreNeverParted) {
    const HeadShape shape{1, 4, 2};
    // Probes of one unit agree perfectly, units do not: parted, the halves would agree.
    const Values one = {1, 2, 3, 4}, other = {4, 3, 2, 1};
    const std::vector<UnitScores> probes = {{7, one}, {9, other}, {7, one}, {9, other}};
    const auto half = split_half(probes, shape);
    ASSERT_TRUE(half);
    EXPECT_DOUBLE_EQ(half->spearman, -1);
    EXPECT_DOUBLE_EQ(half->pearson, -1);
    EXPECT_DOUBLE_EQ(half->spearman_kv, -1);
    EXPECT_GT(half->splits, 10);
    const std::vector<UnitScores> same = {{1, one}, {2, one}, {3, one}, {4, one}, {5, one}};
    EXPECT_DOUBLE_EQ(split_half(same, shape)->spearman, 1);
    EXPECT_EQ(split_half(same, shape), split_half(same, shape));
    EXPECT_FALSE(split_half(std::vector<UnitScores>{{1, one}, {2, one}, {3, one}}, shape));
    EXPECT_FALSE(split_half(std::vector<UnitScores>(6, UnitScores{1, one}), shape));
}

}  // namespace
}  // namespace headkv
