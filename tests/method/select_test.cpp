#include <gtest/gtest.h>

#include <limits>

#include "method/naive.h"

namespace headkv {
namespace {

TEST(Select, TopKEqualsSortingEverything) {
    for (const std::int64_t n : {1, 2, 17, 64, 333}) {
        for (const std::int64_t window : {1, 3, 16}) {
            auto values = naive::random_values(static_cast<std::size_t>(n),
                                               static_cast<std::uint32_t>(n + window));
            // Coarse values make many ties, as max pooling does.
            for (float& value : values) value = std::floor(value * 10);
            for (std::int64_t rows = 0; rows <= n + 1; ++rows) {
                ASSERT_EQ(select_top_k_window(values, n, window, rows),
                          naive::top_k_window(values, n, window, rows))
                    << "n " << n << " window " << window << " rows " << rows;
            }
        }
    }
}

TEST(Select, TiesGoToTheLowerPosition) {
    const std::vector<float> values = {1, 2, 2, 2, 1, 2};
    EXPECT_EQ(select_top_k_window(values, 8, 2, 4), (std::vector<std::int32_t>{1, 2, 6, 7}));
    EXPECT_EQ(select_top_k_window(std::vector<float>(6, 0.0F), 8, 2, 5),
              (std::vector<std::int32_t>{0, 1, 2, 6, 7}));
}

TEST(Select, ANotANumberRanksLast) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> values = {nan, 0, nan, 1, nan};
    EXPECT_EQ(select_top_k_window(values, 6, 1, 3), (std::vector<std::int32_t>{1, 3, 5}));
    EXPECT_EQ(select_top_k_window(values, 6, 1, 4), (std::vector<std::int32_t>{0, 1, 3, 5}));
    EXPECT_EQ(select_top_k_window(std::vector<float>(5, nan), 6, 1, 3),
              (std::vector<std::int32_t>{0, 1, 5}));
}

TEST(Select, InfinitiesKeepTheirPlace) {
    const float inf = std::numeric_limits<float>::infinity();
    const std::vector<float> values = {0, inf, -inf, inf, 1};
    EXPECT_EQ(select_top_k_window(values, 6, 1, 3), (std::vector<std::int32_t>{1, 3, 5}));
    EXPECT_EQ(select_top_k_window(values, 6, 1, 2), (std::vector<std::int32_t>{1, 5}));
}

TEST(Select, FewerRowsThanTheWindowKeepsTheNewest) {
    EXPECT_EQ(select_top_k_window({}, 4, 8, 2), (std::vector<std::int32_t>{2, 3}));
}

TEST(Select, ProtectedRowsAreKeptBeforeAnyScoreDecides) {
    const std::vector<float> values = {0, 0, 1, 5, 4, 3, 9, 9};
    EXPECT_EQ(select_top_k_window(values, 8, 2, 6, 2),
              (std::vector<std::int32_t>{0, 1, 3, 4, 6, 7}));
    // too few rows for all that is protected, and more protected than there is in front
    EXPECT_EQ(select_top_k_window(values, 8, 2, 3, 2), (std::vector<std::int32_t>{0, 6, 7}));
    EXPECT_EQ(select_top_k_window(values, 8, 2, 2, 2), (std::vector<std::int32_t>{6, 7}));
    EXPECT_EQ(select_top_k_window(values, 8, 6, 7, 4),
              (std::vector<std::int32_t>{0, 2, 3, 4, 5, 6, 7}));
    EXPECT_EQ(select_top_k_window(values, 8, 6, 8, 4).size(), 8U);
}

TEST(Select, SinksAndRecent) {
    EXPECT_EQ(select_sinks_recent(10, 2, 5), (std::vector<std::int32_t>{0, 1, 7, 8, 9}));
    EXPECT_EQ(select_sinks_recent(4, 2, 5), (std::vector<std::int32_t>{0, 1, 2, 3}));
    EXPECT_EQ(select_sinks_recent(10, 0, 3), (std::vector<std::int32_t>{7, 8, 9}));
    EXPECT_EQ(select_sinks_recent(10, 4, 3), (std::vector<std::int32_t>{0, 1, 2}));
    EXPECT_TRUE(select_sinks_recent(10, 4, 0).empty());
}

}  // namespace
}  // namespace headkv
