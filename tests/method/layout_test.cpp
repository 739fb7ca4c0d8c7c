#include "method/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "support/random.h"

namespace headkv {
namespace {

using test::Random;

std::int64_t missing(const Plan& wanted, const Plan& given) {
    std::int64_t rows = 0;
    for (std::size_t i = 0; i < wanted.rows.size(); ++i) {
        rows += std::max<std::int64_t>(0, wanted.rows[i] - given.rows[i]);
    }
    return rows;
}

Plan random_plan(std::int64_t layers, std::int64_t heads, Random& random) {
    Plan plan{layers, heads, {}};
    for (std::int64_t i = 0; i < layers * heads; ++i) {
        plan.rows.push_back(20 + static_cast<std::int64_t>(random.below(100) * random.below(12)));
    }
    return plan;
}

TEST(Layout, FitsEveryHeadIntoBlocksAndFewCapacities) {
    Random random(3);
    for (const std::int64_t groups : {1, 2}) {
        for (int repeat = 0; repeat < 20; ++repeat) {
            const Plan plan = random_plan(4, 8, random);
            const RowLayout layout{64, groups};
            const Plan fitted = fit_to_layout(plan, layout, 4096);
            EXPECT_LE(fitted.total(), plan.total());
            EXPECT_GT(fitted.total(), plan.total() - (groups == 1 ? 8 : 1) * 64 - 64);
            for (std::int64_t layer = 0; layer < 4; ++layer) {
                std::set<std::int64_t> capacities;
                for (std::int64_t head = 0; head < 8; ++head) {
                    capacities.insert(fitted.at(layer, head));
                    EXPECT_EQ(fitted.at(layer, head) % 64, 0);
                    EXPECT_GE(fitted.at(layer, head), 64);
                }
                EXPECT_LE(static_cast<std::int64_t>(capacities.size()), groups);
            }
        }
    }
}

// The search takes the square of the rows; a plan that needs none must not wait for it.
TEST(Layout, APlanThatFitsStaysAsItIs) {
    Plan plan{64, 16, std::vector<std::int64_t>(64 * 16, 1 << 20)};
    for (std::size_t i = 0; i < plan.rows.size(); i += 3) plan.rows[i] = 256;
    EXPECT_EQ(fit_to_layout(plan, {256, 2}, 1 << 21).rows, plan.rows);
    // A third capacity in one layer does not fit.
    Plan three{1, 3, {128, 192, 320}};
    EXPECT_EQ(fit_to_layout(three, {64, 0}, 4096).rows, three.rows);
    EXPECT_NE(fit_to_layout(three, {64, 2}, 4096).rows, three.rows);
}

// All plans of two layers of three heads, in blocks of 10 rows, tried one by one.
TEST(Layout, NoOtherPlanOfTheLayoutMissesFewerRows) {
    Random random(5);
    for (int repeat = 0; repeat < 10; ++repeat) {
        Plan plan{2, 3, {}};
        for (int i = 0; i < 6; ++i)
            plan.rows.push_back(30 + static_cast<std::int64_t>(random.below(20)));
        const RowLayout layout{10, 2};
        const Plan fitted = fit_to_layout(plan, layout, 1000);
        std::int64_t best = missing(plan, fitted) + 1;
        Plan other{2, 3, std::vector<std::int64_t>(6)};
        for (int code = 0; code < 5 * 5 * 5 * 5 * 5 * 5; ++code) {
            int rest = code;
            for (auto& rows : other.rows) rows = 10 * (1 + rest % 5), rest /= 5;
            const auto capacities = [&](int layer) {
                return std::set<std::int64_t>(other.rows.begin() + 3 * layer,
                                              other.rows.begin() + 3 * layer + 3)
                    .size();
            };
            if (other.total() != fitted.total() || capacities(0) > 2 || capacities(1) > 2) continue;
            best = std::min(best, missing(plan, other));
        }
        EXPECT_EQ(missing(plan, fitted), best);
    }
}

TEST(Layout, APlanOfBlocksStaysAsItIs) {
    const Plan plan{1, 4, {512, 256, 256, 512}};
    EXPECT_EQ(fit_to_layout(plan, {256, 2}, 4096).rows, plan.rows);
}

TEST(Layout, WhatIsTooSmallForBlocksStaysAsItIs) {
    const Plan two_blocks{1, 4, {900, 100, 600, 448}};
    EXPECT_EQ(fit_to_layout(two_blocks, {256, 2}, 4096).rows, two_blocks.rows);
    const Plan plan{1, 4, {100, 200, 40, 60}};
    EXPECT_EQ(fit_to_layout(plan, {256, 2}, 4096).rows, plan.rows);
    EXPECT_EQ(fit_to_layout(plan, {64, 2}, 50).rows, plan.rows);
    EXPECT_EQ(fit_to_layout(plan, {}, 4096).rows, plan.rows);
}

TEST(Layout, GroupsPadAsLittleAsTheyCan) {
    const std::vector<std::int64_t> rows = {100, 20, 90, 30, 25};
    const auto groups = group_heads(rows, {1, 2});
    ASSERT_EQ(groups.size(), 2);
    EXPECT_EQ(groups[0].rows, 100);
    EXPECT_EQ(groups[0].heads, (std::vector<std::int32_t>{0, 2}));
    EXPECT_EQ(groups[1].rows, 30);
    EXPECT_EQ(groups[1].heads, (std::vector<std::int32_t>{1, 3, 4}));
    EXPECT_EQ(group_heads(rows, {1, 1}).size(), 1);
    EXPECT_EQ(group_heads(rows, {1, 0}).size(), 5);
    EXPECT_EQ(group_heads(std::vector<std::int64_t>{7, 7, 7}, {1, 2}).size(), 1);
}

TEST(Layout, IsWrittenAsBlocksAndGroups) {
    EXPECT_EQ(parse_row_layout("256x2").value(), (RowLayout{256, 2}));
    EXPECT_EQ(parse_row_layout("1x1").value(), (RowLayout{1, 1}));
    for (const char* bad : {"", "256", "x2", "256x", "0x2", "256x3", "256x0", "-1x2", "256x2 "}) {
        EXPECT_FALSE(parse_row_layout(bad)) << bad;
    }
}

}  // namespace
}  // namespace headkv
