// What holds for every method: a new line in the table is tested by being there.
#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "method/naive.h"

namespace headkv {
namespace {

constexpr HeadShape kShape{5, 6, 3};
constexpr std::int64_t kHeads = 15;
constexpr std::int64_t kRowBytes = 256;
constexpr std::int64_t kPrompt = 301;

using Kept = std::vector<std::vector<std::int32_t>>;  // [layers * kv_heads]

MethodConfig config_of(const Recipe& recipe, double rows) {
    MethodConfig config;
    config.method = std::string(recipe.name);
    config.budget = {Budget::Unit::rows, rows};
    config.options.window = 8;
    auto scores = naive::random_scores(kShape, 11);
    scores.kind = std::string(recipe.score_kind);
    config.scores = std::make_shared<const HeadScores>(std::move(scores));
    if (recipe.shares || recipe.latent) {
        LayerMap map;
        map.shape = kShape;
        map.owner = {0, 1, 2, 0, 2};
        if (recipe.latent) map.owner = {0, 1, 2, 3, 4};  // each its own: as any other full cache
        map.trained = recipe.latent;
        config.share = std::make_shared<const LayerMap>(std::move(map));
    }
    return config;
}

naive::SomeLayer layer_of(const Method& method, std::int64_t prompt, std::uint32_t seed) {
    return naive::random_layer(method.needs(), kShape, prompt, seed);
}

Kept keep_all(const Method& method, std::int64_t prompt) {
    Kept kept;
    PromptSelection selection(method);
    for (std::int64_t layer = 0; layer < kShape.layers; ++layer) {
        const auto seen = layer_of(method, prompt, static_cast<std::uint32_t>(10 * layer + 100));
        for (auto& head : selection.next(layer, seen.view())) kept.push_back(std::move(head));
        naive::apply(selection.cuts(), kShape.kv_heads, kept);
    }
    return kept;
}

std::int64_t count(const Kept& kept) {
    std::int64_t total = 0;
    for (const auto& head : kept) total += static_cast<std::int64_t>(head.size());
    return total;
}

bool strictly_ascending(const std::vector<std::int32_t>& positions) {
    return std::adjacent_find(positions.begin(), positions.end(), std::greater_equal<>()) ==
           positions.end();
}

class EveryRecipe : public testing::TestWithParam<Recipe> {
protected:
    Method make(double rows, std::int64_t prompt = kPrompt) const {
        return Method::create(config_of(GetParam(), rows), kShape, prompt, kRowBytes).value();
    }
    // No budget is below what is always kept.
    double at_least(double rows) const {
        return std::max(rows, (windowed() ? 8.0 : 1.0) + static_cast<double>(GetParam().protect));
    }
    bool full() const { return GetParam().allocate == AllocateStep::all; }
    // Heads that own rows, and whether one of a layer does.
    std::int64_t owners() const { return GetParam().shares ? 9 : kHeads; }
    bool owns(std::size_t head) const { return !GetParam().shares || head < 9; }
    bool windowed() const { return GetParam().select == SelectStep::top_k_window; }
    // Whether a row that is kept stays when the budget grows: not where heads compete, where some
    // heads pass to having everything, nor where the recent half grows over what was chosen, nor
    // where classes grow with the budget.
    bool nested() const {
        return GetParam().score != ScoreStep::token_classes &&
               GetParam().allocate != AllocateStep::adaptive &&
               GetParam().allocate != AllocateStep::binary_heads &&
               GetParam().select != SelectStep::heavy_recent && GetParam().chunk == 1;
    }
};

INSTANTIATE_TEST_SUITE_P(Table, EveryRecipe, testing::ValuesIn(recipes().begin(), recipes().end()),
                         [](const auto& info) {
                             std::string name(info.param.name);
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name;
                         });

TEST_P(EveryRecipe, SpendsTheBudgetExactly) {
    for (const double some : {8.0, 9.5, 31.0, 64.2, 150.0, 299.0, 300.9}) {
        const double rows = at_least(some);
        const Method method = make(rows);
        const auto asked = std::llround(rows * kHeads);
        const auto expected =
            full() ? kPrompt * kHeads : std::min<std::int64_t>(asked, kPrompt * owners());
        EXPECT_EQ(count(keep_all(method, kPrompt)), expected) << rows;
        EXPECT_EQ(method.runs_as_full(), full() || asked >= kPrompt * owners());
        EXPECT_DOUBLE_EQ(method.rows_budget(), full() ? kPrompt : rows);
    }
}

TEST_P(EveryRecipe, ABudgetAboveThePromptRunsAsFull) {
    for (const double rows : {301.0, 1000.0, 1e300}) {
        const Method method = make(rows);
        EXPECT_TRUE(method.runs_as_full());
        EXPECT_EQ(method.needs(), LayerNeeds{});
        EXPECT_EQ(count(keep_all(method, kPrompt)), kPrompt * owners());
    }
}

TEST_P(EveryRecipe, KeepsSortedUniquePositionsOfThePrompt) {
    for (const std::int64_t prompt : {33, 64, 301}) {
        for (const double rows : {8.0, 32.0, 150.0}) {
            const auto kept = keep_all(make(at_least(rows), prompt), prompt);
            for (std::size_t i = 0; i < kept.size(); ++i) {
                const auto& head = kept[i];
                ASSERT_EQ(head.empty(), !owns(i));
                if (head.empty()) continue;
                ASSERT_TRUE(strictly_ascending(head));
                ASSERT_LE(static_cast<std::int64_t>(head.size()), prompt);
                ASSERT_GE(head.front(), 0);
                ASSERT_LT(head.back(), prompt);
            }
        }
    }
}

TEST_P(EveryRecipe, KeepsTheWindowOrTheSinks) {
    for (const double rows : {8.0, 20.0, 150.0}) {
        for (const auto& head : keep_all(make(at_least(rows)), kPrompt)) {
            if (head.empty() && GetParam().shares) continue;
            if (GetParam().select == SelectStep::sinks_recent) {
                EXPECT_EQ(head[3], 3);
                EXPECT_EQ(head.back(), kPrompt - 1);
            } else if (GetParam().select == SelectStep::heavy_recent) {
                const auto half = static_cast<std::int32_t>(head.size() - head.size() / 2);
                EXPECT_EQ(head[head.size() / 2], kPrompt - half);
            } else if (GetParam().select == SelectStep::top_k) {
                EXPECT_EQ(head.back(), kPrompt - 1);
            } else {
                EXPECT_EQ(head[head.size() - 8], kPrompt - 8);
            }
        }
    }
}

TEST_P(EveryRecipe, ProtectedRowsStayInEveryHeadAtTheSameBudget) {
    if (!windowed()) GTEST_SKIP() << "no rows compete";
    MethodConfig config = config_of(GetParam(), 20);
    config.options.protect = 5;
    const auto method = Method::create(config, kShape, kPrompt, kRowBytes).value();
    const auto kept = keep_all(method, kPrompt);
    EXPECT_EQ(count(kept), 20 * kHeads);
    for (const auto& head : kept) {
        if (head.empty() && GetParam().shares) continue;
        EXPECT_EQ(head[4], 4);
        EXPECT_EQ(head[head.size() - 8], kPrompt - 8);
    }
    // 8 of the window and 5 protected are 13 in each head that owns rows.
    config.budget.value = std::floor(12.0 * static_cast<double>(owners()) / kHeads);
    const auto refused = Method::create(config, kShape, kPrompt, kRowBytes);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("the protected rows"), std::string::npos);
}

TEST_P(EveryRecipe, IsDeterministicWhereEverythingTies) {
    MethodConfig config = config_of(GetParam(), 40);
    config.options.pool = Pool::max;  // averages fall towards the edges, so they would not tie
    const auto tied = [&] { return Method::create(config, kShape, kPrompt, kRowBytes).value(); };
    const Method method = tied();
    const naive::SomeLayer flat(method.needs(), kShape, kPrompt,
                                [](std::size_t size) { return std::vector<float>(size, 0.25F); });
    for (std::int64_t layer = 0; layer < kShape.layers; ++layer) {
        const auto kept = method.keep_layer(layer, flat.view());
        EXPECT_EQ(kept, tied().keep_layer(layer, flat.view()));
        for (const auto& head : kept) {
            // Ties go to the lower position: what is kept of the text is its beginning. Where even
            // attention is divided by the queries that see a row, later rows have more.
            if (windowed() && !head.empty() && GetParam().score != ScoreStep::aligned_attention) {
                EXPECT_EQ(head[head.size() - 9], static_cast<int>(head.size()) - 9);
            }
        }
    }
}

// A larger budget keeps a superset. Rounding may take a row from one head for another (largest
// remainder), and adaptive allocation may move rows between heads: there only sums can grow.
TEST_P(EveryRecipe, IsMonotoneInTheBudget) {
    Kept previous;
    std::int64_t before = 0;
    for (double rows = at_least(8); rows < 330; rows += 23) {
        const auto kept = keep_all(make(rows), kPrompt);
        EXPECT_GE(count(kept), before);
        before = count(kept);
        for (std::size_t head = 0; nested() && head < previous.size(); ++head) {
            EXPECT_TRUE(std::includes(kept[head].begin(), kept[head].end(), previous[head].begin(),
                                      previous[head].end()))
                << "rows " << rows << " head " << head;
        }
        previous = kept;
    }
}

TEST_P(EveryRecipe, AHeadLosesAtMostOneRowToRoundingWhenTheBudgetGrows) {
    if (GetParam().allocate == AllocateStep::adaptive ||
        GetParam().allocate == AllocateStep::binary_heads ||
        GetParam().score == ScoreStep::token_classes) {
        GTEST_SKIP() << "rows move between heads";
    }
    constexpr std::int64_t kShort = 61;
    Kept previous;
    for (auto total = std::llround(at_least(8)) * kHeads; total < kShort * kHeads; ++total) {
        const auto kept = keep_all(make(static_cast<double>(total) / kHeads, kShort), kShort);
        for (std::size_t head = 0; head < previous.size(); ++head) {
            ASSERT_GE(kept[head].size() + 1, previous[head].size());
        }
        previous = kept;
    }
}

TEST_P(EveryRecipe, SharesAndBytesAreExact) {
    auto config = config_of(GetParam(), 0);
    config.budget = {Budget::Unit::bytes, 12345.0 * 21 + 0.5};
    const auto by_bytes = Method::create(config, kShape, kPrompt, kRowBytes).value();
    config.budget = {Budget::Unit::share, 0.123};
    const auto by_share = Method::create(config, kShape, kPrompt, kRowBytes).value();
    const std::int64_t all = kPrompt * kHeads;
    EXPECT_EQ(count(keep_all(by_bytes, kPrompt)), full() ? all : 12345 * 21 / kRowBytes);
    EXPECT_EQ(count(keep_all(by_share, kPrompt)),
              full() ? all : std::llround(0.123 * kPrompt * kHeads));
    config.budget = {Budget::Unit::share, 1.0};
    EXPECT_TRUE(Method::create(config, kShape, kPrompt, kRowBytes).value().runs_as_full());
}

TEST_P(EveryRecipe, BoundsHoldWhatWasKeptAndSumToTheBudget) {
    for (const std::int64_t prompt : {10, 40, 70, 301}) {
        const Method method = make(64, prompt);
        const auto kept = keep_all(method, prompt);
        std::int64_t total = 0;
        for (std::int64_t i = 0; i < kHeads; ++i) {
            const auto rows = static_cast<std::int64_t>(kept[static_cast<std::size_t>(i)].size());
            const std::int64_t bound = method.bound(i / 3, i % 3, rows);
            EXPECT_GE(bound, rows);
            if (full()) {
                EXPECT_EQ(bound, std::numeric_limits<std::int64_t>::max());
            } else {
                total += bound;
            }
        }
        if (!full()) {
            EXPECT_EQ(total, 64 * kHeads) << prompt;
        }
    }
}

TEST_P(EveryRecipe, ReselectsExactlyAsManyRowsAsAsked) {
    const Method method = make(64);
    for (const std::int64_t n : {1, 7, 8, 9, 65, 192}) {
        const auto observed = naive::random_values(static_cast<std::size_t>(kShape.group() * n), 5);
        for (std::int64_t rows = 5; rows <= n + 2; ++rows) {
            const auto kept = method.keep_head(observed, n, rows);
            ASSERT_EQ(static_cast<std::int64_t>(kept.size()), full() ? n : std::min(n, rows));
            ASSERT_TRUE(strictly_ascending(kept));
            ASSERT_EQ(kept.back(), n - 1);
            if (windowed() && rows >= 8 && n >= 8) {
                ASSERT_EQ(kept[kept.size() - 8], n - 8);
            }
        }
    }
}

TEST_P(EveryRecipe, ReselectionRanksAsPrefillDoes) {
    // The rows of head 1 of a layer, put to the decode-time selection with the same observation.
    const Method method = make(64);
    const auto needs = method.needs();
    if (needs != LayerNeeds{.queries = needs.queries, .squares = needs.squares} ||
        needs.queries == 0) {
        GTEST_SKIP() << "the prompt is ranked by more than attention";
    }
    if (GetParam().score == ScoreStep::last_query ||
        GetParam().score == ScoreStep::layer_attention ||
        GetParam().score == ScoreStep::prefix_mass)
        GTEST_SKIP() << "the prompt's rows are those of the layer, the answer's those of the head";
    const auto seen = layer_of(method, kPrompt, 9);
    const auto kept = method.keep_layer(2, seen.view())[1];
    const auto group =
        std::span(seen.observed)
            .subspan(static_cast<std::size_t>(2 * kPrompt), static_cast<std::size_t>(2 * kPrompt));
    EXPECT_EQ(method.keep_head(group, kPrompt, static_cast<std::int64_t>(kept.size())), kept);
}

TEST_P(EveryRecipe, SurvivesBrokenObservations) {
    const Method method = make(40);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    auto seen = layer_of(method, kPrompt, 3);
    for (std::size_t i = 0; i < seen.observed.size(); i += 3) seen.observed[i] = nan;
    for (std::size_t i = 0; i < seen.keys.size(); i += 13) seen.keys[i] = nan;
    for (std::size_t i = 0; i < seen.values.size(); i += 17) seen.values[i] = nan;
    for (std::size_t i = 0; i < seen.output_norms.size(); i += 7) seen.output_norms[i] = nan;
    for (std::size_t i = 0; i < seen.reconstruction.size(); i += 5) seen.reconstruction[i] = nan;
    for (std::size_t i = 0; i < seen.recent.size(); i += 4) seen.recent[i] = nan;
    for (std::size_t i = 0; i < seen.cluster_products.size(); i += 4) {
        seen.cluster_products[i] = nan;
    }
    if (!seen.query_covariance.empty()) seen.query_covariance[5] = nan;
    std::int64_t total = 0;
    for (std::int64_t layer = 0; layer < kShape.layers; ++layer) {
        for (const auto& head : method.keep_layer(layer, seen.view())) {
            EXPECT_TRUE(strictly_ascending(head));
            total += static_cast<std::int64_t>(head.size());
        }
    }
    EXPECT_EQ(total, full() ? kPrompt * kHeads : 40 * kHeads);
}

TEST_P(EveryRecipe, HasALineForTheReader) {
    const Recipe& recipe = GetParam();
    EXPECT_EQ(find_recipe(recipe.name).value()->name, recipe.name);
    EXPECT_FALSE(recipe.summary.empty());
    EXPECT_EQ(recipe.paper.empty(), recipe.name == "full" || recipe.score == ScoreStep::random);
    EXPECT_EQ(recipe.score_kind.empty(), recipe.allocate != AllocateStep::head_importance &&
                                             recipe.allocate != AllocateStep::binary_heads);
}

// --- marked rows, merging, positions in the cache

TEST_P(EveryRecipe, MarkedRowsStayInEveryHeadAtTheSameBudget) {
    auto config = config_of(GetParam(), 60);
    // Two of them overlap, one is kept anyway, the first and the last reach into such rows.
    config.keep = {{0, 12}, {100, 110}, {105, 120}, {250, 250}, {290, kPrompt}};
    constexpr std::int64_t kMarked = 12 + 20 + 11;
    const auto made = Method::create(config, kShape, kPrompt, kRowBytes);
    if (GetParam().shares) {
        ASSERT_FALSE(made);
        EXPECT_NE(made.error().message.find("marked parts"), std::string::npos);
        return;
    }
    const Method& method = made.value();
    const auto kept = keep_all(method, kPrompt);
    EXPECT_EQ(count(kept), full() ? kPrompt * kHeads : 60 * kHeads);
    for (const auto& head : kept) {
        ASSERT_TRUE(strictly_ascending(head));
        std::int64_t of_spans = 0;
        for (const auto position : head) {
            of_spans += position < 12 || (position >= 100 && position < 120) || position >= 290;
        }
        EXPECT_EQ(of_spans, kMarked);
    }
    // A head that has appended an answer: it gives up others.
    const auto& held = kept[4];
    auto positions = held;
    for (int i = 0; i < 30; ++i) positions.push_back(static_cast<std::int32_t>(kPrompt + i));
    const auto n = static_cast<std::int64_t>(positions.size());
    const auto rows = static_cast<std::int64_t>(held.size());
    const auto observed = naive::random_values(static_cast<std::size_t>(kShape.group() * n), 6);
    const auto stay = method.keep_head(observed, n, rows, positions);
    ASSERT_EQ(std::ssize(stay), full() ? n : rows);
    ASSERT_TRUE(strictly_ascending(stay));
    EXPECT_EQ(stay.back(), n - 1);
    if (GetParam().recall) {  // by values, of every row since the beginning
        constexpr std::int64_t kAll = kPrompt + 30;
        const auto values = naive::random_values(kAll, 8);
        const auto valued = method.keep_valued(values, kAll, rows);
        ASSERT_EQ(std::ssize(valued), rows);
        ASSERT_TRUE(strictly_ascending(valued));
        EXPECT_EQ(valued.back(), kAll - 1);
        for (std::int32_t position : {0, 11, 100, 119, 290, 291, 299}) {
            EXPECT_TRUE(std::binary_search(valued.begin(), valued.end(), position)) << position;
        }
    }
    for (std::int32_t position : {0, 11, 100, 119, 290, 291}) {
        const auto at = std::lower_bound(positions.begin(), positions.end(), position);
        EXPECT_TRUE(std::binary_search(stay.begin(), stay.end(), at - positions.begin()))
            << position;
    }
}

TEST_P(EveryRecipe, MarkedRowsThatTheBudgetCannotHoldAreRefused) {
    if (full()) GTEST_SKIP() << "everything is kept";
    if (GetParam().shares) GTEST_SKIP() << "marked rows are refused in any case";
    auto config = config_of(GetParam(), 60);
    config.keep = {{50, 120}};
    for (const auto unit : {Budget::Unit::rows, Budget::Unit::bytes, Budget::Unit::share}) {
        config.budget.unit = unit;
        config.budget.value = unit == Budget::Unit::rows    ? 60
                              : unit == Budget::Unit::bytes ? 60 * kHeads * kRowBytes
                                                            : 60.0 / kPrompt;
        const auto refused = Method::create(config, kShape, kPrompt, kRowBytes);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
        EXPECT_NE(refused.error().message.find("the 70 rows marked to be kept"), std::string::npos)
            << refused.error().message;
    }
    config.keep = {{50, kPrompt + 1}};
    EXPECT_FALSE(Method::create(config, kShape, kPrompt, kRowBytes));
}

TEST_P(EveryRecipe, MergingChangesNoRowThatIsKept) {
    auto config = config_of(GetParam(), 40);
    config.options.similarity = 0.5;
    config.options.merge = MergeRows{0.5, true};
    const auto made = Method::create(config, kShape, kPrompt, kRowBytes);
    const bool can = GetParam().select != SelectStep::sinks_recent &&
                     GetParam().allocate != AllocateStep::global && !GetParam().recall &&
                     !GetParam().shares;
    ASSERT_EQ(made.has_value(), can);
    if (!can || full()) return;
    ASSERT_TRUE(made->merges());
    EXPECT_TRUE(made->needs().keys);
    config.options.merge = MergeRows{};
    const auto plain = Method::create(config, kShape, kPrompt, kRowBytes).value();
    EXPECT_FALSE(plain.merges());
    const auto seen = layer_of(*made, kPrompt, 77);
    const auto choice = made->choose_layer(1, seen.view());
    EXPECT_EQ(choice.kept, plain.keep_layer(1, seen.view()));
    ASSERT_EQ(choice.merged.size(), 3U);
    std::size_t merged = 0;
    for (std::size_t head = 0; head < 3; ++head) {
        const auto& rows = choice.kept[head];
        EXPECT_LE(choice.merged[head].size(), (rows.size() + 1) / 2);
        merged += choice.merged[head].size();
        for (const auto& row : choice.merged[head]) {
            EXPECT_FALSE(std::binary_search(rows.begin(), rows.end(), row.from));
            EXPECT_TRUE(std::binary_search(rows.begin(), rows.end(), row.into));
        }
    }
    EXPECT_GT(merged, 0U);
    config.options.merge = MergeRows{1, false};
    config.recall = StoreStep::f16;
    EXPECT_FALSE(Method::create(config, kShape, kPrompt, kRowBytes));
}

TEST_P(EveryRecipe, PositionsInTheCacheAreForMethodsByPosition) {
    auto config = config_of(GetParam(), 40);
    config.options.in_cache_positions = true;
    const auto made = Method::create(config, kShape, kPrompt, kRowBytes);
    ASSERT_EQ(made.has_value(), full() || GetParam().select == SelectStep::sinks_recent);
    if (!made) {
        EXPECT_NE(made.error().message.find("streaming-llm"), std::string::npos);
    }
}

// --- other allocators

// Each allocator that a method takes, and the reason why it does not take the others.
TEST_P(EveryRecipe, SpendsTheBudgetExactlyWithEveryAllocatorThatItTakes) {
    for (const auto step : {AllocateStep::uniform, AllocateStep::pyramid, AllocateStep::adaptive,
                            AllocateStep::head_importance, AllocateStep::global}) {
        SCOPED_TRACE(name_of(step));
        const auto allocators = allocators_of(GetParam());
        MethodConfig config = config_of(GetParam(), 0);
        config.options.allocate = step;
        auto scores = std::make_shared<HeadScores>(*config.scores);
        scores->kind = GetParam().score_kind.empty() ? "causal" : GetParam().score_kind;
        config.scores = scores;
        if (std::find(allocators.begin(), allocators.end(), step) == allocators.end()) {
            const auto refused = Method::create(config, kShape, kPrompt, kRowBytes);
            ASSERT_FALSE(refused);
            EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
            EXPECT_NE(refused.error().message.find(name_of(step)), std::string::npos);
            continue;
        }
        for (const double rows : {at_least(9.5), 40.0, 150.3}) {
            config.budget.value = rows;
            const auto method = Method::create(config, kShape, kPrompt, kRowBytes).value();
            EXPECT_EQ(method.recipe().allocate, step);
            const auto kept = keep_all(method, kPrompt);
            EXPECT_EQ(count(kept), std::llround(rows * kHeads)) << rows;
            EXPECT_EQ(kept, keep_all(method, kPrompt));
            for (std::size_t i = 0; i < kept.size(); ++i) {
                ASSERT_TRUE(strictly_ascending(kept[i]));
                ASSERT_EQ(kept[i].empty(), !owns(i));
                if (owns(i)) {
                    EXPECT_EQ(kept[i].back(), kPrompt - 1);
                }
            }
        }
    }
}

TEST(Allocators, OneScoreWithAnothersAllocatorIsTheOther) {
    const auto same = [](const char* method, AllocateStep step, const char* other) {
        SCOPED_TRACE(method);
        auto config = config_of(*find_recipe(other).value(), 40);
        const auto expected = Method::create(config, kShape, kPrompt, kRowBytes).value();
        config.method = method;
        config.options.allocate = step;
        const auto wrapped = Method::create(config, kShape, kPrompt, kRowBytes).value();
        EXPECT_EQ(keep_all(wrapped, kPrompt), keep_all(expected, kPrompt));
    };
    same("snapkv", AllocateStep::adaptive, "ada-kv");
    same("snapkv", AllocateStep::pyramid, "pyramidkv");
    same("snapkv", AllocateStep::head_importance, "headkv-r2");
    same("snapkv", AllocateStep::head_importance, "headkv-causal");
    same("headkv-r", AllocateStep::uniform, "snapkv");
    same("criticalkv", AllocateStep::adaptive, "ada-criticalkv");
    same("duo-attention", AllocateStep::uniform, "streaming-llm");
}

TEST(Allocators, NeedHeadScoresWhereHeadsAreImportant) {
    auto config = config_of(*find_recipe("h2o").value(), 40);
    config.options.allocate = AllocateStep::head_importance;
    config.scores = nullptr;
    const auto refused = Method::create(config, kShape, kPrompt, kRowBytes);
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("--heads"), std::string::npos);
    EXPECT_EQ(with_allocator(*find_recipe("h2o").value(), AllocateStep::head_importance)
                  .value()
                  .score_kind,
              "r2");
    EXPECT_EQ(
        with_allocator(*find_recipe("headkv-r2").value(), AllocateStep::uniform).value().score_kind,
        "");
    EXPECT_EQ(parse_allocator("global").value(), AllocateStep::global);
    EXPECT_NE(parse_allocator("evenly").error().message.find("uniform, pyramid"),
              std::string::npos);
}

// --- what single recipes do with the steps

TEST(Recipes, NamesAreUniqueAndInDisplayOrder) {
    std::vector<std::string_view> names;
    for (const Recipe& recipe : recipes()) names.push_back(recipe.name);
    EXPECT_EQ(
        names,
        (std::vector<std::string_view>{
            "full",      "streaming-llm", "snapkv",      "pyramidkv",      "ada-kv",
            "headkv-r",  "headkv-r2",     "headkv-task", "headkv-icl",     "headkv-causal",
            "h2o",       "tova",          "kv-compress", "prefixkv",       "fastgen",
            "ems",       "chunkkv",       "criticalkv",  "ada-criticalkv", "expected-attention",
            "kvzip",     "duo-attention", "baklava",     "keydiff",        "knorm",
            "clusterkv", "kvsharer",      "clla",        "random"}));
}

TEST(Recipes, AnUnknownNameSuggestsTheNearest) {
    const auto message = [](std::string_view name) { return find_recipe(name).error().message; };
    EXPECT_EQ(find_recipe("snapkw").error().kind, ErrorKind::bad_input);
    EXPECT_NE(message("snapkw").find("'snapkv'"), std::string::npos);
    EXPECT_NE(message("headkv_r2").find("'headkv-r2'"), std::string::npos);
    EXPECT_NE(message("").find("streaming-llm, "), std::string::npos);
    EXPECT_LT(message(std::string(100000, 'x')).size(), 600U);
}

TEST(Recipes, LatentRowsNeedAModelThatWasTrainedWithThem) {
    const Recipe& recipe = **find_recipe("clla");
    auto config = config_of(recipe, 20);
    EXPECT_TRUE(Method::create(config, kShape, kPrompt, kRowBytes));
    LayerMap map = *config.share;
    map.trained = false;  // a map that was found by trying
    for (const auto& share :
         {std::shared_ptr<const LayerMap>(), std::make_shared<const LayerMap>(std::move(map))}) {
        config.share = share;
        const auto refused = Method::create(config, kShape, kPrompt, kRowBytes);
        ASSERT_FALSE(refused);
        EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
        EXPECT_NE(refused.error().message.find("trained with it"), std::string::npos);
        EXPECT_EQ(refused.error().message.find('\n'), std::string::npos);
    }
}

TEST(Recipes, MatchTheStepsByHand) {
    for (const Recipe& recipe : recipes()) {
        if (recipe.score != ScoreStep::window_attention || recipe.shares) continue;
        auto config = config_of(recipe, 37.4);
        config.options.beta = 2;
        config.options.kernel = 5;
        config.options.pool = Pool::avg;
        config.options.group_reduce = GroupReduce::max;
        const auto method = Method::create(config, kShape, kPrompt, kRowBytes).value();
        const auto shares = kv_head_shares(*config.scores, kShape);
        Plan plan = allocate_uniform(kShape, 37.4, kPrompt);
        if (recipe.allocate == AllocateStep::pyramid) {
            plan = allocate_pyramid(kShape, 37.4, 8, 20, kPrompt);
        } else if (recipe.allocate == AllocateStep::head_importance) {
            plan = allocate_head_importance(kShape, shares, 37.4, 8, 2, kPrompt);
        }
        for (std::int64_t layer = 0; layer < kShape.layers; ++layer) {
            const auto observed =
                layer_of(method, kPrompt, static_cast<std::uint32_t>(layer)).observed;
            const auto values =
                score_window(observed, kShape, kPrompt, 8, 5, Pool::avg, GroupReduce::max);
            std::vector<std::int64_t> rows;
            for (std::int64_t head = 0; head < 3; ++head) rows.push_back(plan.at(layer, head));
            if (recipe.allocate == AllocateStep::adaptive) {
                const auto total = std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
                rows = allocate_adaptive(values, 3, total, 8, 0.2, true);
            }
            const auto kept = method.keep_layer(layer, {.observed = observed});
            for (std::size_t head = 0; head < 3; ++head) {
                const std::vector<float> row(
                    values.begin() + static_cast<std::ptrdiff_t>(head * (kPrompt - 8)),
                    values.begin() + static_cast<std::ptrdiff_t>((head + 1) * (kPrompt - 8)));
                EXPECT_EQ(kept[head], naive::top_k_window(row, kPrompt, 8, rows[head]))
                    << recipe.name;
            }
        }
    }
}

TEST(Recipes, ObserveIsTheWindowUnlessSaid) {
    auto config = config_of(*find_recipe("snapkv").value(), 64);
    const auto observe = [&](std::int64_t prompt) {
        return Method::create(config, kShape, prompt, kRowBytes).value().needs().queries;
    };
    EXPECT_EQ(observe(kPrompt), 8);
    config.options.observe = 32;
    EXPECT_EQ(observe(kPrompt), 32);
    config.options.observe = 1000;
    EXPECT_EQ(observe(kPrompt), kPrompt);
    config.method = "streaming-llm";
    EXPECT_EQ(observe(kPrompt), 0);
}

TEST(Recipes, QueriesAreWeighedWhereTheMeanOfTheLastOnesScores) {
    EXPECT_EQ(MethodOptions{}.query_decay, 1);
    EXPECT_EQ(preset_paper().query_decay, 1);
    std::vector<std::string_view> weighing;
    for (const Recipe& recipe : recipes()) {
        if (recipe.latent) continue;
        auto config = config_of(recipe, 64);
        config.options.query_decay = 0.5;
        const auto method = Method::create(config, kShape, kPrompt, kRowBytes).value();
        const auto names = option_names(recipe);
        const bool option = std::ranges::find(names, "query-decay") != names.end();
        EXPECT_EQ(option, weighs_queries(recipe)) << recipe.name;
        EXPECT_EQ(method.needs().query_decay, option ? 0.5 : 1) << recipe.name;
        EXPECT_EQ(method.query_decay(), option ? 0.5 : 1) << recipe.name;
        EXPECT_EQ(default_options(recipe).query_decay, 1) << recipe.name;
        if (option) weighing.push_back(recipe.name);
    }
    EXPECT_EQ(weighing, (std::vector<std::string_view>{
                            "snapkv", "pyramidkv", "ada-kv", "headkv-r", "headkv-r2", "headkv-task",
                            "headkv-icl", "headkv-causal", "kv-compress", "ems", "chunkkv",
                            "criticalkv", "ada-criticalkv", "kvsharer"}));
}

TEST(Recipes, TheLastTokensMayBeNoObservers) {
    auto config = config_of(*find_recipe("snapkv").value(), 64);
    const auto needs = [&](std::int64_t prompt) {
        const auto needs = Method::create(config, kShape, prompt, kRowBytes).value().needs();
        return std::pair(needs.queries, needs.skip);
    };
    using Pair = std::pair<std::int64_t, std::int64_t>;
    config.options.observe = 32;
    config.options.skip_tail = 5;
    EXPECT_EQ(needs(kPrompt), Pair(32, 5));
    EXPECT_EQ(needs(80), Pair(32, 5));
    config.options.skip_tail = 1000;
    EXPECT_EQ(needs(kPrompt), Pair(1, kPrompt - 1));
    config.options.skip_tail = 5;
    config.options.observe_question = true;
    EXPECT_EQ(needs(kPrompt), Pair(32, 5));  // it is not known where the question lies
    config.question = {.tokens = 11, .tail = 6};
    EXPECT_EQ(needs(kPrompt), Pair(11, 6));
    config.question = {.tokens = 1000, .tail = 6};
    EXPECT_EQ(needs(kPrompt), Pair(kPrompt - 6, 6));
    config.options.observe_question = false;
    EXPECT_EQ(needs(kPrompt), Pair(32, 5));
}

// A prompt that every head's plan exceeds leaves each head the plan of an unbounded prompt.
TEST(Recipes, AShortPromptGrowsIntoThePlan) {
    for (const Recipe& recipe : recipes()) {
        if (recipe.allocate == AllocateStep::all) continue;
        const auto config = config_of(recipe, 64);
        const auto shortest = Method::create(config, kShape, 9, kRowBytes).value();
        const auto longest = Method::create(config, kShape, 1000000, kRowBytes).value();
        for (std::int64_t i = 0; i < kHeads; ++i) {
            EXPECT_EQ(shortest.bound(i / 3, i % 3, 9), longest.plan().at(i / 3, i % 3))
                << recipe.name;
        }
    }
}

TEST(Recipes, PaperPreset) {
    const MethodOptions options = preset_paper();
    EXPECT_EQ(options.window, 8);
    EXPECT_EQ(options.kernel, 7);
    EXPECT_EQ(options.pool, Pool::max);
    EXPECT_EQ(options.beta, 1.2);
    EXPECT_EQ(options.floor, 0.2);
}

// beta 0: a larger share of the rows is the same for every head as the budget grows.
TEST(Recipes, BetaFollowsTheBudgetUnlessItIsGiven) {
    MethodOptions options;
    EXPECT_EQ(importance_beta(options, 16, nullptr), 1.2);
    EXPECT_EQ(importance_beta(options, 64, nullptr), 1.2);
    EXPECT_EQ(importance_beta(options, 128, nullptr), 1.28);
    EXPECT_EQ(importance_beta(options, 400, nullptr), 4);
    EXPECT_EQ(importance_beta(options, 1024, nullptr), 5);
    // Scores of which one head of two has more than three quarters starve the other one least.
    HeadScores uneven, even;
    uneven.mean = {0.8, 0.2};
    even.mean = {0.7, 0.3};
    EXPECT_EQ(importance_beta(options, 64, &uneven), 5);
    EXPECT_EQ(importance_beta(options, 64, &even), 1.2);
    options.beta = 1.2;
    EXPECT_EQ(importance_beta(options, 1024, &uneven), 1.2);
    // By hand: 2 heads, 96 rows, window 16. Every head has 16 + 80 * 4/5 = 80; the pool of 32 goes
    // to the head with all the importance.
    MethodConfig config;
    config.method = "headkv-r2";
    config.options.beta = 0;
    auto scores = std::make_shared<HeadScores>();
    scores->shape = {1, 2, 2};
    scores->kind = "r2";
    scores->mean = {1, 0};
    config.scores = scores;
    config.budget.value = 96;
    const auto method = Method::create(config, {1, 2, 2}, 5000, 1).value();
    EXPECT_EQ(method.plan().rows, (std::vector<std::int64_t>{112, 80}));
}

// By hand: 2 heads, 256 rows, beta 4, window 16. Every head has 16 + 240 * 3/4 = 196; the pool of
// 120 is shared 1 : 0 as the scores are, and 5/8 : 3/8 with three quarters of the way to 1/2 : 1/2
// gone.
TEST(Recipes, SharesMayBecomeEvenAsTheBudgetGrows) {
    MethodOptions options;
    options.shrink = kByBudget;
    EXPECT_EQ(importance_shrink(options, 32), 0);
    EXPECT_EQ(importance_shrink(options, 64), 0);
    EXPECT_EQ(importance_shrink(options, 128), 0.5);
    EXPECT_EQ(importance_shrink(options, 256), 0.75);
    options.shrink = 0.1;
    EXPECT_EQ(importance_shrink(options, 256), 0.1);
    MethodConfig config;
    config.method = "headkv-r2";
    config.budget.value = 256;
    config.options.beta = 4;
    auto scores = std::make_shared<HeadScores>();
    scores->shape = {1, 2, 2};
    scores->kind = "r2";
    scores->mean = {1, 0};
    config.scores = scores;
    const auto rows = [&] {
        return Method::create(config, {1, 2, 2}, 5000, 1).value().plan().rows;
    };
    EXPECT_EQ(rows(), (std::vector<std::int64_t>{316, 196}));
    config.options.shrink = kByBudget;
    EXPECT_EQ(rows(), (std::vector<std::int64_t>{271, 241}));
}

TEST(Recipes, ConcentrationIsTheShareOfTheMostImportantTenth) {
    HeadScores scores;
    scores.mean = {1, 1, 6, 1, 0, 0, 0, 0, 0, 1};
    EXPECT_DOUBLE_EQ(importance_concentration(scores), 0.6);
    scores.mean.insert(scores.mean.end(), 10, 0.5);  // the best two of twenty: 7 of 15
    EXPECT_DOUBLE_EQ(importance_concentration(scores), 7.0 / 15);
    scores.mean = {3, 1};
    EXPECT_DOUBLE_EQ(importance_concentration(scores), 0.75);
    scores.mean = {0, 0};
    EXPECT_EQ(importance_concentration(scores), 0);
}

// --- what create refuses

class Refuses : public testing::Test {
protected:
    Refuses() : config_(config_of(*find_recipe("headkv-r2").value(), 64)) {}

    // The message of the refusal, or "accepted".
    std::string message(std::int64_t prompt = kPrompt) const {
        const auto method = Method::create(config_, kShape, prompt, kRowBytes);
        if (method) return "accepted";
        EXPECT_EQ(method.error().kind, ErrorKind::bad_input);
        EXPECT_EQ(method.error().message.find('\n'), std::string::npos);
        return method.error().message;
    }
    bool refused_with(std::string_view part, std::int64_t prompt = kPrompt) const {
        return message(prompt).find(part) != std::string::npos;
    }

    MethodConfig config_;
};

TEST_F(Refuses, NothingOrdinary) { EXPECT_EQ(message(), "accepted"); }

TEST_F(Refuses, BudgetsBelowTheMinimumAndNamesIt) {
    config_.budget.value = 7;
    EXPECT_TRUE(refused_with("at least 8 rows")) << message();
    EXPECT_TRUE(refused_with("at least 8 rows", 5)) << message(5);
    config_.budget = {Budget::Unit::bytes, 8 * kHeads * kRowBytes - 1.0};
    EXPECT_TRUE(refused_with("at least 30720 bytes")) << message();
    config_.budget.value += 1;
    EXPECT_EQ(message(), "accepted");
    config_.budget = {Budget::Unit::share, 0.02};
    EXPECT_TRUE(refused_with("at least 2.66% (8 rows)")) << message();
    config_.budget.value = 0.0266;
    EXPECT_EQ(message(), "accepted");
    config_.method = "streaming-llm";
    config_.budget = {Budget::Unit::rows, 4};
    EXPECT_TRUE(refused_with("at least 5 rows")) << message();
}

TEST_F(Refuses, BudgetsThatAreNone) {
    for (const double value : {0.0, -1.0, std::nan(""), static_cast<double>(INFINITY)}) {
        for (const auto unit : {Budget::Unit::rows, Budget::Unit::bytes, Budget::Unit::share}) {
            config_.budget = {unit, value};
            EXPECT_TRUE(refused_with("must be above 0")) << message();
        }
    }
    config_.budget = {Budget::Unit::share, 1.5};
    EXPECT_TRUE(refused_with("between 0 and 1")) << message();
}

TEST_F(Refuses, OptionsOutOfRange) {
    const auto with = [&](auto change, std::string_view part) {
        const auto kept = config_;
        change(config_.options);
        EXPECT_TRUE(refused_with(part)) << part << ": " << message();
        config_ = kept;
    };
    with([](auto& o) { o.kernel = 4; }, "kernel is 4");
    with([](auto& o) { o.kernel = -1; }, "kernel is -1");
    with([](auto& o) { o.kernel = 1LL << 40; }, "odd");
    with([](auto& o) { o.window = 0; }, "window is 0");
    with([](auto& o) { o.observe = -1; }, "observe is -1");
    with([](auto& o) { o.beta = -1; }, "beta is -1");
    with([](auto& o) { o.beta = 0.9; }, "beta is 0.9");
    with([](auto& o) { o.beta = std::nan(""); }, "beta");
    with([](auto& o) { o.pyramid_beta = 0; }, "pyramid beta");
    with([](auto& o) { o.floor = 1.1; }, "floor");
    with([](auto& o) { o.temperature = -1; }, "temperature");
    with([](auto& o) { o.temperature = std::nan(""); }, "temperature");
    with([](auto& o) { o.shrink = 1.5; }, "shrink");
    with([](auto& o) { o.shrink = -0.5; }, "shrink is -0.5");
    with([](auto& o) { o.skip_tail = -1; }, "skip-tail is -1");
    with([](auto& o) { o.query_decay = 0; }, "query-decay is 0");
    with([](auto& o) { o.query_decay = -0.5; }, "query-decay is -0.5");
    with([](auto& o) { o.query_decay = 1.01; }, "query-decay is 1.01");
    with([](auto& o) { o.query_decay = std::nan(""); }, "query-decay");
    with([](auto& o) { o.draft = -1; }, "draft is -1");
    with([](auto& o) { o.draft = 4096; }, "draft is 4096");
    with([](auto& o) { o.mix = -0.1; }, "mix");
    with([](auto& o) { o.chunk = -1; }, "chunk");
    with([](auto& o) { o.chunk = 5000; }, "chunk");
    with(
        [](auto& o) {
            o.chunk = 10;
            o.sentences = true;
        },
        "whole sentences");
    with([](auto& o) { o.sinks = -1; }, "sinks");
    with([](auto& o) { o.cluster_size = 0; }, "cluster size");
    with([](auto& o) { o.reserve = 0; }, "reserve");
    with([](auto& o) { o.frequent = 1.1; }, "frequent");
    with([](auto& o) { o.local = -0.1; }, "local");
    with([](auto& o) { o.class_rows = -1; }, "class rows");
    with([](auto& o) { o.recovery = 0; }, "recovery");
    with([](auto& o) { o.merge = MergeRows{-1, false}; }, "merge");
    with([](auto& o) { o.similarity = 1.5; }, "similarity");
}

TEST_F(Refuses, ScoresThatAreMissingOrOfAnotherShapeOrKind) {
    auto other = std::make_shared<HeadScores>(*config_.scores);
    config_.scores = nullptr;
    EXPECT_TRUE(refused_with("calibrate --kind r2")) << message();
    other->kind = "r";
    config_.scores = other;
    EXPECT_TRUE(refused_with("--method headkv-r")) << message();
    other->kind = "task";
    EXPECT_TRUE(refused_with("--method headkv-task")) << message();
    other->kind = "mine";
    EXPECT_EQ(message(), "accepted");
    other->shape.kv_heads = 0;  // the published form
    EXPECT_EQ(message(), "accepted");
    other->shape = {4, 6, 3};
    EXPECT_TRUE(refused_with("4 layers of 6 query heads")) << message();
    other->shape = kShape;
    other->mean[3] = std::nan("");
    EXPECT_TRUE(refused_with("negative or infinite")) << message();
}

TEST_F(Refuses, ShapesAndPromptsThatCannotBe) {
    EXPECT_TRUE(refused_with("empty", 0)) << message(0);
    EXPECT_FALSE(Method::create(config_, {2, 5, 3}, 10, 4));
    EXPECT_FALSE(Method::create(config_, {0, 6, 3}, 10, 4));
    EXPECT_FALSE(Method::create(config_, kShape, 10, 0));
}

TEST(DefaultOptions, OfHeadImportanceKeepTheFirstRowAndAShortWindow) {
    const auto headkv = default_options(**find_recipe("headkv-r2"));
    EXPECT_EQ(headkv.window, 8);
    EXPECT_EQ(headkv.observe, 16);
    EXPECT_EQ(headkv.protect, 1);
    EXPECT_EQ(headkv.group_reduce, GroupReduce::max);
    EXPECT_TRUE(headkv.sentences);
    for (const auto* other : {"chunkkv", "h2o"}) {
        const auto recipe = with_allocator(**find_recipe(other), AllocateStep::head_importance);
        ASSERT_TRUE(recipe) << other;
        EXPECT_FALSE(default_options(*recipe).sentences) << other;
        EXPECT_EQ(default_options(*recipe).protect, 1) << other;
    }
    EXPECT_EQ(headkv.kernel, MethodOptions().kernel);
    EXPECT_EQ(default_options(**find_recipe("clusterkv")).reserve, 1);
    const auto snapkv = default_options(**find_recipe("snapkv"));
    EXPECT_EQ(snapkv.window, 16);
    EXPECT_EQ(snapkv.protect, 0);
    // The paper's stay as they are, whatever method takes them.
    EXPECT_EQ(preset_paper().window, 8);
    EXPECT_EQ(preset_paper().observe, 0);
    EXPECT_EQ(preset_paper().protect, 0);
    EXPECT_FALSE(preset_paper().sentences);
    EXPECT_EQ(preset_paper().group_reduce, GroupReduce::mean);
}

}  // namespace
}  // namespace headkv
