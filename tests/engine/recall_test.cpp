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
    static std::vector<float> step(SequenceId id, Token token) {
        return test::step(engine(), id, token);
    }
    // [group][rows] of a KV head, of the newest query.
    static std::vector<float> attention_of_group(SequenceId id, std::int64_t layer,
                                                 std::int64_t head) {
        const auto all = engine().attention(id, layer);
        std::vector<float> flat;
        for (std::int64_t i = 0; i < shape().group(); ++i) {
            const auto& part = all[static_cast<std::size_t>(head * shape().group() + i)];
            flat.insert(flat.end(), part.begin(), part.end());
        }
        return flat;
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

// The first layer's queries do not depend on what a cache holds: the full cache beside it says what
// each step must choose.
TEST_F(Recall, AStepChoosesWhatItsOwnQueryAttendsToMost) {
    const auto prompt = random_tokens(203, 12);
    for (const auto type : {StoreStep::f16, StoreStep::q8_0}) {
        auto asked = config("snapkv", 30, type);
        asked.options.reserve = 1;
        const SequenceId id = sequence(prompt, asked);
        const SequenceId full = sequence(prompt, config("full", 0));
        const auto method = Method::create(asked, shape(), 203, 1).value();
        std::size_t same = 0, chosen = 0;  // quantised keys may turn a near tie
        std::int64_t tokens = 203;
        for (const Token token : random_tokens(11, 13)) {
            step(id, token);
            step(full, token);
            ++tokens;
            for (std::int64_t head = 0; head < shape().kv_heads; ++head) {
                const auto ours = engine().positions(id)[0][static_cast<std::size_t>(head)];
                const auto right = method.keep_head(attention_of_group(full, 0, head), tokens, 30);
                EXPECT_EQ(ours.size(), right.size());
                EXPECT_EQ(ours.back(), tokens - 1);
                std::vector<std::int32_t> both;
                std::set_intersection(ours.begin(), ours.end(), right.begin(), right.end(),
                                      std::back_inserter(both));
                same += both.size();
                chosen += right.size();
            }
        }
        EXPECT_GE(static_cast<double>(same),
                  (type == StoreStep::f16 ? 0.99 : 0.93) * static_cast<double>(chosen));
        engine().release(id);
        engine().release(full);
    }
}

// Turns and steps weigh their queries as a prompt does: those that count next to nothing are as if
// they did not look.
TEST_F(Recall, QueriesAreWeighed) {
    for (const char* name : {"snapkv", "kv-compress", "headkv-r2"}) {
        auto asked = config(name, 30);
        asked.options.observe = 8;
        asked.options.reserve = 8;
        const auto prompt = random_tokens(200, 24);
        const SequenceId alike = sequence(prompt, asked);
        asked.options.query_decay = 1e-30;
        const SequenceId ours = sequence(prompt, asked);
        asked.options.observe = 1;
        const SequenceId right = sequence(prompt, asked);
        const auto expect_as_one = [&] {
            const auto held = engine().positions(ours);
            EXPECT_GE(mean_jaccard(held, engine().positions(right)), 0.99) << name;
            EXPECT_LT(mean_jaccard(held, engine().positions(alike)), 0.98) << name;
        };
        for (const auto id : {alike, ours, right}) extend(id, random_tokens(20, 25));
        expect_as_one();
        for (const Token token : random_tokens(16, 26)) {  // the last one selects
            for (const auto id : {alike, ours, right}) step(id, token);
        }
        expect_as_one();
        for (const auto id : {alike, ours, right}) engine().release(id);
    }
}

TEST_F(Recall, AnAnswerHoldsTheBudgetAndTheTokensSince) {
    const auto row = pair_->model->info().row_bytes * shape().layers * shape().kv_heads;
    for (const char* name : {"snapkv", "ada-kv", "headkv-r2", "tova", "h2o", "kv-compress"}) {
        for (const std::int64_t every : {1, 3, 8}) {
            auto asked = config(name, 30);
            asked.options.reserve = every;
            const SequenceId id = sequence(random_tokens(200, 14), asked);
            ASSERT_EQ(engine().info(id).plan_bytes, 30 * row);
            std::int64_t done = 0;
            for (const Token token : random_tokens(21, 15)) {
                step(id, token);
                ++done;
                const auto since = done < every ? done : done % every;
                EXPECT_EQ(engine().info(id).held_bytes, (30 + since) * row)
                    << name << every << ' ' << done;
            }
            extend(id, random_tokens(20, 16));
            EXPECT_EQ(engine().info(id).held_bytes, 30 * row) << name;
            const SequenceId other = engine().copy(id).value();
            EXPECT_EQ(step(id, 5), step(other, 5)) << name;
            engine().release(id);
            engine().release(other);
            EXPECT_EQ(engine().info(other).archive_bytes, 0);
        }
    }
}

// Rows that an earlier selection dropped come back when the reserve is full.
TEST_F(Recall, AFullReserveSelectsFromAllRows) {
    auto asked = config("snapkv", 20);
    asked.options.reserve = 10;
    asked.options.window = 4;
    auto without = asked;
    without.recall.reset();
    const auto prompt = random_tokens(200, 17);
    const SequenceId id = sequence(prompt, asked), other = sequence(prompt, without);
    const auto before = engine().positions(id);
    const auto answer = random_tokens(12, 18);
    for (const Token token : answer) {
        step(id, token);
        step(other, token);
    }
    bool back = false;
    const auto after = engine().positions(id), dropped = engine().positions(other);
    for (std::size_t layer = 0; layer < after.size(); ++layer) {
        for (std::size_t head = 0; head < after[layer].size(); ++head) {
            EXPECT_EQ(after[layer][head].size(), 20U + 2U);  // the tenth token chose
            const auto& held = before[layer][head];
            for (const auto position : after[layer][head]) {
                back = back ||
                       (position < 200 && !std::binary_search(held.begin(), held.end(), position));
            }
            for (const auto position : dropped[layer][head]) {
                EXPECT_TRUE(position >= 200 ||
                            std::binary_search(held.begin(), held.end(), position));
            }
        }
    }
    EXPECT_TRUE(back);
    engine().release(id);
    engine().release(other);
}

// With all rows but a few brought back at each step, the answer is nearly that of the full cache.
TEST_F(Recall, StepsComeNearTheFullCache) {
    const auto prompt = random_tokens(200, 19);
    for (const char* name : {"snapkv", "h2o"}) {
        auto asked = config(name, 190);
        asked.options.reserve = 1;
        asked.options.kernel = 1;
        const SequenceId full = sequence(prompt, config("full", 0)), id = sequence(prompt, asked);
        for (const Token token : random_tokens(6, 20)) {
            EXPECT_LT(logit_error(step(id, token), step(full, token)), 0.25) << name;
        }
        engine().release(full);
        engine().release(id);
    }
}

TEST_F(Recall, StepsAreTheSameAloneAndAmongSixteen) {
    for (const char* name : {"snapkv", "headkv-r2", "ada-kv"}) {
        std::vector<SequenceId> alone, together;
        for (std::uint64_t i = 0; i < 16; ++i) {
            auto asked = config(name, 24.0 + static_cast<double>(i));
            asked.options.reserve = 1 + static_cast<std::int64_t>(i % 3);
            alone.push_back(
                sequence(random_tokens(90 + 7 * static_cast<std::int64_t>(i), 30 + i), asked));
            together.push_back(engine().copy(alone.back()).value());
        }
        for (const Token token : random_tokens(5, 21)) {
            std::vector<DecodeInput> inputs;
            for (const auto id : together) inputs.push_back({.sequence = id, .token = token});
            ASSERT_TRUE(engine().decode(inputs));
            std::vector<std::vector<float>> logits;
            for (std::size_t i = 0; i < inputs.size(); ++i) {
                logits.emplace_back(engine().logits(i).begin(), engine().logits(i).end());
            }
            for (std::size_t i = 0; i < alone.size(); ++i) {
                EXPECT_LT(logit_error(step(alone[i], token), logits[i]), 1e-3) << name << i;
                EXPECT_EQ(engine().positions(alone[i]), engine().positions(together[i])) << name;
            }
        }
        for (const auto id : alone) engine().release(id);
        for (const auto id : together) engine().release(id);
    }
}

// Several tokens in one call are chosen for one after the other.
TEST_F(Recall, TokensOfOneCallSelectAsOneByOne) {
    auto asked = config("snapkv", 30);
    asked.options.reserve = 2;
    const SequenceId one = sequence(random_tokens(200, 22), asked);
    const SequenceId other = engine().copy(one).value();
    const auto tokens = random_tokens(7, 23);
    std::vector<DecodeInput> inputs;
    for (const Token token : tokens) inputs.push_back({.sequence = one, .token = token});
    ASSERT_TRUE(engine().decode(inputs));
    const std::vector<float> last(engine().logits(6).begin(), engine().logits(6).end());
    std::vector<float> right;
    for (const Token token : tokens) right = step(other, token);
    EXPECT_LT(logit_error(last, right), 1e-3);
    EXPECT_EQ(engine().positions(one), engine().positions(other));
    engine().release(one);
    engine().release(other);
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
