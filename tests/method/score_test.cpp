#include <gtest/gtest.h>

#include <limits>

#include "method/naive.h"

namespace headkv {
namespace {

struct Case {
    HeadShape shape;
    std::int64_t n, window, kernel;
    Pool pool;
    GroupReduce reduce;
};

std::vector<Case> cases() {
    std::vector<Case> all;
    for (const HeadShape shape : {HeadShape{1, 6, 2}, HeadShape{1, 3, 3}, HeadShape{1, 5, 1}}) {
        for (const std::int64_t n : {1, 5, 17, 101}) {
            for (const std::int64_t window : {1, 4, 16}) {
                for (const std::int64_t kernel : {1, 3, 7, 121}) {
                    for (const Pool pool : {Pool::max, Pool::avg}) {
                        for (const auto reduce : {GroupReduce::mean, GroupReduce::max}) {
                            all.push_back({shape, n, window, kernel, pool, reduce});
                        }
                    }
                }
            }
        }
    }
    // Longer than the blocks that pooling works in.
    all.push_back({{1, 2, 1}, 4201, 16, 7, Pool::max, GroupReduce::mean});
    all.push_back({{1, 2, 1}, 4201, 16, 13, Pool::avg, GroupReduce::mean});
    return all;
}

TEST(Score, EqualsTheNaiveReferenceAtOddSizes) {
    for (const Case& c : cases()) {
        const auto observed = naive::random_values(
            static_cast<std::size_t>(c.shape.query_heads * c.n), static_cast<std::uint32_t>(c.n));
        const auto values =
            score_window(observed, c.shape, c.n, c.window, c.kernel, c.pool, c.reduce);
        const auto expected =
            naive::score(observed, c.shape, c.n, c.window, c.kernel, c.pool, c.reduce);
        ASSERT_EQ(values.size(), expected.size());
        for (std::size_t i = 0; i < values.size(); ++i) {
            ASSERT_NEAR(values[i], expected[i], 2e-6)
                << "n " << c.n << " window " << c.window << " kernel " << c.kernel << " at " << i;
        }
    }
}

TEST(Score, AQueryCountsThePartOfTheNextOne) {
    const auto half = query_weights(4, 0.5);
    EXPECT_EQ(half.each, (std::vector<float>{0.125F, 0.25F, 0.5F, 1}));
    EXPECT_EQ(half.sum, 1.875F);
    // Three of a draft, and two of the prompt before them.
    const auto draft = query_weights(5, 0.25, 3);
    EXPECT_EQ(draft.each, (std::vector<float>{0.25F, 1, 1, 1, 1}));
    EXPECT_EQ(draft.sum, 4.25F);
    const auto short_draft = query_weights(2, 0.25, 3);
    EXPECT_EQ(short_draft.each, (std::vector<float>{1, 1}));
    const auto alike = query_weights(100000, 1);
    EXPECT_EQ(alike.each, std::vector<float>(100000, 1));
    EXPECT_EQ(alike.sum, 100000);
    EXPECT_EQ(query_weights(0, 0.5).sum, 0);
    // Nothing overflows, and the last one is always there.
    const auto least = query_weights(1000, std::numeric_limits<double>::denorm_min());
    EXPECT_EQ(least.sum, 1);
    EXPECT_EQ(least.each.back(), 1);
    EXPECT_EQ(least.each.front(), 0);
}

// The published order is group mean first. Peaks of two query heads side by side tell the orders
// apart: pooling first would let each head bring its own maximum.
TEST(Score, PoolsAfterTheGroupIsReduced) {
    const HeadShape shape{1, 2, 1};
    const std::vector<float> observed = {0, 1, 0, 0, 0, 0, 0,   // query head 0
                                         0, 0, 1, 0, 0, 0, 0};  // query head 1
    const auto values = score_window(observed, shape, 7, 1, 3, Pool::max, GroupReduce::mean);
    EXPECT_EQ(values, (std::vector<float>{0.5F, 0.5F, 0.5F, 0.5F, 0, 0}));  // not 1 at 1 and 2
}

TEST(Score, LeavesTheWindowOutOfThePooling) {
    const HeadShape shape{1, 1, 1};
    const std::vector<float> observed = {1, 0, 0, 0, 9, 9};
    const auto values = score_window(observed, shape, 6, 2, 3, Pool::max, GroupReduce::mean);
    EXPECT_EQ(values, (std::vector<float>{1, 1, 0, 0}));
}

TEST(Score, AverageCountsThePadding) {
    const std::vector<float> observed = {3, 3, 3, 0};
    const auto values = score_window(observed, {1, 1, 1}, 4, 1, 3, Pool::avg, GroupReduce::mean);
    EXPECT_EQ(values, (std::vector<float>{2, 3, 2}));
}

TEST(Score, ANotANumberIsNoAttention) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> observed = {nan, 1, 0, 0, nan, 0, 2, 3, 0, 0};
    for (const Pool pool : {Pool::max, Pool::avg}) {
        for (const auto reduce : {GroupReduce::mean, GroupReduce::max}) {
            auto cleaned = observed;
            std::replace_if(
                cleaned.begin(), cleaned.end(), [](float v) { return std::isnan(v); }, 0.0F);
            EXPECT_EQ(score_window(observed, {1, 2, 1}, 5, 1, 3, pool, reduce),
                      score_window(cleaned, {1, 2, 1}, 5, 1, 3, pool, reduce));
        }
    }
}

}  // namespace
}  // namespace headkv
