// Recall: further turns select from all rows of a sequence again.
#include "engine/recall.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

class Recall : public testing::Test {
protected:
    static void SetUpTestSuite() {
        TinyModel wide;
        wide.head_dim = 32;  // so that rows can be quantised
        pair_ = new TinyPair(wide);
        ASSERT_TRUE(pair_->engine);
    }
    static void TearDownTestSuite() {
        delete pair_;
        pair_ = nullptr;
    }
    static Engine& engine() { return *pair_->engine; }
    static HeadShape shape() { return pair_->model->info().shape; }
    static MethodConfig config(const std::string& name, double rows,
                               std::optional<StoreStep> recall = StoreStep::f16) {
        auto config = method_config(name, rows, shape());
        config.recall = recall;
        return config;
    }
    static SequenceId sequence(std::span<const Token> prompt, const MethodConfig& config) {
        auto result = engine().prefill(prompt, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? result->sequences.at(0) : -1;
    }
    static std::vector<float> extend(SequenceId id, std::span<const Token> turn) {
        auto logits = engine().extend(id, turn);
        EXPECT_TRUE(logits) << (logits ? "" : logits.error().message);
        return logits ? *logits : std::vector<float>();
    }
    static TinyPair* pair_;
};
TinyPair* Recall::pair_ = nullptr;

// A turn reads all rows, so what it selects and says is what one prompt of all tokens would have.
TEST_F(Recall, ATurnIsReadAndSelectsAsAPromptThatEndsWithIt) {
    const auto all = random_tokens(230, 1);
    for (const char* name : {"snapkv", "ada-kv", "headkv-r2", "pyramidkv", "tova", "chunkkv"}) {
        const SequenceId turned = sequence(std::span(all).first(200), config(name, 30));
        const auto logits = extend(turned, std::span(all).subspan(200));
        const auto one = config(name, 30);
        const auto whole = engine().prefill(all, {&one, 1}).value();
        EXPECT_LT(logit_error(logits, whole.logits), 0.02) << name;
        EXPECT_EQ(engine().positions(turned)[0], engine().positions(whole.sequences[0])[0]) << name;
        std::size_t same = 0, held = 0;  // f16 rows and f32 products may turn a near tie
        const auto ours = engine().positions(turned);
        const auto theirs = engine().positions(whole.sequences[0]);
        for (std::size_t layer = 0; layer < theirs.size(); ++layer) {
            for (std::size_t head = 0; head < theirs[layer].size(); ++head) {
                const auto& mine = ours[layer][head];
                const auto& other = theirs[layer][head];
                std::vector<std::int32_t> both;
                std::set_intersection(mine.begin(), mine.end(), other.begin(), other.end(),
                                      std::back_inserter(both));
                same += both.size();
                held += other.size();
            }
        }
        EXPECT_GE(static_cast<double>(same), 0.95 * static_cast<double>(held)) << name;
        engine().release(turned);
        engine().release(whole.sequences[0]);
    }
}

TEST_F(Recall, TheBudgetIsExactAfterEveryTurnAndTheArchiveHasAllRows) {
    const auto row = pair_->model->info().row_bytes;
    for (const char* name : {"snapkv", "ada-kv", "headkv-r2"}) {
        const SequenceId id = sequence(random_tokens(200, 2), config(name, 30));
        const auto planned = engine().info(id).plan_bytes;
        std::int64_t tokens = 200;
        for (std::uint64_t turn = 0; turn < 4; ++turn) {
            extend(id, random_tokens(23, 50 + turn));
            tokens += 23;
            EXPECT_EQ(engine().info(id).held_bytes, planned) << name;
            for (const Token token : random_tokens(5, 80 + turn)) {
                const DecodeInput input{.sequence = id, .token = token};
                ASSERT_TRUE(engine().decode({&input, 1}));
            }
            tokens += 5;
            const auto info = engine().info(id);
            EXPECT_EQ(info.tokens, tokens);
            EXPECT_EQ(info.archive_bytes, tokens * shape().layers * shape().kv_heads * row);
            for (const auto& layer : engine().positions(id)) {
                for (const auto& head : layer) {
                    EXPECT_TRUE(std::is_sorted(head.begin(), head.end(), std::less_equal<>()));
                }
            }
        }
        engine().release(id);
        EXPECT_EQ(engine().info(id).archive_bytes, 0);
    }
}

TEST_F(Recall, WithinTheBudgetNothingChanges) {
    const auto prompt = random_tokens(60, 3), turn = random_tokens(20, 4);
    for (const auto type : {StoreStep::f16, StoreStep::q8_0, StoreStep::q4_0}) {
        const SequenceId with = sequence(prompt, config("snapkv", 100, type));
        const SequenceId without = sequence(prompt, config("snapkv", 100, std::nullopt));
        EXPECT_EQ(extend(with, turn), extend(without, turn));
        EXPECT_EQ(engine().positions(with), engine().positions(without));
        EXPECT_GT(engine().info(with).archive_bytes, 0);
        EXPECT_EQ(engine().info(without).archive_bytes, 0);
        engine().release(with);
        engine().release(without);
    }
}

// All rows but one are brought back: the answer is nearly that of the full cache.
TEST_F(Recall, BringsBackWhatTheFirstSelectionDropped) {
    const auto prompt = random_tokens(200, 5), turn = random_tokens(20, 6);
    const SequenceId full = sequence(prompt, config("full", 0));
    const auto right = extend(full, turn);
    const SequenceId id = sequence(prompt, config("snapkv", 199));
    EXPECT_LT(logit_error(extend(id, turn), right), 0.2);
    engine().release(full);
    engine().release(id);
}

TEST_F(Recall, IsDeterministicAndCopiesAreIndependent) {
    const auto prompt = random_tokens(200, 7), turn = random_tokens(20, 8);
    for (const auto type : {StoreStep::f16, StoreStep::q8_0, StoreStep::q4_0}) {
        const SequenceId one = sequence(prompt, config("headkv-r2", 30, type));
        const SequenceId other = engine().copy(one).value();
        const auto first = extend(one, turn);
        EXPECT_EQ(extend(other, turn), first);
        EXPECT_EQ(engine().positions(one), engine().positions(other));
        engine().release(one);
        extend(other, turn);
        engine().release(other);
    }
}

TEST_F(Recall, MethodsWithoutAttentionKeepNoArchive) {
    const auto prompt = random_tokens(200, 9), turn = random_tokens(20, 10);
    for (const char* name : {"streaming-llm", "full"}) {
        const SequenceId with = sequence(prompt, config(name, 30));
        const SequenceId without = sequence(prompt, config(name, 30, std::nullopt));
        EXPECT_EQ(engine().info(with).archive_bytes, 0);
        EXPECT_EQ(extend(with, turn), extend(without, turn));
        engine().release(with);
        engine().release(without);
    }
}

TEST_F(Recall, IsRefusedOffTheCpusOwnKernels) {
    auto other = Engine::create(pair_->model, {.stock_operations = true}).value();
    const auto prompt = random_tokens(100, 11);
    const auto asked = config("snapkv", 30);
    const auto refused = other->prefill(prompt, {&asked, 1});
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
    EXPECT_NE(refused.error().message.find("--device cpu"), std::string::npos);
    EXPECT_FALSE(other->check(prompt, asked));
}

}  // namespace
}  // namespace headkv::test
