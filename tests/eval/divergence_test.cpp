#include "eval/divergence.h"

#include <gtest/gtest.h>

#include <cmath>

#include "support/tiny_model.h"

namespace headkv {
namespace {

TEST(Divergence, OfTwoCoins) {
    // p = (3/4, 1/4), q = (1/2, 1/2), with any constant added to the logits
    const std::vector<float> p = {std::log(3.0F) + 5, 5}, q = {-7, -7};
    const auto found = difference(p, q, 1);
    EXPECT_NEAR(found.divergence, 0.75 * std::log(1.5) + 0.25 * std::log(0.5), 1e-6);
    EXPECT_NEAR(found.log_probability_full, std::log(0.25), 1e-6);
    EXPECT_NEAR(found.log_probability, std::log(0.5), 1e-6);
    EXPECT_TRUE(found.same_best);  // a tie goes to the lower token
    EXPECT_EQ(difference(p, p, 0).divergence, 0);
    EXPECT_FALSE(difference(std::vector<float>{0, 1}, std::vector<float>{1, 0}, 0).same_best);
}

TEST(Divergence, ATokenWithoutProbabilityAddsNothing) {
    const float minus = -std::numeric_limits<float>::infinity();
    EXPECT_NEAR(difference(std::vector<float>{0, minus}, std::vector<float>{0, 0}, 0).divergence,
                std::log(2.0), 1e-12);
}

class DivergenceOnTinyModel : public testing::Test {
protected:
    void SetUp() override {
        write_tiny_model(test::TinyModel{}, folder_ / "m.gguf");
        engine_ = Engine::create(Model::load(folder_ / "m.gguf").value()).value();
        for (const double rows : {24.0, 90.0, 500.0}) {
            MethodConfig config;
            config.method = "snapkv";
            config.budget = {Budget::Unit::rows, rows};
            configs_.push_back({config, "snapkv", rows});
        }
        settings_.prefix = 100;
        settings_.tokens = 40;
    }
    test::TempFolder folder_;
    std::unique_ptr<Engine> engine_;
    std::vector<ConfigUnderTest> configs_;
    DivergenceSettings settings_;
};

TEST_F(DivergenceOnTinyModel, IsNothingForFullAndFallsWithTheBudget) {
    const auto run = run_divergence(*engine_, test::random_tokens(450, 3), configs_, settings_);
    ASSERT_TRUE(run) << run.error().message;
    const auto rows = summarize(run->results, 1);
    ASSERT_EQ(rows.size(), 4U);
    EXPECT_EQ(rows[0].divergence.value, 0);
    EXPECT_EQ(rows[0].same_best.value, 1);
    EXPECT_EQ(rows[0].tokens, 3 * 39);  // three whole chunks
    EXPECT_GT(rows[1].divergence.value, rows[2].divergence.value);
    EXPECT_GT(rows[2].divergence.value, 0);
    EXPECT_NEAR(rows[3].divergence.value, 0, 1e-9);  // the budget holds everything
    EXPECT_EQ(rows[3].kv_bytes, rows[3].kv_bytes_full);
    EXPECT_DOUBLE_EQ(rows[1].rows_kept, 24);
    EXPECT_GE(rows[1].divergence_95, rows[1].divergence.value / 2);
    EXPECT_GT(rows[0].perplexity, 1);
}

TEST_F(DivergenceOnTinyModel, GoesOnFromTheChunksOfAnEarlierRun) {
    const auto text = test::random_tokens(450, 3);
    const DivergenceLog log{folder_ / "answers.jsonl", {{"task", "kld"}}};
    int asked = 0;
    const auto stop = run_divergence(
        *engine_, text, configs_, settings_,
        [&](std::int64_t done, std::int64_t) { return ++asked, done < 2; }, log);
    ASSERT_FALSE(stop);
    EXPECT_EQ(stop.error().kind, ErrorKind::interrupted);
    const auto again = run_divergence(*engine_, text, configs_, settings_, {}, log);
    ASSERT_TRUE(again) << again.error().message;
    EXPECT_EQ(again->resumed, 2);
    const auto whole = run_divergence(*engine_, text, configs_, settings_);
    ASSERT_EQ(again->results.size(), whole->results.size());
    for (std::size_t i = 0; i < whole->results.size(); ++i) {
        auto a = to_json(again->results[i]), b = to_json(whole->results[i]);
        a["seconds"] = b["seconds"] = 0;
        EXPECT_EQ(a, b);
    }
    auto torn = to_json(whole->results[0]);
    torn["answers"][0]["same_best"].erase(0);
    EXPECT_FALSE(divergence_chunk_from_json(torn));
    EXPECT_FALSE(divergence_chunk_from_json({{"chunk", 1}}));
}

TEST_F(DivergenceOnTinyModel, RefusesWhatDoesNotFit) {
    EXPECT_FALSE(run_divergence(*engine_, test::random_tokens(139, 3), configs_, settings_));
    settings_.prefix = 5000;
    EXPECT_FALSE(run_divergence(*engine_, test::random_tokens(9000, 3), configs_, settings_));
    settings_.prefix = 1;
    EXPECT_FALSE(run_divergence(*engine_, test::random_tokens(500, 3), configs_, settings_));
}

}  // namespace
}  // namespace headkv
