#include "eval/answering.h"

#include <gtest/gtest.h>

#include "headkv/sampler.h"
#include "support/tiny_model.h"

namespace headkv::test {
namespace {

struct AnsweringTest : testing::Test {
    void SetUp() override {
        write_tiny_model(TinyModel{}, folder / "tiny.gguf");
        model = Model::load(folder / "tiny.gguf", {.device = "cpu", .threads = 1}).value();
        engine = Engine::create(model).value();
    }

    // Each token of the reference by itself, on a sequence of its own.
    std::vector<double> one_by_one(const Asked& asked, const MethodConfig& method) {
        auto filled = engine->prefill(asked.prompt, {&method, 1}).value();
        std::vector<double> each = {log_probability(filled.logits, asked.reference[0])};
        for (std::size_t i = 0; i + 1 < asked.reference.size(); ++i) {
            const DecodeInput input{filled.sequences[0], asked.reference[i], true};
            EXPECT_TRUE(engine->decode({&input, 1}));
            each.push_back(log_probability(engine->logits(0), asked.reference[i + 1]));
        }
        engine->release(filled.sequences[0]);
        return each;
    }

    TempFolder folder;
    std::shared_ptr<const Model> model;
    std::unique_ptr<Engine> engine;
};

// Sequences share decode calls: one call for all, several sequences a call, one sequence a call.
TEST_F(AnsweringTest, ReferencesAreScoredTogetherAsOneByOne) {
    std::vector<ConfigUnderTest> configs;
    for (const double rows : {20.0, 24.0, 30.0}) {
        ConfigUnderTest config;
        config.name = "snapkv";
        config.rows = rows;
        config.method.method = "snapkv";
        config.method.budget = {.unit = Budget::Unit::rows, .value = rows};
        config.method.options.window = 8;
        configs.push_back(config);
    }
    MethodConfig full;
    full.method = "full";
    for (const std::int64_t length : {1, 5, 100, 300}) {
        Asked asked;
        asked.prompt = random_tokens(60, 7);
        asked.compressed = asked.prompt.size();
        asked.reference = random_tokens(length, 8);
        asked.max_tokens = 2;
        const auto answers = answer_with_all(*engine, asked, configs);
        ASSERT_TRUE(answers) << answers.error().message;
        ASSERT_EQ(answers->size(), 4U);
        for (std::size_t i = 0; i < answers->size(); ++i) {
            const auto right = one_by_one(asked, i == 0 ? full : configs[i - 1].method);
            const auto& mine = (*answers)[i].log_probability;
            ASSERT_EQ(mine.size(), right.size());
            for (std::size_t token = 0; token < right.size(); ++token) {
                EXPECT_NEAR(mine[token], right[token], 0.02) << i << ' ' << token << '/' << length;
            }
        }
    }
}

}  // namespace
}  // namespace headkv::test
