// Methods of the field by hand: one small example each, and the steps that they bring.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "method/naive.h"

namespace headkv {
namespace {

using Positions = std::vector<std::int32_t>;

// One layer of two KV heads of one query head each, ten tokens.
constexpr HeadShape kTwoHeads{1, 2, 2};
constexpr std::int64_t kTokens = 10;

std::vector<Positions> keep(const std::string& method, double rows, const LayerView& view,
                            const MethodOptions& options = {}) {
    MethodConfig config;
    config.method = method;
    config.budget.value = rows;
    config.options = options;
    auto scores = naive::random_scores(kTwoHeads, 1);
    scores.kind = "mine";
    scores.mean = {0.1F, 0.9F};
    config.scores = std::make_shared<const HeadScores>(scores);
    const auto made = Method::create(config, kTwoHeads, kTokens, 1);
    if (!made) throw std::runtime_error(made.error().message);
    return made->keep_layer(0, view);
}

std::vector<Positions> keep(const std::string& method, double rows,
                            const std::vector<float>& observed, const std::vector<float>& keys = {},
                            const MethodOptions& options = {}) {
    return keep(method, rows, {.observed = observed, .keys = keys}, options);
}

// clang-format off
const std::vector<float> kObserved = {9, 1, 2, 8, 3, 0, 0, 7, 0, 0,
                                      0, 5, 0, 1, 6, 2, 0, 0, 0, 4};
// clang-format on

TEST(FieldMethods, H2oKeepsTheHeaviestAndAsManyRecentRows) {
    const auto kept = keep("h2o", 5, kObserved);
    EXPECT_EQ(kept[0], (Positions{0, 3, 7, 8, 9}));  // 2 heavy, 3 recent
    EXPECT_EQ(kept[1], (Positions{1, 4, 7, 8, 9}));
}

// The first rows and the newest stay; the others come cluster by cluster, and the last cluster that
// comes is cut behind its lowest positions.
TEST(FieldMethods, ClusterkvTakesClustersInOrderAndCutsTheLast) {
    constexpr std::int64_t kLong = 30;
    MethodConfig config;
    config.method = "clusterkv";
    config.budget.value = 22;  // 16, 5 that are chosen, and the last
    const auto method = Method::create(config, {1, 1, 1}, kLong, 1).value();
    EXPECT_EQ(method.needs().clusters, (ClusterNeeds{80, 16}));
    std::vector<float> products(kLong, 100);  // of rows in no cluster: of no account
    for (std::size_t i = 16; i < kLong; ++i) products[i] = std::vector<float>{-1, 3, 2}[i % 3];
    // Three: 16, 19, 22, 25, 28. Then two: 17, 20, 23, 26. Then -1.
    const auto kept = [&](double rows) {
        config.budget.value = rows;
        auto all = Method::create(config, {1, 1, 1}, kLong, 1)
                       .value()
                       .keep_layer(0, {.cluster_products = products})[0];
        EXPECT_EQ(all, method.keep_valued(products, kLong, static_cast<std::int64_t>(rows)));
        return Positions(all.begin() + 16, all.end());
    };
    EXPECT_EQ(kept(20), (Positions{16, 19, 22, 29}));
    EXPECT_EQ(kept(22), (Positions{16, 19, 22, 25, 28, 29}));
    EXPECT_EQ(kept(24), (Positions{16, 17, 19, 20, 22, 25, 28, 29}));
    // Newest rows outside of clusters: a quarter of what is not the first 16, at most 320.
    EXPECT_EQ(method.most_unclustered(17), 1);
    EXPECT_EQ(method.most_unclustered(128), 28);
    EXPECT_EQ(method.most_unclustered(5000), 320);
}

// Three layers of one head, ten tokens, four rows a head on average: twelve in all, six for each of
// the two layers that own rows.
TEST(FieldMethods, KvsharerGivesTheRowsOfSharedLayersToTheOthers) {
    MethodConfig config;
    config.method = "kvsharer";
    config.budget.value = 4;
    config.options.window = 2;
    config.options.kernel = 1;
    LayerMap map;
    map.shape = {3, 1, 1};
    map.owner = {0, 1, 0};
    config.share = std::make_shared<const LayerMap>(map);
    const auto method = Method::create(config, {3, 1, 1}, kTokens, 1).value();
    EXPECT_EQ(method.plan().rows, (std::vector<std::int64_t>{6, 6, 0}));
    const std::vector<float> observed(kObserved.begin(), kObserved.begin() + kTokens);
    EXPECT_EQ(method.keep_layer(0, {.observed = observed})[0], (Positions{0, 3, 4, 7, 8, 9}));
    EXPECT_TRUE(method.keep_layer(2, {.observed = observed})[0].empty());
    EXPECT_EQ(method.bound(2, 0, 0), 0);
    // Ten rows in each owner: the whole prompt, two thirds of a full cache.
    config.budget.value = 6.7;
    const auto whole = Method::create(config, {3, 1, 1}, kTokens, 1).value();
    EXPECT_TRUE(whole.runs_as_full());
    EXPECT_EQ(whole.plan().rows, (std::vector<std::int64_t>{10, 10, 0}));
    // Two of three layers must hold the window of two rows: one and a third on average.
    config.budget.value = 1;
    EXPECT_FALSE(Method::create(config, {3, 1, 1}, kTokens, 1));
    config.budget.value = 1.4;
    EXPECT_TRUE(Method::create(config, {3, 1, 1}, kTokens, 1));
    // With head importance an owner has that of its readers, too.
    config.method = "headkv-r2";
    config.options.beta = 1;
    config.options.window = 1;
    config.budget.value = 2;
    auto scores = std::make_shared<HeadScores>();
    scores->shape = {3, 1, 1};
    scores->kind = "r2";
    scores->mean = {1, 1, 2};
    config.scores = scores;
    // Six rows, one each for the window, four by 3 to 1.
    EXPECT_EQ(Method::create(config, {3, 1, 1}, kTokens, 1).value().plan().rows,
              (std::vector<std::int64_t>{4, 2, 0}));
}

TEST(FieldMethods, H2oLooksAtAllQueriesTovaAtTheLast) {
    const auto observe = [](const char* name) {
        MethodConfig config;
        config.method = name;
        config.budget.value = 5;
        return Method::create(config, kTwoHeads, kTokens, 1).value().needs().queries;
    };
    EXPECT_EQ(observe("h2o"), kTokens);
    EXPECT_EQ(observe("tova"), 1);
    EXPECT_EQ(observe("knorm"), 0);
}

TEST(FieldMethods, TovaKeepsOneSetInAllHeads) {
    // Sums over the heads: 9 6 2 9 9 2 0 7 0 4.
    const auto kept = keep("tova", 5, kObserved);
    EXPECT_EQ(kept[0], (Positions{0, 3, 4, 7, 9}));
    EXPECT_EQ(kept[1], kept[0]);
}

// Keep lists of all layers after the last one: [layers * kv_heads].
std::vector<Positions> keep_layers(const std::string& method, double rows, const HeadShape& shape,
                                   const std::vector<std::vector<float>>& observed,
                                   const MethodOptions& options) {
    MethodConfig config;
    config.method = method;
    config.budget.value = rows;
    config.options = options;
    const auto tokens = static_cast<std::int64_t>(observed[0].size()) / shape.query_heads;
    PromptSelection selection(Method::create(config, shape, tokens, 1).value());
    std::vector<Positions> kept;
    for (std::size_t i = 0; i < observed.size(); ++i) {
        for (auto& head : selection.next(static_cast<std::int64_t>(i), {.observed = observed[i]})) {
            kept.push_back(std::move(head));
        }
        naive::apply(selection.cuts(), shape.kv_heads, kept);
    }
    return kept;
}

TEST(FieldMethods, KvCompressLetsAllLayersCompete) {
    MethodOptions options;
    options.window = 2;
    options.kernel = 1;
    // Two layers of one head, six tokens of which the last two are the window: 2 x 4 rows are 4
    // beyond the windows, and the best four of all are three of the second layer, one of the first.
    const auto kept =
        keep_layers("kv-compress", 4, {2, 1, 1}, {{1, 5, 2, 3, 0, 0}, {7, 4, 6, 0, 0, 0}}, options);
    EXPECT_EQ(kept[0], (Positions{1, 4, 5}));
    EXPECT_EQ(kept[1], (Positions{0, 1, 2, 4, 5}));
    MethodConfig config;
    config.method = "kv-compress";
    EXPECT_TRUE(Method::create(config, kTwoHeads, 1000, 1).value().needs().squares);
}

TEST(FieldMethods, PrefixKvKeepsTheSameMassInAllLayers) {
    // Of 100 each; without the first and the last row, which stay: 40 20 10 5 and 15 15 15 15. Five
    // rows are left for those with the least before them: 0 40 75 95 and 25 40 55 70.
    const auto kept = keep_layers("prefixkv", 4.5, {2, 1, 1},
                                  {{15, 40, 20, 10, 5, 10}, {25, 15, 15, 15, 15, 15}}, {});
    EXPECT_EQ(kept[0], (Positions{0, 1, 2, 5}));
    EXPECT_EQ(kept[1], (Positions{0, 1, 2, 3, 5}));
}

TEST(FieldMethods, GlobalSelectionEqualsSortingAllRowsAtOnce) {
    constexpr HeadShape kShape{7, 6, 3};
    constexpr std::int64_t kLong = 203, kWindow = 5, kProtect = 3;
    MethodOptions options;
    options.window = kWindow;
    options.protect = kProtect;
    options.kernel = 1;
    std::vector<std::vector<float>> observed;
    for (std::uint32_t layer = 0; layer < 7; ++layer) {
        auto& values = observed.emplace_back(naive::random_values(6 * kLong, layer));
        // Layers of unlike weight, and few different values, so that many tie.
        for (float& value : values)
            value = std::round(value * 8) * static_cast<float>(1 + layer % 3);
    }
    for (const double rows : {8.0, 9.1, 40.0, 120.7, 202.9}) {
        const auto kept = keep_layers("kv-compress", rows, kShape, observed, options);
        using Row = std::tuple<double, std::int64_t, std::size_t>;  // -value, position, head of all
        std::vector<Row> all;
        for (std::size_t layer = 0; layer < 7; ++layer) {
            const auto values = naive::score(observed[layer], kShape, kLong, kWindow, 1, Pool::avg,
                                             GroupReduce::mean);
            for (std::size_t i = 0; i < values.size(); ++i) {
                const auto position = static_cast<std::int64_t>(i) % (kLong - kWindow);
                if (position < kProtect) continue;
                all.emplace_back(-values[i], position, layer * 3 + i / (kLong - kWindow));
            }
        }
        std::sort(all.begin(), all.end());
        const auto total = std::llround(rows * 21) - 21 * (kWindow + kProtect);
        std::vector<std::set<std::int32_t>> expected(21);
        for (auto& head : expected) {
            for (std::int32_t i = 0; i < kProtect; ++i) head.insert(i);
            for (std::int32_t i = kLong - kWindow; i < kLong; ++i) head.insert(i);
        }
        for (std::int64_t i = 0; i < total; ++i) {
            const auto& [value, position, head] = all[static_cast<std::size_t>(i)];
            expected[head].insert(static_cast<std::int32_t>(position));
        }
        for (std::size_t head = 0; head < 21; ++head) {
            EXPECT_EQ(kept[head], Positions(expected[head].begin(), expected[head].end()))
                << rows << " " << head;
        }
    }
}

TEST(FieldMethods, RowsOfAllLayersFitNoBlocks) {
    MethodConfig config;
    config.method = "prefixkv";
    config.layout = {256, 2};
    const auto refused = Method::create(config, kTwoHeads, 1000, 1);
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
}

TEST(FieldMethods, FastGenKeepsTheCheapestClassThatHoldsEnough) {
    using K = TokenKind;
    // Four first rows and the last are class 0 as special tokens are, here row 5; row 6 is a mark;
    // two rows may be frequent, three recent.
    const std::vector<K> kinds = {K::text,        K::text, K::text, K::text, K::text, K::special,
                                  K::punctuation, K::text, K::text, K::text, K::text, K::text};
    // Attention in percent. Head 0: special rows hold 80, marks 10 more, the frequent rows 4 and 7
    // 3 each, recent ones (8, 10) the rest. Head 1: special 20, marks 10, the frequent 8 and 7 50.
    const std::vector<std::vector<float>> observed = {{20, 20, 10, 10, 3, 10, 10, 3, 1, 1, 2, 10},
                                                      {2, 2, 2, 2, 2, 2, 10, 20, 30, 9, 9, 10}};
    MethodConfig config;
    config.method = "fastgen";
    config.options.class_rows = 2;
    const auto keep_at = [&](double rows, double recovery = 1) {
        config.budget.value = rows;
        config.options.recovery = recovery;
        PromptSelection selection(Method::create(config, {2, 1, 1}, 12, 1).value());
        std::vector<Positions> kept;
        std::int64_t index = 0;
        for (const auto& layer : observed) {
            for (auto& head : selection.next(index++, {.observed = layer, .kinds = kinds})) {
                kept.push_back(std::move(head));
            }
            naive::apply(selection.cuts(), 1, kept);
        }
        return kept;
    };
    // Six rows are special. By what is missing without them, the next are: of head 1 its mark (80
    // missing), its frequent rows (70), of head 0 its mark (20), of head 1 its recent ones (20).
    EXPECT_EQ(keep_at(6)[0], (Positions{0, 1, 2, 3, 5, 11}));
    EXPECT_EQ(keep_at(6)[1], (Positions{0, 1, 2, 3, 5, 11}));
    auto kept = keep_at(7.5);  // 15 rows: 12 special ones, head 1's mark and frequent rows
    EXPECT_EQ(kept[0], (Positions{0, 1, 2, 3, 5, 11}));
    EXPECT_EQ(kept[1], (Positions{0, 1, 2, 3, 5, 6, 7, 8, 11}));
    // One row less: of the class that is cut the best row stays.
    EXPECT_EQ(keep_at(7)[1], (Positions{0, 1, 2, 3, 5, 6, 8, 11}));
    // Enough is enough: special rows hold 80 % of head 0; head 1 needs its frequent ones for that.
    kept = keep_at(11, 0.75);
    EXPECT_EQ(kept[0], (Positions{0, 1, 2, 3, 5, 11}));
    EXPECT_EQ(kept[1], (Positions{0, 1, 2, 3, 5, 6, 7, 8, 11}));
}

TEST(FieldMethods, FastGenServesTheQueryHeadThatItsClassesServeWorst) {
    // One KV head, two query heads: the first needs nothing but special rows, the second does.
    using K = TokenKind;
    const std::vector<K> kinds = {K::special, K::punctuation, K::text, K::text};
    const std::vector<float> observed = {1, 0, 0, 0, 0.5F, 0.25F, 0.25F, 0};
    const auto values = score_token_classes({.observed = observed, .kinds = kinds}, {1, 2, 1}, 4, 0,
                                            1, 0, GroupReduce::mean);
    EXPECT_EQ(values, (std::vector<float>{1, 0.5F, 0.25F, 1}));  // the last row is always there
}

TEST(FieldMethods, FastGenAppliesAHeadsClassesToItsAnswer) {
    using K = TokenKind;
    // The prompt of the test above at 7.5 rows: head 0 has special rows only, head 1 frequent ones
    // (two may be) as the last class. Four tokens of an answer follow: text, a mark, a special one,
    // text.
    std::vector<K> kinds(12, K::text);
    kinds[5] = K::special;
    kinds[6] = K::punctuation;
    const std::vector<std::vector<float>> observed = {{20, 20, 10, 10, 3, 10, 10, 3, 1, 1, 2, 10},
                                                      {2, 2, 2, 2, 2, 2, 10, 20, 30, 9, 9, 10}};
    MethodConfig config;
    config.method = "fastgen";
    config.budget.value = 7.5;
    config.options.class_rows = 2;
    const auto method = Method::create(config, {2, 1, 1}, 12, 1).value();
    EXPECT_TRUE(method.rows_have_classes());
    PromptSelection selection(method);
    std::vector<Positions> kept;
    for (std::int64_t layer = 0; layer < 2; ++layer) {
        const auto& seen = observed[static_cast<std::size_t>(layer)];
        kept.push_back(selection.next(layer, {.observed = seen, .kinds = kinds})[0]);
        naive::apply(selection.cuts(), 1, kept);
    }
    const auto heads = selection.classes();
    ASSERT_EQ(heads.size(), 2U);
    EXPECT_EQ(heads[0].last, 0);
    EXPECT_EQ(heads[1].last, 2);
    // Twelve queries have looked at the rows kept; what the first four have does not matter.
    using Sums = std::vector<float>;
    EXPECT_EQ(heads[0].attention, (Sums{0, 0, 0, 0, 120, 120}));
    EXPECT_EQ(heads[1].attention, (Sums{0, 0, 0, 0, 24, 120, 240, 360, 120}));

    kinds.insert(kinds.end(), {K::text, K::punctuation, K::special, K::text});
    const auto keep = [&](HeadClasses head, const Sums& attention, const Positions& positions,
                          std::int64_t rows) {
        const auto stay = method.keep_classed(head, attention, positions, kinds, rows);
        Positions result;
        for (const auto i : stay) result.push_back(positions[static_cast<std::size_t>(i)]);
        EXPECT_EQ(head.attention.size(), result.size());
        return result;
    };
    // Head 0: of two special rows the one that more was looked at (124 and 8), however much the
    // text behind the prompt (row 11: 320) has; what is left goes by attention, whatever the class.
    const Positions first = {0, 1, 2, 3, 5, 11, 12, 13, 14, 15};
    const Sums seen_first = {0, 0, 0, 0, 1, 50, 40, 5, 2, 1};
    EXPECT_EQ(keep(heads[0], seen_first, first, 6), (Positions{0, 1, 2, 3, 5, 15}));
    EXPECT_EQ(keep(heads[0], seen_first, first, 7), (Positions{0, 1, 2, 3, 5, 14, 15}));
    EXPECT_EQ(keep(heads[0], seen_first, first, 8), (Positions{0, 1, 2, 3, 5, 11, 14, 15}));
    // Head 1: special rows, then marks, then those that are frequent now: 11 and 12 with 400 each
    // in place of 7 and 8.
    const Positions second = {0, 1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 14, 15};
    const Sums seen_second = {0, 0, 0, 0, 0, 0, 0, 1, 70, 100, 1, 0, 0};
    EXPECT_EQ(keep(heads[1], seen_second, second, 9), (Positions{0, 1, 2, 3, 5, 6, 13, 14, 15}));
    EXPECT_EQ(keep(heads[1], seen_second, second, 10),
              (Positions{0, 1, 2, 3, 5, 6, 11, 13, 14, 15}));
    EXPECT_EQ(keep(heads[1], seen_second, second, 11),
              (Positions{0, 1, 2, 3, 5, 6, 11, 12, 13, 14, 15}));
    // The sums go on with the rows that stay.
    auto head = heads[1];
    method.keep_classed(head, seen_second, second, kinds, 10);
    EXPECT_EQ(head.attention, (Sums{0, 0, 0, 0, 24, 120, 400, 4, 0, 0}));
    EXPECT_EQ(head.last, 2);
    // A head with everything goes by the attention of the last queries alone.
    EXPECT_EQ(method.keep_classed(head = {}, seen_first, first, kinds, 7),
              method.keep_head(seen_first, 10, 7, first));
}

TEST(FieldMethods, FastGensRecentRowsMoveOnWithTheAnswer) {
    MethodConfig config;
    config.method = "fastgen";
    config.budget.value = 6;
    config.options.frequent = 1 / 12.0;
    config.options.local = 4 / 12.0;
    const auto method = Method::create(config, {1, 1, 1}, 12, 1).value();
    // Of fourteen tokens of text the last four are recent: 10 to 13; row 4 is the frequent one.
    const std::vector<TokenKind> kinds(14, TokenKind::text);
    const Positions held = {0, 1, 2, 3, 4, 5, 10, 11, 12, 13};
    const std::vector<float> attention = {0, 0, 0, 0, 9, 8, 7, 6, 5, 0};
    const auto keep = [&](std::int64_t rows) {
        HeadClasses head{3, {0, 0, 0, 0, 0, 0, 0, 0}};
        return method.keep_classed(head, attention, held, kinds, rows);
    };
    // Indices: the newest recent rows stay, not those with the most attention; row 5 comes last.
    EXPECT_EQ(keep(6), (Positions{0, 1, 2, 3, 4, 9}));
    EXPECT_EQ(keep(7), (Positions{0, 1, 2, 3, 4, 8, 9}));
    EXPECT_EQ(keep(8), (Positions{0, 1, 2, 3, 4, 7, 8, 9}));
    EXPECT_EQ(keep(9), (Positions{0, 1, 2, 3, 4, 6, 7, 8, 9}));
}

TEST(FieldMethods, EmsAddsBothKindsOfAttentionAndMergesTheNextRows) {
    MethodOptions options;
    options.window = 1;
    options.kernel = 1;
    // Of all queries, each row's as if all ten saw it, and of the last one, which in head 0 is half
    // as large before the window.
    std::vector<float> all = {5, 0, 1, 0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0};
    for (std::size_t i = 0; i < all.size(); ++i) {
        all[i] *= static_cast<float>(10 - i % 10) / 10;
    }
    const std::vector<float> last = {0, 0, 2.3F, 0, 0, 2.2F, 0, 0, 0, 7,
                                     9, 0, 0,    0, 0, 0,    0, 0, 0, 7};
    // Head 0: 5 0 5.6 0 2 4.4 0 1 0; head 1: 9 at row 0 and at row 7.
    std::vector<float> keys(2 * 10 * 2, 0);
    const auto key = [&](std::size_t row, float x, float y) {
        keys[2 * row] = x;
        keys[2 * row + 1] = y;
    };
    key(0, 1, 0);
    key(2, 0, 1);
    key(4, 0.1F, 3);  // like that of row 2
    key(5, 1, 0.5F);  // like that of row 0
    key(9, -1, -1);
    const LayerView view{.observed = all, .keys = keys, .recent = last};
    MethodConfig config;
    config.method = "ems";
    config.budget.value = 3;
    config.options = options;
    const auto method = Method::create(config, kTwoHeads, kTokens, 1).value();
    EXPECT_EQ(method.needs().queries, kTokens);
    EXPECT_EQ(method.needs().recent_queries, 1);
    const auto choice = method.choose_layer(0, view);
    EXPECT_EQ(choice.kept[0], (Positions{0, 2, 9}));
    // The next three are 5, 4 and 7; row 7's key has no direction.
    EXPECT_EQ(choice.merged[0], (std::vector<MergedRow>{{5, 0}, {4, 2}}));
    EXPECT_EQ(choice.kept[1], (Positions{0, 7, 9}));
    EXPECT_TRUE(choice.merged[1].empty());
}

TEST(FieldMethods, CriticalKvChoosesHalfByWhatRowsAddToTheOutput) {
    MethodOptions options;
    options.window = 1;
    options.kernel = 1;
    options.floor = 0;
    options.normalize = false;
    std::vector<float> norms(2 * kTokens, 1);
    norms[5] = 1e6F;  // an unseen row with a huge value: 1e-4 of it count
    norms[2] = 100;
    norms[kTokens + 5] = 10;
    const LayerView view{.observed = kObserved, .output_norms = norms};
    // Four rows beyond the window. Head 0: 9 and 8 by attention; then 2 * 100 and 1e-4 * 1e6.
    // Head 1: 6 and 5; then 2 * 10 and 1.
    const auto kept = keep("criticalkv", 5, view, options);
    EXPECT_EQ(kept[0], (Positions{0, 2, 3, 5, 9}));
    EXPECT_EQ(kept[1], (Positions{1, 3, 4, 5, 9}));
    // Six rows for both: attention alone (9 8 7 3, 6 5) gives four to head 0, two to head 1.
    const auto adaptive = keep("ada-criticalkv", 4, view, options);
    EXPECT_EQ(adaptive[0], (Positions{0, 2, 3, 5, 9}));
    EXPECT_EQ(adaptive[1], (Positions{4, 5, 9}));
}

TEST(FieldMethods, ExpectedAttentionLooksAhead) {
    // One dimension. Head 0: queries at 1, so a key k expects exp(k). Head 1: queries spread around
    // 0 with variance 2, so it expects exp(k * k). The first four rows stay whatever they have.
    // clang-format off
    const std::vector<float> keys = {9, 9, 9, 9,  0, 1, 2, 0, 0, 3,
                                     9, 9, 9, 9, -2, 1, 0, 1.5F, 0, 3};
    const std::vector<float> values = {9, 9, 9, 9, 1, 1, 0.1F, -5, 1, 1,
                                       9, 9, 9, 9, 1, 1, 1, 1, 1, 1};
    // clang-format on
    const std::vector<float> mean = {1, 0}, covariance = {0, 2};
    const LayerView view{
        .keys = keys, .values = values, .query_mean = mean, .query_covariance = covariance};
    const auto kept = keep("expected-attention", 7, view);
    EXPECT_EQ(kept[0], (Positions{0, 1, 2, 3, 5, 7, 9}));  // 1 2.7 0.7 5 1
    EXPECT_EQ(kept[1], (Positions{0, 1, 2, 3, 4, 7, 9}));  // 54.6 2.7 1 9.5 1
}

TEST(FieldMethods, KvzipLetsAllLayersCompeteForWhatRebuildsThePrompt) {
    MethodConfig config;
    config.method = "kvzip";
    config.budget.value = 7;
    config.options.window = 1;
    const std::vector<std::vector<float>> seen = {{0, 0, 0, 0, 1, 5, 2, 3, 9},
                                                  {0, 0, 0, 0, 7, 4, 6, 0, 9}};
    PromptSelection selection(Method::create(config, {2, 1, 1}, 9, 1).value());
    std::vector<Positions> kept;
    for (std::int64_t layer = 0; layer < 2; ++layer) {
        const LayerView view{.reconstruction = seen[static_cast<std::size_t>(layer)]};
        for (auto& head : selection.next(layer, view)) kept.push_back(head);
        naive::apply(selection.cuts(), 1, kept);
    }
    // Fourteen rows: five always stay in each head, the four best of eight are 7 6 5 4.
    EXPECT_EQ(kept[0], (Positions{0, 1, 2, 3, 5, 8}));
    EXPECT_EQ(kept[1], (Positions{0, 1, 2, 3, 4, 5, 6, 8}));
}

TEST(FieldMethods, ChunkKvKeepsWholeChunksInAllHeads) {
    MethodOptions options;
    options.window = 1;
    options.kernel = 1;
    options.chunk = 3;
    // Chunks of the nine rows before the window: (9 + 6 + 2) / 3, (9 + 9 + 2) / 3, (0 + 7 + 0) / 3.
    const auto kept = keep("chunkkv", 4, kObserved, {}, options);
    EXPECT_EQ(kept[0], (Positions{3, 4, 5, 9}));
    EXPECT_EQ(kept[1], kept[0]);
}

TEST(FieldMethods, WholeSentencesStayWhereTheyAreAskedForAndKnown) {
    MethodOptions options;
    options.window = 1;
    options.kernel = 5;  // of no use where sentences are known
    options.sentences = true;
    // Means of the sentences: 9, 11/3, 3/2, 7/3 and 0, 2, 4, 0. Four rows beside the window: two
    // sentences, of which the second head cuts the latter.
    const std::vector<std::int32_t> starts = {0, 1, 4, 6};
    LayerView view{.observed = kObserved, .sentences = starts};
    auto kept = keep("snapkv", 5, view, options);
    EXPECT_EQ(kept[0], (Positions{0, 1, 2, 3, 9}));
    EXPECT_EQ(kept[1], (Positions{1, 2, 4, 5, 9}));
    view.sentences = {};  // as while an answer is written
    options.kernel = 1;
    kept = keep("snapkv", 5, view, options);
    EXPECT_EQ(kept[0], (Positions{0, 3, 4, 7, 9}));
    EXPECT_EQ(kept[1], (Positions{1, 3, 4, 5, 9}));
}

TEST(FieldMethods, DuoAttentionFillsTheImportantHeads) {
    MethodOptions options;
    options.sinks = 2;
    options.window = 1;
    const auto kept = keep("duo-attention", 7, {}, {}, options);
    EXPECT_EQ(kept[0], (Positions{0, 1, 8, 9}));
    EXPECT_EQ(kept[1].size(), 10U);
    const auto fewer =
        keep("duo-attention", 6, {}, {}, options);  // 12 rows: 2 too few for a full one
    EXPECT_EQ(fewer[0].size(), 6U);
    EXPECT_EQ(fewer[1].size(), 6U);
}

TEST(FieldMethods, BaklavaGivesHeadsThatChangeTheirValuesMore) {
    MethodOptions options;
    options.sinks = 2;
    options.beta = 1;
    // Ten rows: 3 each (sinks and the last), four by importance: 0.4 and 3.6.
    const auto kept = keep("baklava", 5, {}, {}, options);
    EXPECT_EQ(kept[0], (Positions{0, 1, 9}));
    EXPECT_EQ(kept[1], (Positions{0, 1, 5, 6, 7, 8, 9}));
    EXPECT_EQ(default_options(**find_recipe("baklava")).beta, 1);
    EXPECT_EQ(default_options(**find_recipe("baklava")).protect, 0);
}

TEST(FieldMethods, KnormKeepsShortKeys) {
    std::vector<float> keys;
    for (const float length : {5.0F, 1.0F, 7.0F, 2.0F, 8.0F, 9.0F, 3.0F, 6.0F, 4.0F, 9.0F})
        keys.push_back(length);
    for (const float length : {1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F, 7.0F, 8.0F, 9.0F, 9.0F})
        keys.push_back(-length);
    const auto kept = keep("knorm", 4, {}, keys);
    EXPECT_EQ(kept[0], (Positions{1, 3, 6, 9}));
    EXPECT_EQ(kept[1], (Positions{0, 1, 2, 9}));
}

TEST(FieldMethods, KeydiffKeepsKeysUnlikeTheMean) {
    // Two dimensions: eight keys along x, of any length, one along y, one against x.
    std::vector<float> keys;
    for (int head = 0; head < 2; ++head) {
        for (int i = 0; i < 10; ++i) {
            const bool across = i == 4, against = i == 6;
            keys.push_back(across ? 0.0F : against ? -1.0F : 1.0F + static_cast<float>(i));
            keys.push_back(across ? 3.0F : 0.0F);
        }
    }
    EXPECT_EQ(keep("keydiff", 3, {}, keys)[0], (Positions{4, 6, 9}));
    EXPECT_EQ(keep("keydiff", 2, {}, keys)[1], (Positions{6, 9}));
}

TEST(FieldMethods, RandomDependsOnItsSeedLayerAndHead) {
    const auto first = score_random(1, 0, 2, 500);
    EXPECT_EQ(first, score_random(1, 0, 2, 500));
    EXPECT_NE(first, score_random(2, 0, 2, 500));
    EXPECT_NE(first, score_random(1, 1, 2, 500));
    EXPECT_GT(std::set<float>(first.begin(), first.end()).size(), 990U);
    double sum = 0;
    for (const float value : first) {
        ASSERT_GE(value, 0);
        ASSERT_LT(value, 1);
        sum += value;
    }
    EXPECT_NEAR(sum / 1000, 0.5, 0.05);
    // Longer prompts keep the values of their beginning.
    const auto longer = score_random(1, 0, 2, 600);
    EXPECT_TRUE(std::equal(first.begin(), first.begin() + 500, longer.begin()));
}

// --- steps against plain loops, at odd sizes

TEST(FieldSteps, KeyNorm) {
    const std::vector<float> keys{3, 4, 0, 1, 6, 8};  // one head, three keys: lengths 5, 1 and 10
    const auto values = score_key_norm(keys, 1, 3);
    EXPECT_EQ(values, (std::vector<float>{-5, -1, -10}));
    EXPECT_EQ(select_top_k_window(values, 3, 1, 2), (std::vector<std::int32_t>{1, 2}));
}

TEST(FieldSteps, KeyScoresMatchPlainLoops) {
    const std::int64_t heads = 3, n = 37, dim = 5;
    const auto keys = naive::random_values(static_cast<std::size_t>(heads * n * dim), 7);
    const auto norms = score_key_norm(keys, heads, n);
    const auto differences = score_key_difference(keys, heads, n);
    const auto at = [&](std::int64_t head, std::int64_t i, std::int64_t d) {
        return static_cast<double>(keys[static_cast<std::size_t>((head * n + i) * dim + d)]);
    };
    const auto length = [&](std::int64_t head, std::int64_t i) {
        double sum = 0;
        for (std::int64_t d = 0; d < dim; ++d) sum += at(head, i, d) * at(head, i, d);
        return std::sqrt(sum);
    };
    for (std::int64_t head = 0; head < heads; ++head) {
        for (std::int64_t i = 0; i < n; ++i) {
            const auto index = static_cast<std::size_t>(head * n + i);
            EXPECT_NEAR(norms[index], -length(head, i), 1e-5);
            double product = 0, mean_length = 0;
            for (std::int64_t d = 0; d < dim; ++d) {
                double mean = 0;
                for (std::int64_t j = 0; j < n; ++j) mean += at(head, j, d) / length(head, j) / n;
                product += at(head, i, d) * mean;
                mean_length += mean * mean;
            }
            EXPECT_NEAR(differences[index], -product / length(head, i) / std::sqrt(mean_length),
                        1e-5);
        }
    }
}

TEST(FieldSteps, ExpectedAttentionMatchesPlainLoops) {
    const HeadShape shape{1, 6, 2};
    const std::int64_t n = 23, dim = 5, dim_v = 3;
    const auto some = [](std::int64_t size, std::uint32_t seed) {
        return naive::random_values(static_cast<std::size_t>(size), seed);
    };
    const auto keys = some(2 * n * dim, 1), values = some(2 * n * dim_v, 2);
    const auto mean = some(6 * dim, 3), covariance = some(6 * dim * dim, 4);
    const auto scores = score_expected_attention(
        {.keys = keys, .values = values, .query_mean = mean, .query_covariance = covariance}, shape,
        n, 0.01);
    const auto at = [](const std::vector<float>& from, std::int64_t i) {
        return static_cast<double>(from[static_cast<std::size_t>(i)]);
    };
    for (std::int64_t head = 0; head < 2; ++head) {
        std::vector<double> expected(static_cast<std::size_t>(n), 0.0);
        for (std::int64_t query = 3 * head; query < 3 * head + 3; ++query) {
            std::vector<double> weights(static_cast<std::size_t>(n), 0.0);
            double sum = 0;
            for (std::int64_t i = 4; i < n; ++i) {
                double x = 0;
                for (std::int64_t a = 0; a < dim; ++a) {
                    const double k = at(keys, (head * n + i) * dim + a);
                    x += k * at(mean, query * dim + a) / std::sqrt(5.0);
                    for (std::int64_t b = 0; b < dim; ++b) {
                        x += k * at(covariance, (query * dim + a) * dim + b) *
                             at(keys, (head * n + i) * dim + b) / 10;
                    }
                }
                weights[static_cast<std::size_t>(i)] = std::exp(x);
                sum += std::exp(x);
            }
            for (std::size_t i = 4; i < weights.size(); ++i) expected[i] += weights[i] / sum / 3;
        }
        for (std::int64_t i = 0; i < n; ++i) {
            double squares = 0;
            for (std::int64_t d = 0; d < dim_v; ++d) {
                squares += std::pow(at(values, (head * n + i) * dim_v + d), 2);
            }
            const double right =
                i < 4 ? 0 : (expected[static_cast<std::size_t>(i)] + 0.01) * std::sqrt(squares);
            EXPECT_NEAR(at(scores, head * n + i), right, 1e-6) << head << " " << i;
        }
    }
}

TEST(FieldSteps, RowsMergeIntoTheNearestKeyAsInPlainLoops) {
    const std::int64_t n = 41, dim = 5;
    auto keys = naive::random_values(static_cast<std::size_t>(n * dim), 9);
    for (std::size_t i = 0; i < keys.size(); i += 2) keys[i] = -keys[i];
    std::vector<std::int32_t> kept, candidates;
    for (std::int32_t i = 0; i < n; ++i) (i % 3 == 0 ? kept : candidates).push_back(i);
    const auto cosine = [&](std::int32_t a, std::int32_t b) {
        double product = 0, x = 0, y = 0;
        for (std::int64_t d = 0; d < dim; ++d) {
            const auto one = static_cast<double>(keys[static_cast<std::size_t>(a * dim + d)]);
            const auto other = static_cast<double>(keys[static_cast<std::size_t>(b * dim + d)]);
            product += one * other;
            x += one * one;
            y += other * other;
        }
        return product / std::sqrt(x * y);
    };
    const auto merged = merge_into_nearest(keys, n, kept, candidates, 0.7);
    EXPECT_TRUE(std::is_sorted(merged.begin(), merged.end(), [](const auto& a, const auto& b) {
        return std::tie(a.into, a.from) < std::tie(b.into, b.from);
    }));
    std::size_t expected = 0;
    for (const auto from : candidates) {
        const auto nearest = *std::max_element(
            kept.begin(), kept.end(),
            [&](std::int32_t a, std::int32_t b) { return cosine(from, a) < cosine(from, b); });
        const MergedRow right{from, nearest};
        const bool close = cosine(from, nearest) > 0.7;
        expected += close ? 1 : 0;
        EXPECT_EQ(std::count(merged.begin(), merged.end(), right), close ? 1 : 0) << from;
    }
    EXPECT_EQ(merged.size(), expected);
    EXPECT_GT(expected, 0U);
    EXPECT_LT(expected, candidates.size());
}

TEST(FieldSteps, RowsToMergeAreANumberOrAShare) {
    EXPECT_EQ(parse_merge_rows("64").value(), (MergeRows{64, false}));
    EXPECT_EQ(parse_merge_rows("50%").value(), (MergeRows{0.5, true}));
    EXPECT_EQ(parse_merge_rows("0.25").value(), (MergeRows{0.25, true}));
    EXPECT_EQ(parse_merge_rows("0").value(), (MergeRows{0, false}));
    for (const char* bad : {"", "%", "-1", "x", "1e99", "nan", "3 rows"}) {
        EXPECT_FALSE(parse_merge_rows(bad)) << bad;
    }
    EXPECT_EQ(name_of(MergeRows{0.5, true}), "50%");
    EXPECT_EQ(name_of(MergeRows{64, false}), "64");
}

TEST(FieldSteps, ChunksShareTheirMeanAndTheLastMayBeShort) {
    std::vector<float> values = {1, 2, 3, 4, 5, 6, 7, 10, 20, 30, 40, 50, 60, 70};
    join_chunks(values, 2, 3);
    EXPECT_EQ(values, (std::vector<float>{2, 2, 2, 5, 5, 5, 7, 20, 20, 20, 50, 50, 50, 70}));
    share_values(values, 2);
    EXPECT_EQ(values[0], 11);
    EXPECT_EQ(values[6], 38.5F);
    EXPECT_EQ(values[13], 38.5F);
}

TEST(FieldSteps, SentencesShareTheirMeanAndMayReachIntoTheWindow) {
    std::vector<float> values = {1, 3, 5, 6, 10, 30, 50, 60};
    join_sentences(values, 2, std::vector<std::int32_t>{0, 2, 3, 5});  // four rows a head
    EXPECT_EQ(values, (std::vector<float>{2, 2, 5, 6, 20, 20, 50, 60}));
    join_sentences(values, 2, std::vector<std::int32_t>{0, 3});
    EXPECT_EQ(values, (std::vector<float>{3, 3, 3, 6, 30, 30, 30, 60}));
}

TEST(FieldSteps, SharesAreSharpenedAndMovedTowardsEqualOnes) {
    const std::vector<double> shares = {0.5, 0.3, 0.2, 0};
    EXPECT_EQ(reshaped_shares(shares, 1, 0), shares);
    const auto squared = reshaped_shares(shares, 2, 0);
    EXPECT_NEAR(squared[0], 0.25 / 0.38, 1e-12);
    EXPECT_EQ(squared[3], 0);
    const auto even = reshaped_shares(shares, 3, 1);
    for (const double share : even) EXPECT_NEAR(share, 0.25, 1e-12);
    const auto half = reshaped_shares(shares, 1, 0.5);
    EXPECT_NEAR(half[0], 0.375, 1e-12);
    EXPECT_NEAR(half[3], 0.125, 1e-12);
}

TEST(FieldSteps, BinaryHeadsSpendTheBudgetExactly) {
    const HeadShape shape{3, 4, 4};
    std::vector<double> shares(12);
    for (std::size_t i = 0; i < shares.size(); ++i) shares[i] = static_cast<double>(i % 5) / 24;
    for (const double rows : {1.0, 5.5, 20.0, 33.3, 64.0, 99.0}) {
        const auto plan = allocate_binary_heads(shape, shares, rows, 20, 100);
        EXPECT_EQ(plan.total(), std::llround(rows * 12)) << rows;
        // Full heads are those of the highest shares, the rest are even.
        double least_full = 1, most_other = 0;
        for (std::size_t i = 0; i < shares.size(); ++i) {
            double& extreme = plan.rows[i] == 100 ? least_full : most_other;
            extreme =
                plan.rows[i] == 100 ? std::min(extreme, shares[i]) : std::max(extreme, shares[i]);
        }
        EXPECT_GE(least_full, most_other);
    }
}

// mix 0 follows the scores, mix 1 what the layer's heads attend to.
TEST(FieldSteps, MixMovesRowsBetweenTheHeadsOfALayer) {
    const auto counts = [](double mix) {
        MethodOptions options;
        options.window = 1;
        options.kernel = 1;
        options.beta = 1;
        options.floor = 0;
        options.normalize = false;
        options.mix = mix;
        std::vector<float> observed = kObserved;  // head 0 has nearly all of the attention
        for (std::size_t i = kTokens; i < observed.size(); ++i) observed[i] /= 100;
        const auto kept = keep("headkv-r2", 4, observed, {}, options);
        return std::vector<std::size_t>{kept[0].size(), kept[1].size()};
    };
    EXPECT_EQ(counts(0), (std::vector<std::size_t>{2, 6}));  // 1 + 6 * 0.1, 1 + 6 * 0.9
    EXPECT_EQ(counts(1), (std::vector<std::size_t>{7, 1}));
    EXPECT_EQ(counts(0.5)[0] + counts(0.5)[1], 8U);
    EXPECT_GT(counts(0.5)[0], 2U);
    EXPECT_LT(counts(0.5)[0], 7U);
}

}  // namespace
}  // namespace headkv
