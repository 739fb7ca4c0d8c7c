#include "bench/bench.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/tiny_model.h"

namespace headkv::test {
namespace {

struct BenchTest : testing::Test {
    void SetUp() override {
        write_tiny_model(TinyModel{}, folder / "tiny.gguf");
        model = Model::load(folder / "tiny.gguf", {.device = "cpu", .threads = 2}).value();
        engine = Engine::create(model).value();
    }

    static BenchCase make_case(const std::string& method, std::int64_t depth, std::int64_t slots) {
        BenchCase result;
        result.depth = depth;
        result.slots = slots;
        result.method.method = method;
        result.method.budget = {.unit = Budget::Unit::rows, .value = 24};
        return result;
    }

    TempFolder folder;
    std::shared_ptr<const Model> model;
    std::unique_ptr<Engine> engine;
};

TEST(Median, OfOddAndEvenCounts) {
    EXPECT_EQ(median({3}), 3);
    EXPECT_EQ(median({9, 1, 2}), 2);
    EXPECT_EQ(median({9, 1, 2, 4}), 3);
}

TEST_F(BenchTest, TokensAreOrdinaryAndFixedByTheSeed) {
    const Tokenizer& tokenizer = model->tokenizer();
    const auto tokens = headkv::random_tokens(tokenizer, 500, 3);
    ASSERT_EQ(tokens.size(), 500U);
    EXPECT_EQ(tokens, headkv::random_tokens(tokenizer, 500, 3));
    EXPECT_NE(tokens, headkv::random_tokens(tokenizer, 500, 4));
    for (const Token token : tokens) {
        EXPECT_TRUE(token >= 0 && token < tokenizer.size());
        EXPECT_FALSE(tokenizer.is_control(token));
        EXPECT_FALSE(tokenizer.is_end(token));
    }
}

TEST_F(BenchTest, CountsRowsBytesAndSlots) {
    const std::vector<BenchCase> cases = {make_case("full", 70, 1), make_case("snapkv", 70, 1),
                                          make_case("snapkv", 70, 3), make_case("snapkv", 0, 2)};
    const auto results = run_bench(*engine, cases, {.tokens = 5, .repeats = 2, .seed = 1});
    ASSERT_TRUE(results) << results.error().message;
    ASSERT_EQ(results->size(), 4U);
    const std::int64_t row = 3 * 2 * (16 + 16) * 2;  // bytes of one row in every head
    EXPECT_EQ((*results)[0].kv_bytes, 70 * row);
    EXPECT_EQ((*results)[1].kv_bytes, 24 * row);
    EXPECT_EQ((*results)[2].kv_bytes, 24 * row);
    EXPECT_EQ((*results)[3].kv_bytes, row);
    EXPECT_GT((*results)[2].allocated_bytes, 2 * (*results)[1].allocated_bytes);
    for (const auto& result : *results) {
        EXPECT_EQ(result.kv_bytes_full, result.prompt_tokens * row);
        EXPECT_EQ(result.decode_ms_all.size(), 2U);
        EXPECT_DOUBLE_EQ(result.decode_ms, median(result.decode_ms_all));
        EXPECT_NEAR(result.decode_tok_s * result.decode_ms,
                    5e3 * static_cast<double>(result.what.slots), 1e-6);
        EXPECT_GT(result.rss_peak_bytes, 0);
    }
}

TEST_F(BenchTest, OverheadIsPrefillBeyondThatOfACaseThatScoresNothing) {
    std::vector<BenchCase> cases = {
        make_case("snapkv", 70, 1), make_case("full", 70, 1),          make_case("full", 70, 3),
        make_case("snapkv", 70, 3), make_case("streaming-llm", 90, 1), make_case("full", 90, 1),
        make_case("snapkv", 90, 2), make_case("snapkv", 80, 1),        make_case("full", 0, 1),
        make_case("snapkv", 0, 1),  make_case("full", 90, 1),
    };
    cases.back().method.store.keys = StoreStep::q8_0;
    using Index = std::optional<std::size_t>;
    const std::vector<Index> right = {1, {}, {}, 2, {}, 4, 4, {}, {}, {}, 4};
    for (std::size_t i = 0; i < cases.size(); ++i) {
        EXPECT_EQ(case_beside(cases, i), right[i]) << i;
    }
    cases.resize(2);
    cases[0].name = "snapkv";
    cases[1].name = "full";
    const auto results = run_bench(*engine, cases, {.tokens = 1, .repeats = 3, .seed = 1});
    ASSERT_TRUE(results) << results.error().message;
    const BenchResult& own = (*results)[0];
    const BenchResult& plain = (*results)[1];
    EXPECT_EQ(own.overhead_of, "full");
    ASSERT_EQ(own.overhead_all.size(), 3U);
    for (std::size_t i = 0; i < 3; ++i) {
        EXPECT_DOUBLE_EQ(own.overhead_all[i], own.prefill_ms_all[i] / plain.prefill_ms_all[i] - 1);
    }
    EXPECT_DOUBLE_EQ(own.overhead, median(own.overhead_all));
    EXPECT_TRUE(plain.overhead_all.empty());
    EXPECT_EQ(plain.overhead_of, "");
}

TEST_F(BenchTest, ProgressCountsAndStops) {
    std::vector<std::int64_t> seen;
    const auto results = run_bench(*engine, {make_case("full", 8, 1), make_case("full", 9, 1)},
                                   {.tokens = 1, .repeats = 2, .seed = 1},
                                   [&](std::int64_t done, std::int64_t total) {
                                       EXPECT_EQ(total, 4);
                                       // Several calls within a measurement count once.
                                       if (seen.empty() || seen.back() != done)
                                           seen.push_back(done);
                                       return done < 2;
                                   });
    ASSERT_FALSE(results);
    EXPECT_EQ(results.error().kind, ErrorKind::interrupted);
    EXPECT_EQ(seen, (std::vector<std::int64_t>{0, 1, 2}));
}

TEST_F(BenchTest, ErrorsOfTheEngineComeThrough) {
    auto bad = make_case("snapkv", 70, 1);
    bad.method.options.kernel = 4;
    EXPECT_FALSE(run_bench(*engine, {bad}, {.tokens = 1, .repeats = 1, .seed = 1}));
}

}  // namespace
}  // namespace headkv::test
