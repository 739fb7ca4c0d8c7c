// Drafted answers whose queries score: the draft is the answer of a larger cache, and what it looks
// at is kept.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

class Draft : public testing::Test {
protected:
    static void SetUpTestSuite() {
        pair_ = new TinyPair(TinyModel{});
        ASSERT_TRUE(pair_->engine);
    }
    static void TearDownTestSuite() {
        delete pair_;
        pair_ = nullptr;
    }
    static Engine& engine() { return *pair_->engine; }
    static MethodConfig config(const std::string& name, double rows, std::int64_t draft) {
        auto made = method_config(name, rows, pair_->model->info().shape);
        made.options.window = 7;
        made.options.observe = 5;
        made.options.draft = draft;
        return made;
    }
    static SequenceId sequence(std::span<const Token> prompt, const MethodConfig& config) {
        auto result = engine().prefill(prompt, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? result->sequences.at(0) : -1;
    }
    // The most probable next tokens, up to the one that ends an answer.
    static std::vector<Token> answer(std::span<const Token> prompt, MethodConfig config,
                                     std::size_t tokens) {
        config.options.draft = 0;
        config.budget.value = std::max(config.budget.value, static_cast<double>(kDraftRows));
        auto result = engine().prefill(prompt, {&config, 1}).value();
        const auto best = std::max_element(result.logits.begin(), result.logits.end());
        std::vector<Token> text = {static_cast<Token>(best - result.logits.begin())};
        while (text.size() < tokens) {
            const DecodeInput input{.sequence = result.sequences[0], .token = text.back()};
            EXPECT_TRUE(engine().decode({&input, 1}));
            text.push_back(engine().best(0));
        }
        engine().release(result.sequences[0]);
        const auto end = std::find_if(text.begin(), text.end(), [](Token token) {
            return pair_->model->tokenizer().is_end(token);
        });
        text.erase(end, text.end());
        return text;
    }
    // The next ids belong to no sequence.
    static void expect_nothing_left(SequenceId since) {
        for (auto id = since; id < since + 20; ++id) {
            EXPECT_EQ(engine().info(id).prompt_tokens, 0) << id;
        }
    }
    static TinyPair* pair_;
};
TinyPair* Draft::pair_ = nullptr;

// A prompt with the draft behind it, all of which look and stay, keeps of what lies before the
// same.
TEST_F(Draft, KeepsWhatALongerPromptWouldKeepOfIt) {
    for (const std::int64_t length : {400, 150}) {
        const auto prompt = random_tokens(length, 3);
        for (const std::int64_t draft : {1, 9}) {
            const auto asked = config("snapkv", 40, draft);
            const auto text = answer(prompt, asked, static_cast<std::size_t>(draft));
            ASSERT_EQ(std::ssize(text), draft) << "choose another seed: the draft ends early";
            auto longer = prompt;
            longer.insert(longer.end(), text.begin(), text.end());
            auto plain = config("snapkv", static_cast<double>(40 + draft), 0);
            plain.options.window += draft;
            plain.options.observe += draft;
            auto right = engine().positions(sequence(longer, plain));
            for (auto& layer : right) {
                for (auto& head : layer) {
                    std::erase_if(head, [&](std::int32_t position) { return position >= length; });
                }
            }
            const auto id = sequence(prompt, asked);
            EXPECT_GE(mean_jaccard(engine().positions(id), right), 0.99) << length << " " << draft;
            EXPECT_LT(
                mean_jaccard(engine().positions(sequence(prompt, config("snapkv", 40, 0))), right),
                0.95);
            EXPECT_EQ(engine().info(id).tokens, length);
        }
    }
}

// The draft's queries and the prompt's last one count alike, those before it less.
TEST_F(Draft, OnlyQueriesOfThePromptAreWeighed) {
    const auto prompt = random_tokens(400, 3);
    auto decaying = config("snapkv", 40, 9), alone = decaying;
    const auto alike = engine().positions(sequence(prompt, decaying));
    decaying.options.query_decay = 1e-30;
    alone.options.observe = 1;
    const auto ours = engine().positions(sequence(prompt, decaying));
    EXPECT_GE(mean_jaccard(ours, engine().positions(sequence(prompt, alone))), 0.99);
    EXPECT_LT(mean_jaccard(ours, alike), 0.98);
    alone.options.draft = 0;  // if the draft did not count either
    EXPECT_LT(mean_jaccard(ours, engine().positions(sequence(prompt, alone))), 0.98);
}

TEST_F(Draft, ManyCachesAreThoseOfSeparateReadings) {
    const auto prompt = random_tokens(500, 5);
    const std::vector<MethodConfig> configs = {
        config("snapkv", 30, 4),     config("headkv-r2", 40, 0), config("headkv-r2", 30, 4),
        config("headkv-r2", 60, 12), config("full", 0, 0),       config("kvzip", 50, 0),
        config("criticalkv", 30, 4)};
    const auto together = engine().prefill(prompt, configs);
    ASSERT_TRUE(together) << together.error().message;
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const auto alone = engine().prefill(prompt, {&configs[i], 1}).value();
        EXPECT_EQ(engine().positions(alone.sequences[0]),
                  engine().positions(together->sequences[i]))
            << configs[i].method << " " << configs[i].options.draft;
        EXPECT_EQ(alone.logits, together->logits_of(i));
        const auto info = engine().info(together->sequences[i]);
        EXPECT_EQ(info.held_bytes, info.plan_bytes);
        engine().release(alone.sequences[0]);
        engine().release(together->sequences[i]);
    }
}

TEST_F(Draft, StepsCountToTheEndAndAJobThatIsLeftLeavesNothing) {
    const auto prompt = random_tokens(300, 6);
    const auto asked = config("snapkv", 30, 6);
    const auto whole = sequence(prompt, asked);
    for (const int stop : {1, 7, 12, 1000}) {
        auto job = engine().start_prefill(prompt, {&asked, 1});
        ASSERT_TRUE(job) << job.error().message;
        std::int64_t done = 0, layers = 0;
        bool ended = false;
        for (int i = 0; i < stop && !ended; ++i) {
            const auto step = job->step(100);
            ASSERT_TRUE(step) << step.error().message;
            ended = *step;
            EXPECT_GE(job->done(), done);
            EXPECT_GE(job->layers_done(), layers);
            EXPECT_LE(job->done(), job->total());
            done = job->done();
            layers = job->layers_done();
        }
        if (stop < 1000) {
            EXPECT_FALSE(ended);
            continue;
        }
        ASSERT_TRUE(ended);
        EXPECT_EQ(done, job->total());
        EXPECT_EQ(layers, job->layers());
        EXPECT_EQ(layers, 2 * pair_->model->info().shape.layers);
        const auto result = job->finish();
        ASSERT_TRUE(result);
        EXPECT_EQ(engine().positions(result->sequences[0]), engine().positions(whole));
        expect_nothing_left(result->sequences[0] + 1);
        engine().release(result->sequences[0]);
    }
    expect_nothing_left(whole + 1);
}

TEST_F(Draft, ThereIsNoneWhereTheContextEnds) {
    const auto prompt = random_tokens(2048, 7);
    EXPECT_EQ(engine().positions(sequence(prompt, config("snapkv", 30, 6))),
              engine().positions(sequence(prompt, config("snapkv", 30, 0))));
}

// Devices compute with other operations: a row may be another where two are as good.
TEST_F(Draft, DevicesKeepWhatTheCpuDoes) {
    auto made = Engine::create(pair_->model, {.chunk = 256, .stock_operations = true});
    ASSERT_TRUE(made);
    auto& device = **made;
    const auto prompt = random_tokens(600, 8);
    std::vector<MethodConfig> configs = {config("snapkv", 30, 4),    config("headkv-r2", 40, 0),
                                         config("headkv-r2", 30, 9), config("ada-kv", 30, 4),
                                         config("full", 0, 0),       config("headkv-r2", 30, 9)};
    configs.back().options.query_decay = 0.2;
    const auto ours = device.prefill(prompt, configs);
    ASSERT_TRUE(ours) << ours.error().message;
    const auto right = engine().prefill(prompt, configs).value();
    EXPECT_EQ(ours->readings, right.readings);
    EXPECT_GT(ours->readings, 1);
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const auto& name = configs[i].method;
        EXPECT_LT(logit_error(ours->logits_of(i), right.logits_of(i)), 0.01) << name;
        EXPECT_EQ(device.info(ours->sequences[i]).prompt_tokens, 600);
        EXPECT_GE(mean_jaccard(device.positions(ours->sequences[i]),
                               engine().positions(right.sequences[i])),
                  0.97)
            << name << " " << configs[i].options.draft;
        const auto info = device.info(ours->sequences[i]);
        EXPECT_EQ(info.plan_bytes, engine().info(right.sequences[i]).plan_bytes) << name;
        const DecodeInput next{.sequence = ours->sequences[i], .token = 5},
            same{.sequence = right.sequences[i], .token = 5};
        ASSERT_TRUE(device.decode({&next, 1}));
        ASSERT_TRUE(engine().decode({&same, 1}));
        EXPECT_LT(logit_error(device.logits(0), engine().logits(0)), 0.1) << name;
        device.release(ours->sequences[i]);
        engine().release(right.sequences[i]);
    }
    // A job that is left gives its slots back.
    {
        auto job = device.start_prefill(prompt, {configs.data(), 1}).value();
        for (int i = 0; i < 12; ++i) ASSERT_TRUE(job.step());
        EXPECT_LT(job.done(), job.total());
    }
    EXPECT_EQ(device.device_peak_bytes() > 0, true);
    EXPECT_TRUE(device.prefill(prompt, configs));
}

}  // namespace
}  // namespace headkv::test
