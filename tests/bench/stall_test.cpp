#include "bench/stall.h"

#include <gtest/gtest.h>

#include "support/tiny_model.h"

namespace headkv::test {
namespace {

struct StallTest : testing::Test {
    void SetUp() override {
        write_tiny_model(TinyModel{}, folder / "tiny.gguf");
        model = Model::load(folder / "tiny.gguf", {.device = "cpu", .threads = 1}).value();
        engine = Engine::create(model).value();
    }
    static BenchCase make_case(std::int64_t depth, std::int64_t slots) {
        BenchCase result;
        result.depth = depth;
        result.slots = slots;
        result.method.method = "snapkv";
        result.method.budget = {.unit = Budget::Unit::rows, .value = 24};
        return result;
    }

    TempFolder folder;
    std::shared_ptr<const Model> model;
    std::unique_ptr<Engine> engine;
};

TEST_F(StallTest, AnswersGoOnWhileAPromptIsRead) {
    const auto depth = model->info().context / 2;
    const auto often = measure_stall(*engine, make_case(depth, 2), 1, 0.01);
    ASSERT_TRUE(often) << often.error().message;
    EXPECT_GT(often->waits, 1);
    EXPECT_GT(often->longest_ms, 0);
    EXPECT_LE(often->longest_ms, often->read_ms);
    EXPECT_GT(often->step_ms, 0);
    EXPECT_EQ(often->limit_ms, 0.01);
    EXPECT_GE(often->late_tokens, std::min(depth, kLeastLateTokens));
    // With all the time in the world the prompt is read in one go.
    const auto once = measure_stall(*engine, make_case(depth, 2), 1, 1e6);
    ASSERT_TRUE(once) << once.error().message;
    EXPECT_LT(once->waits, often->waits);
}

TEST_F(StallTest, DepthZeroReadsAPromptAllTheSame) {
    const auto stall = measure_stall(*engine, make_case(0, 1), 1, 1);
    ASSERT_TRUE(stall) << stall.error().message;
    EXPECT_GT(stall->late_tokens, 1);
    EXPECT_GT(stall->waits, 0);
}

TEST_F(StallTest, ErrorsOfTheEngineComeThrough) {
    auto bad = make_case(64, 1);
    bad.method.budget.value = 2;  // below the window
    EXPECT_FALSE(measure_stall(*engine, bad, 1, 10));
}

}  // namespace
}  // namespace headkv::test
