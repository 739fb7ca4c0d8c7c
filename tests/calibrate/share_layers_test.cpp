// Which layers share rows: distances and trials by hand, and a small model from end to end.
#include "calibrate/share_layers.h"

#include <gtest/gtest.h>

#include <numeric>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

LayerMap identity(std::int64_t layers) {
    LayerMap map;
    map.shape = {layers, 1, 1};
    map.owner.resize(static_cast<std::size_t>(layers));
    std::iota(map.owner.begin(), map.owner.end(), 0);
    return map;
}

// Three layers of two heads of one value, two tokens.
TEST(ShareLayers, DistancesByHand) {
    LayerRowSums sums;
    // [layer][head][token]: a token's row is both heads.
    sums.keys = {0, 0, 0, 0, 3, 0, 4, 2, 0, 1, 0, 0};
    sums.values = {0, 0, 0, 0, 0, 0, 0, 0, 6, 6, 8, 8};
    const auto pairs = pairs_by_distance(sums, {3, 2, 2}, 2);
    // Keys: |(3,4)| = 5 and |(0,2)| = 2 between 1 and 0; 0 and 1 between 2 and 0; 5 and |(1,-2)|
    // between 2 and 1. Values: 10 from 2 to the others.
    ASSERT_EQ(pairs.size(), 3U);
    EXPECT_EQ(pairs[0].reader, 2);
    EXPECT_EQ(pairs[0].owner, 1);
    EXPECT_NEAR(pairs[0].distance, ((5 + std::sqrt(5.0)) / 2 + 10) / 2, 1e-9);
    EXPECT_EQ(pairs[1], (LayerPair{2, 0, (0.5 + 10) / 2}));
    EXPECT_EQ(pairs[2], (LayerPair{1, 0, 3.5 / 2}));
}

TEST(ShareLayers, PairsAreTriedInOrderAndKeptWhileTheStatesStayNear) {
    const std::vector<LayerPair> pairs = {{3, 2, 9}, {3, 1, 8}, {4, 3, 7}, {2, 0, 6}, {1, 0, 5}};
    ShareSettings settings;
    settings.wanted = 2;
    std::vector<std::vector<std::int64_t>> tried;
    const auto choose = [&](auto accept) {
        tried.clear();
        return choose_shared(identity(5), pairs, settings, [&](const LayerMap& map) {
            tried.push_back(map.owner);
            return Result<double>(accept(map) ? 0.9 : 0.5);  // 0.5 is not above 0.5
        });
    };
    using Owners = std::vector<std::int64_t>;
    const auto all = choose([](const LayerMap&) { return true; }).value();
    EXPECT_EQ(all.owner, (Owners{0, 1, 2, 2, 2}));  // 4 reads 3's owner; (3, 1) came too late
    EXPECT_EQ(all.tried, 2);
    EXPECT_EQ(all.cosine, 0.9);
    const auto some = choose([](const LayerMap& map) { return map.owner[3] != 2; }).value();
    EXPECT_EQ(some.owner, (Owners{0, 1, 2, 1, 1}));
    EXPECT_EQ(tried, (std::vector<Owners>{{0, 1, 2, 2, 4}, {0, 1, 2, 1, 4}, {0, 1, 2, 1, 1}}));
    // A layer that others read may become a reader itself: all read its owner then.
    settings.wanted = 3;
    EXPECT_EQ(choose([](const LayerMap&) { return true; }).value().owner, (Owners{0, 1, 0, 0, 0}));
    const auto none = choose([](const LayerMap&) { return false; });
    ASSERT_FALSE(none);
    EXPECT_NE(none.error().message.find("only 0 of 5"), std::string::npos);
    settings.wanted = 5;
    EXPECT_FALSE(choose([](const LayerMap&) { return true; }));
}

TEST(ShareLayers, OfAModel) {
    TinyModel deep;
    deep.layers = 6;
    const TinyPair pair(deep);
    const std::vector<std::vector<Token>> texts = {random_tokens(24, 1), random_tokens(24, 2)};
    ShareSettings settings;
    settings.wanted = 2;
    settings.least = -0.99;
    std::int64_t calls = 0;
    const auto map = share_layers(*pair.engine, texts, settings, [&](auto done, auto total) {
                         ++calls;
                         EXPECT_LE(done, total);
                         return true;
                     }).value();
    EXPECT_EQ(map.owners(), 4);
    EXPECT_GE(calls, 6);
    EXPECT_GT(map.cosine, -0.99);
    EXPECT_LT(map.cosine, 1);
    EXPECT_TRUE(check_layer_map(map, pair.model->info().shape, "", false));
    EXPECT_EQ(share_layers(*pair.engine, texts, settings, {}).value().owner, map.owner);
    const auto stopped =
        share_layers(*pair.engine, texts, settings, [](auto, auto) { return false; });
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().kind, ErrorKind::interrupted);
}

}  // namespace
}  // namespace headkv::test
