#include "calibrate/forced_probes.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "headkv/sampler.h"
#include "headkv/session.h"
#include "support/tiny_model.h"

namespace headkv {
namespace {

class ForcedProbes : public testing::Test {
protected:
    void SetUp() override {
        test::write_tiny_model(test::TinyModel{}, folder_ / "tiny.gguf");
        model_ = Model::load(folder_ / "tiny.gguf", {.device = "cpu", .threads = 1}).value();
        engine_ = Engine::create(model_).value();
    }
    Result<std::vector<TaskLine>> load(const std::string& text) const {
        std::ofstream(folder_ / "t.jsonl") << text;
        return load_task_rows(folder_ / "t.jsonl");
    }
    // The text of the tokens that have weight.
    std::string marked(const ForcedProbe& probe) const {
        std::string text;
        for (std::size_t i = 0; i < probe.prompt.size(); ++i) {
            if (probe.evidence.weight[i] > 0) text += model_->tokenizer().piece(probe.prompt[i]);
        }
        return text;
    }

    test::TempFolder folder_;
    std::shared_ptr<const Model> model_;
    std::unique_ptr<Engine> engine_;
};

TEST_F(ForcedProbes, ReadsTheRowsOfGenerate) {
    const auto rows = load(
        "{\"context\": \"c\", \"question\": \"q\", \"answers\": [\"a\", \"b\"], \"id\": 7}\n\n"
        "{\"context\": \"d\", \"answer\": \"e\"}\n");
    ASSERT_TRUE(rows) << rows.error().message;
    ASSERT_EQ(rows->size(), 2U);
    EXPECT_EQ((*rows)[0].answer, "a");
    EXPECT_EQ((*rows)[1].line, 3);
    EXPECT_EQ((*rows)[1].question, "");
}

TEST_F(ForcedProbes, NamesTheLineOfAMistake) {
    const std::string good = "{\"context\": \"c\", \"answers\": [\"a\"]}\n";
    for (const std::string bad :
         {"[1]\n", "{\"context\": \"c\"}\n", "{\"answers\": [\"a\"]}\n",
          "{\"context\": \" \", \"answers\": [\"a\"]}\n", "{\"context\": \"c\", \"answers\": []}\n",
          "{\"context\": \"c\", \"answers\": [\" \\n\"]}\n",
          "{\"context\": \"c\", \"answer\": \"\"}\n", "{\"context\": \"c\", \"ans"}) {
        const auto rows = load(good + bad);
        ASSERT_FALSE(rows) << bad;
        EXPECT_EQ(rows.error().kind, ErrorKind::bad_input);
        EXPECT_NE(rows.error().message.find("line 2"), std::string::npos) << rows.error().message;
    }
    EXPECT_FALSE(load("\n"));
    EXPECT_FALSE(load_task_rows(folder_ / "none.jsonl"));
}

TEST_F(ForcedProbes, TheEvidenceLiesInTheDocument) {
    const std::vector<TaskLine> rows = {
        {4, "The fox hid the key at home.", "Where is the key of the fox?", "the key"},
        {9, "The fox hid the key at home.", "Where?", "nothing of it"}};
    const auto probes = task_probes(*model_, rows, std::nullopt);
    ASSERT_TRUE(probes) << probes.error().message;
    EXPECT_EQ((*probes)[0].probe.id, "line 4");
    EXPECT_EQ((*probes)[0].probe.family, "verbatim");
    std::string text = marked((*probes)[0]);
    std::erase(text, ' ');
    EXPECT_EQ(text, "thekey");  // once: not in the question
    EXPECT_EQ((*probes)[1].probe.family, "document");
    EXPECT_LT((*probes)[0].without.size(), (*probes)[0].prompt.size());
}

TEST_F(ForcedProbes, AnAnswerBeyondTheContextIsRefused) {
    const std::vector<TaskLine> rows = {{7, "A short text.", "What?", std::string(3000, 'x')}};
    const auto probes = task_probes(*model_, rows, std::nullopt);
    ASSERT_FALSE(probes);
    EXPECT_EQ(probes.error().kind, ErrorKind::bad_input);
    EXPECT_NE(probes.error().message.find("line 7"), std::string::npos);
    EXPECT_NE(probes.error().message.find("2048"), std::string::npos);
    const std::vector<TaskLine> fits = {{7, "A short text.", "What?", std::string(300, 'x')}};
    EXPECT_EQ(task_probes(*model_, fits, std::nullopt, 20).value()[0].answer.size(), 20U);
}

TEST_F(ForcedProbes, ListsOfExamplesMarkTheRightLabels) {
    const std::vector<std::int64_t> lengths = {200, 400};
    const auto probes = icl_probes(*model_, lengths, 3, 5);
    ASSERT_TRUE(probes) << probes.error().message;
    ASSERT_EQ(probes->size(), 12U);
    const Tokenizer& tokenizer = model_->tokenizer();
    for (const ForcedProbe& probe : *probes) {
        SCOPED_TRACE(probe.probe.id);
        const std::string text = tokenizer.decode(probe.prompt);
        const std::string label = tokenizer.decode(probe.answer).substr(1);
        const std::size_t last = text.rfind('\n') + 1;
        const std::string asked = text.substr(last, text.find(" ->", last) - last);
        const bool known = text.find(asked + " -> " + label + "\n") != std::string::npos;
        EXPECT_EQ(known, probe.probe.family == "same_input");
        EXPECT_EQ(text.find(asked + " ->"), known ? text.find(asked + " -> " + label) : last);
        std::string labels = marked(probe);
        std::erase(labels, ' ');
        const std::size_t count = labels.size() / label.size();
        EXPECT_TRUE(!known || count == 1U);
        std::string expected;
        for (std::size_t i = 0; i < count; ++i) expected += label;
        EXPECT_EQ(labels, expected);
    }
    EXPECT_NE((*probes)[0].prompt, (*probes)[4].prompt);
    EXPECT_FALSE(icl_probes(*model_, std::vector<std::int64_t>{4000}, 1, 5));
}

TEST_F(ForcedProbes, ScoresAreSharesOfAttention) {
    ForcedProbe probe;
    probe.prompt = test::random_tokens(60, 3);
    probe.evidence = {std::vector<float>(60, 1.0F), 60, "x"};
    const auto outcome_of = [&](const ForcedProbe& one) {
        return engine_forced_runner(*engine_, {&one, 1}, {})(0).value();
    };
    // Without anything to compare with, the model's own choice counts, and no other token.
    const std::vector<MethodConfig> configs = {[] {
        MethodConfig config;
        config.method = "full";
        config.budget = {Budget::Unit::share, 1.0};
        return config;
    }()};
    const auto filled = engine_->prefill(probe.prompt, configs);
    ASSERT_TRUE(filled);
    const Token best = best_token(filled->logits);
    engine_->release(filled->sequences[0]);
    probe.answer = {best};
    const ProbeOutcome outcome = outcome_of(probe);
    ASSERT_TRUE(outcome.passed());
    // All attention of the only step lies in the prompt.
    ASSERT_EQ(outcome.scores.size(), 12U);
    for (const double score : outcome.scores) EXPECT_NEAR(score, 1, 1e-5);
    // With the same prompt as the one without a document, nothing is gained.
    probe.without = probe.prompt;
    EXPECT_NEAR(outcome_of(probe).quality, 0, 1e-3);
    probe.without.clear();
    // A part of the positions has a part of it.
    probe.evidence = {std::vector<float>(60, 0.0F), 60, "x"};
    for (std::size_t i = 0; i < 30; ++i) probe.evidence.weight[i] = 1;
    for (const double score : outcome_of(probe).scores) {
        EXPECT_GT(score, 0);
        EXPECT_LT(score, 1);
    }
    probe.answer = {best == 5 ? 6 : 5};
    EXPECT_FALSE(outcome_of(probe).passed());
}

TEST_F(ForcedProbes, CausalScoresAreGainsOverTheSmallCache) {
    const Haystack haystack = Haystack::builtin(2);
    const std::vector<Needle> needles = {single_fact_needles()[3]};
    const std::vector<ProbeSpec> specs = {{300, 50, 0}};
    CalibrationSettings settings;
    settings.pass = -1;
    settings.small_rows = 20;
    settings.raised_rows = 80;
    const auto outcome = engine_causal_runner(*engine_, haystack, needles, specs, settings, {})(0);
    ASSERT_TRUE(outcome) << outcome.error().message;
    // The loss of the small cache by another way: one sequence after the other.
    const auto probe = prepare_probe(*model_, haystack, needles[0], specs[0], std::nullopt);
    ASSERT_TRUE(probe);
    const auto answer = answer_tokens(model_->tokenizer(), needles[0].answer, false);
    const auto log_probability_with = [&](const char* method, Budget budget) {
        MethodConfig config;
        config.method = method;
        config.budget = budget;
        const std::vector<MethodConfig> configs = {config};
        const auto body = std::span(probe->prompt).first(probe->prompt.size() - 1);
        const auto filled = engine_->prefill(body, configs);
        EXPECT_TRUE(filled);
        double sum = 0;
        Token input = probe->prompt.back();
        for (const Token token : answer) {
            const DecodeInput step{filled->sequences[0], input, true};
            EXPECT_TRUE(engine_->decode({&step, 1}));
            sum += log_probability(engine_->logits(0), token);
            input = token;
        }
        engine_->release(filled->sequences[0]);
        return sum / static_cast<double>(answer.size());
    };
    const double loss = log_probability_with("full", {Budget::Unit::share, 1.0}) -
                        log_probability_with("snapkv", {Budget::Unit::rows, 20});
    EXPECT_NEAR(outcome->quality, loss, 1e-3);
    EXPECT_EQ(outcome->passed(), outcome->quality >= 0.05);
    if (!outcome->passed()) return;
    // Query heads of a group share the score of their KV head.
    for (std::size_t i = 0; i < outcome->scores.size(); i += 2) {
        EXPECT_EQ(outcome->scores[i], outcome->scores[i + 1]);
    }
}

TEST(CheckCausal, RowsThatMakeNoSense) {
    CalibrationSettings settings;
    EXPECT_TRUE(check_causal(settings));
    settings.small_rows = 15;
    EXPECT_FALSE(check_causal(settings));
    settings.small_rows = settings.raised_rows;
    EXPECT_FALSE(check_causal(settings));
}

}  // namespace
}  // namespace headkv
