// Many sequences at once: batches, several caches of one prefill, exact bytes, bounded answers,
// copies, releases, and what the engine refuses.
#include <algorithm>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

constexpr double kSame = 1e-3;  // two ways to compute one thing may round differently

class Sequences : public testing::Test {
protected:
    static void SetUpTestSuite() {
        pair_ = new TinyPair({});
        ASSERT_TRUE(pair_->engine);
    }
    static void TearDownTestSuite() {
        delete pair_;
        pair_ = nullptr;
    }

    static Engine& engine() { return *pair_->engine; }
    static HeadShape shape() { return pair_->model->info().shape; }
    static std::int64_t row_bytes() { return pair_->model->info().row_bytes; }
    static MethodConfig config(const std::string& name, double rows) {
        return method_config(name, rows, shape());
    }

    // Prefill of one configuration; an error fails the test and gives sequence -1.
    static SequenceId sequence(std::span<const Token> prompt, const MethodConfig& config) {
        auto result = engine().prefill(prompt, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? result->sequences.at(0) : -1;
    }
    static std::vector<float> step(SequenceId sequence, Token token) {
        const DecodeInput input{.sequence = sequence, .token = token};
        const auto done = engine().decode({&input, 1});
        EXPECT_TRUE(done) << (done ? "" : done.error().message);
        if (!done) return {};
        const std::span<const float> logits = engine().logits(0);
        return {logits.begin(), logits.end()};
    }

    static TinyPair* pair_;
};
TinyPair* Sequences::pair_ = nullptr;

TEST_F(Sequences, ABatchOfUnequalPromptsEqualsSingleRuns) {
    struct One {
        std::int64_t tokens;
        MethodConfig config;
    };
    const std::vector<One> all = {
        {5, config("full", 0)},         {200, config("snapkv", 33)},
        {64, config("headkv-r2", 21)},  {131, config("ada-kv", 40)},
        {90, config("pyramidkv", 25)},  {300, config("streaming-llm", 20)},
        {77, config("headkv-r", 18.5)}, {1, config("full", 0)}};
    std::vector<SequenceId> single, batched;
    for (std::size_t i = 0; i < all.size(); ++i) {
        const std::vector<Token> prompt = random_tokens(all[i].tokens, 100 + i);
        single.push_back(sequence(prompt, all[i].config));
        batched.push_back(sequence(prompt, all[i].config));
    }
    for (std::uint64_t round = 0; round < 6; ++round) {
        const std::vector<Token> next =
            random_tokens(static_cast<std::int64_t>(all.size()), 200 + round);
        std::vector<DecodeInput> inputs;
        for (std::size_t i = 0; i < all.size(); ++i) inputs.push_back({batched[i], next[i]});
        ASSERT_TRUE(engine().decode(inputs));
        std::vector<std::vector<float>> together;
        for (std::size_t i = 0; i < all.size(); ++i) {
            const auto logits = engine().logits(i);
            together.emplace_back(logits.begin(), logits.end());
        }
        for (std::size_t i = 0; i < all.size(); ++i) {
            EXPECT_LT(logit_error(together[i], step(single[i], next[i])), kSame)
                << all[i].config.method << ", round " << round;
        }
    }
    for (std::size_t i = 0; i < all.size(); ++i) {
        EXPECT_EQ(engine().positions(single[i]), engine().positions(batched[i]));
        engine().release(single[i]);
        engine().release(batched[i]);
    }
}

TEST(QuantisedSequences, AStepGivesTheSameToTheBitBesideFewAndMany) {
    TinyModel quantised;
    quantised.weight_type = GGML_TYPE_Q4_1;
    quantised.embedding_type = GGML_TYPE_Q8_0;
    const TinyPair tiny(quantised);
    auto& engine = *tiny.engine;
    const auto config = method_config("snapkv", 30, tiny.model->info().shape);
    constexpr std::size_t kMany = 17, kFew = 3;
    std::vector<DecodeInput> many, few, one;
    for (std::size_t i = 0; i < kMany; ++i) {
        const auto prompt = random_tokens(40 + static_cast<std::int64_t>(i), 300 + i);
        const auto prefilled = engine.prefill(prompt, {&config, 1});
        ASSERT_TRUE(prefilled) << prefilled.error().message;
        many.push_back({prefilled->sequences.at(0), static_cast<Token>(i)});
        auto& twins = i < kFew ? few : one;
        twins.push_back({*engine.copy(many.back().sequence), many.back().token});
    }
    for (int round = 0; round < 3; ++round) {
        ASSERT_TRUE(engine.decode(many));
        std::vector<std::vector<float>> together;
        for (std::size_t i = 0; i < kMany; ++i) {
            const auto logits = engine.logits(i);
            together.emplace_back(logits.begin(), logits.end());
        }
        ASSERT_TRUE(engine.decode(few));
        for (std::size_t i = 0; i < kFew; ++i) {
            EXPECT_TRUE(std::ranges::equal(engine.logits(i), together[i])) << i;
        }
        ASSERT_TRUE(engine.decode({&one.back(), 1}));
        // ggml's own product of one column: either is within 0.05 of exact ones (forward_test.cpp)
        EXPECT_LT(logit_error(engine.logits(0), together.back()), 0.1) << round;
    }
}

TEST_F(Sequences, SeveralTokensOfOneSequenceInOneStepEqualOneAfterTheOther) {
    const std::vector<Token> prompt = random_tokens(140, 1), next = random_tokens(9, 2);
    const SequenceId one = sequence(prompt, config("snapkv", 30));
    const SequenceId other = sequence(random_tokens(30, 3), config("full", 0));
    const SequenceId many = sequence(prompt, config("snapkv", 30));
    std::vector<DecodeInput> inputs;
    for (const Token token : next) inputs.push_back({many, token});
    inputs.insert(inputs.begin() + 4, DecodeInput{other, 5});  // interleaved with another's
    ASSERT_TRUE(engine().decode(inputs));
    std::vector<std::vector<float>> together;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const auto logits = engine().logits(i);
        together.emplace_back(logits.begin(), logits.end());
    }
    for (std::size_t i = 0; i < next.size(); ++i) {
        EXPECT_LT(logit_error(together[i < 4 ? i : i + 1], step(one, next[i])), kSame) << i;
    }
}

TEST_F(Sequences, LogitsAreGivenOnlyWhereWanted) {
    const std::vector<Token> prompt = random_tokens(50, 1);
    const SequenceId first = sequence(prompt, config("full", 0));
    const SequenceId second = sequence(prompt, config("full", 0));
    const std::vector<DecodeInput> inputs = {{first, 1, false}, {first, 2, true}};
    ASSERT_TRUE(engine().decode(inputs));
    const std::vector<float> ours(engine().logits(1).begin(), engine().logits(1).end());
    step(second, 1);
    EXPECT_LT(logit_error(ours, step(second, 2)), kSame);
}

TEST_F(Sequences, OnePrefillManyCachesEqualsSeparatePrefills) {
    const std::vector<Token> prompt = random_tokens(260, 21), next = random_tokens(4, 22);
    std::vector<MethodConfig> configs;
    for (const Recipe& recipe : recipes()) {
        for (const double rows : {20.0, 48.5, 128.0}) {
            configs.push_back(config(std::string(recipe.name), rows));
        }
    }
    configs.push_back(config("snapkv", 32));
    configs.back().options.pool = Pool::avg;
    configs.push_back(config("snapkv", 32));
    configs.back().options.window = 8;
    configs.push_back(config("snapkv", 32));
    configs.back().options.observe = 5;
    configs.push_back(config("snapkv", 32));
    configs.back().options.observe = 5;
    configs.back().options.skip_tail = 7;
    configs.push_back(configs.back());
    configs.back().options.query_decay = 0.3;
    const auto together = engine().prefill(prompt, configs);
    ASSERT_TRUE(together) << together.error().message;
    ASSERT_EQ(together->sequences.size(), configs.size());
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const SequenceId alone = sequence(prompt, configs[i]);
        EXPECT_EQ(engine().positions(alone), engine().positions(together->sequences[i]))
            << configs[i].method;
        for (const Token token : next) {
            const std::vector<float> right = step(alone, token);
            EXPECT_LT(logit_error(step(together->sequences[i], token), right), kSame);
        }
        engine().release(alone);
        engine().release(together->sequences[i]);
    }
}

// A prompt without its last tokens gives the same attention from the same queries, as nothing looks
// ahead.
TEST_F(Sequences, QueriesBeforeTheTailLookAsIfThereWereNone) {
    const std::vector<Token> prompt = random_tokens(150, 23);
    auto with = config("snapkv", 40), without = config("snapkv", 33);
    with.options.window = 15;
    with.options.observe = without.options.observe = 6;
    with.options.skip_tail = 7;
    without.options.window = 8;
    const auto cut = std::span(prompt).first(prompt.size() - 7);
    const auto ours = engine().positions(sequence(prompt, with));
    auto right = engine().positions(sequence({cut.begin(), cut.end()}, without));
    for (auto& layer : right) {
        for (auto& head : layer) {
            for (std::int32_t i = 143; i < 150; ++i) head.push_back(i);
        }
    }
    EXPECT_EQ(ours, right);
    with.options.skip_tail = 0;
    EXPECT_NE(engine().positions(sequence(prompt, with)), right);
}

// In the prompt, and when the reserve is full.
TEST_F(Sequences, QueriesThatCountNextToNothingAreAsIfTheyDidNotLook) {
    const std::vector<Token> prompt = random_tokens(150, 24), next = random_tokens(30, 25);
    for (const Recipe& recipe : recipes()) {
        if (!weighs_queries(recipe)) continue;
        auto decaying = config(std::string(recipe.name), 40);
        decaying.options.observe = 9;
        decaying.options.reserve = 12;
        auto alone = decaying;
        const auto alike = sequence(prompt, decaying);
        decaying.options.query_decay = 1e-30;
        alone.options.observe = 1;
        const auto ours = sequence(prompt, decaying), right = sequence(prompt, alone);
        // Products of nine queries at once may be rounded in another way.
        EXPECT_GE(mean_jaccard(engine().positions(ours), engine().positions(right)), 0.99)
            << recipe.name;
        EXPECT_LT(mean_jaccard(engine().positions(ours), engine().positions(alike)), 0.98)
            << recipe.name;
        for (const Token token : next) {
            step(ours, token);
            step(right, token);
        }
        EXPECT_GE(mean_jaccard(engine().positions(ours), engine().positions(right)), 0.99)
            << recipe.name;
        for (const auto id : {alike, ours, right}) engine().release(id);
    }
}

TEST_F(Sequences, BytesAreThePlansExactly) {
    const std::vector<Token> prompt = random_tokens(230, 31);
    const auto heads = static_cast<double>(shape().layers * shape().kv_heads);
    for (const Recipe& recipe : recipes()) {
        for (const double some : {17.0, 33.3, 64.0, 100.5}) {
            const double rows = some + static_cast<double>(recipe.protect);
            const std::string name(recipe.name);
            const SequenceId id = sequence(prompt, config(name, rows));
            const SequenceInfo info = engine().info(id);
            const std::int64_t held = rows_in(engine().positions(id));
            EXPECT_EQ(info.method, name);
            EXPECT_EQ(info.prompt_tokens, 230);
            EXPECT_EQ(info.tokens, 230);
            EXPECT_EQ(info.plan_bytes, held * row_bytes()) << name << " " << rows;
            EXPECT_EQ(info.held_bytes, held * row_bytes());
            EXPECT_GE(info.allocated_bytes, info.held_bytes);
            EXPECT_EQ(info.full_bytes, 230 * shape().layers * shape().kv_heads * row_bytes());
            EXPECT_DOUBLE_EQ(info.rows_kept_mean, static_cast<double>(held) / heads);
            const bool full = recipe.allocate == AllocateStep::all;
            EXPECT_EQ(info.runs_as_full, full);
            if (full) {
                EXPECT_EQ(info.plan_bytes, info.full_bytes);
            } else {
                EXPECT_EQ(held, std::llround(rows * heads)) << name << " " << rows;
                EXPECT_DOUBLE_EQ(info.rows_budget, rows);
            }
            engine().release(id);
        }
    }
}

TEST_F(Sequences, BudgetsInBytesAndSharesAreKeptToo) {
    const std::vector<Token> prompt = random_tokens(200, 32);
    const std::int64_t heads = shape().layers * shape().kv_heads;
    MethodConfig bytes = config("snapkv", 0);
    bytes.budget = {Budget::Unit::bytes, static_cast<double>(50 * heads * row_bytes() + 7)};
    const SequenceId by_bytes = sequence(prompt, bytes);
    EXPECT_EQ(engine().info(by_bytes).plan_bytes, 50 * heads * row_bytes());
    MethodConfig share = config("headkv-r2", 0);
    share.budget = {Budget::Unit::share, 0.25};
    const SequenceId by_share = sequence(prompt, share);
    EXPECT_EQ(engine().info(by_share).plan_bytes, 50 * heads * row_bytes());
}

TEST_F(Sequences, ABudgetAboveThePromptRunsAsFull) {
    const std::vector<Token> prompt = random_tokens(40, 33);
    for (const char* name : {"streaming-llm", "snapkv", "pyramidkv", "ada-kv", "headkv-r2"}) {
        const SequenceId id = sequence(prompt, config(name, 500));
        EXPECT_TRUE(engine().info(id).runs_as_full) << name;
        EXPECT_EQ(engine().info(id).plan_bytes, engine().info(id).full_bytes) << name;
    }
}

// rows never exceed bound + reserve; they are sorted, distinct and include the newest one
void expect_bounded(const Engine& engine, SequenceId id, const Method& method,
                    const KeepLists& after_prefill) {
    const KeepLists held = engine.positions(id);
    const auto newest = static_cast<std::int32_t>(engine.info(id).tokens - 1);
    for (std::size_t layer = 0; layer < held.size(); ++layer) {
        for (std::size_t head = 0; head < held[layer].size(); ++head) {
            const std::vector<std::int32_t>& rows = held[layer][head];
            const std::int64_t bound =
                method.bound(static_cast<std::int64_t>(layer), static_cast<std::int64_t>(head),
                             static_cast<std::int64_t>(after_prefill[layer][head].size()));
            ASSERT_LE(static_cast<std::int64_t>(rows.size()),
                      bound + method.config().options.reserve)
                << method.recipe().name << " layer " << layer << " head " << head;
            ASSERT_TRUE(std::is_sorted(rows.begin(), rows.end()));
            ASSERT_EQ(std::adjacent_find(rows.begin(), rows.end()), rows.end());
            ASSERT_GE(rows.front(), 0);
            ASSERT_EQ(rows.back(), newest);
        }
    }
}

TEST_F(Sequences, ALongAnswerStaysBounded) {
    const std::vector<Token> prompt = random_tokens(150, 41);
    for (const char* name :
         {"streaming-llm", "snapkv", "pyramidkv", "ada-kv", "headkv-r", "headkv-r2"}) {
        MethodConfig bounded = config(name, 30);
        bounded.options.reserve = 24;
        const auto method = Method::create(bounded, shape(), 150, row_bytes());
        ASSERT_TRUE(method) << method.error().message;
        const SequenceId id = sequence(prompt, bounded);
        const KeepLists kept = engine().positions(id);
        std::int64_t most_bytes = 0;
        std::int64_t count = 0;
        for (const Token token : random_tokens(400, 42)) {
            for (const float value : step(id, token)) ASSERT_TRUE(std::isfinite(value));
            most_bytes = std::max(most_bytes, engine().info(id).held_bytes);
            if (++count % 7 == 0) expect_bounded(engine(), id, *method, kept);
            if (HasFatalFailure()) return;
        }
        EXPECT_EQ(engine().info(id).tokens, 550);
        const std::int64_t heads = shape().layers * shape().kv_heads;
        EXPECT_LE(most_bytes, (30 + 24) * heads * row_bytes()) << name;
        // The window of the newest tokens is still there in every head.
        if (std::string_view(name) != "streaming-llm") {
            for (const auto& layer : engine().positions(id)) {
                for (const auto& head : layer) {
                    ASSERT_GE(head.size(), 16U);
                    EXPECT_EQ(head[head.size() - 16], 550 - 16) << name;
                }
            }
        }
        engine().release(id);
    }
}

TEST_F(Sequences, ALongExtensionStaysBoundedToo) {
    MethodConfig bounded = config("snapkv", 30);
    bounded.options.reserve = 24;
    const auto method = Method::create(bounded, shape(), 150, row_bytes());
    ASSERT_TRUE(method);
    const SequenceId id = sequence(random_tokens(150, 43), bounded);
    const KeepLists kept = engine().positions(id);
    ASSERT_TRUE(engine().extend(id, random_tokens(333, 44)));
    EXPECT_EQ(engine().info(id).tokens, 483);
    expect_bounded(engine(), id, *method, kept);
}

TEST_F(Sequences, StreamingKeepsSinksAndTheNewestRowsInLongAnswers) {
    MethodConfig streaming = config("streaming-llm", 20);
    streaming.options.reserve = 8;
    const SequenceId id = sequence(random_tokens(100, 45), streaming);
    for (const Token token : random_tokens(150, 46)) step(id, token);
    for (const auto& layer : engine().positions(id)) {
        for (const auto& head : layer) {
            EXPECT_EQ((std::vector<std::int32_t>{head.begin(), head.begin() + 4}),
                      (std::vector<std::int32_t>{0, 1, 2, 3}));
            const auto recent = static_cast<std::int32_t>(head.size() - 4);
            EXPECT_EQ(head[4], 250 - recent);  // without a gap up to the newest
        }
    }
}

TEST_F(Sequences, TheFullCacheGrowsWithoutLosingRows) {
    const std::vector<Token> tokens = random_tokens(700, 47);
    const MethodConfig full = config("full", 0);
    const auto start = engine().prefill(std::span(tokens).first(10), {&full, 1},
                                        {.progress = {}, .expected_new_tokens = 5});
    ASSERT_TRUE(start) << start.error().message;
    const SequenceId id = start->sequences.at(0);
    std::vector<float> last;
    for (const Token token : std::span(tokens).subspan(10)) last = step(id, token);
    for (const auto& layer : engine().positions(id)) {
        for (const auto& head : layer) EXPECT_EQ(head.size(), 700U);
    }
    EXPECT_LT(logit_error(last, pair_->reference->run(tokens).logits), 0.01);
}

TEST_F(Sequences, ACopyIsIndependent) {
    const SequenceId original = sequence(random_tokens(120, 51), config("headkv-r2", 30));
    step(original, 9);
    const auto copy = engine().copy(original);
    ASSERT_TRUE(copy) << copy.error().message;
    EXPECT_NE(*copy, original);
    EXPECT_EQ(engine().positions(*copy), engine().positions(original));
    EXPECT_EQ(engine().info(*copy).held_bytes, engine().info(original).held_bytes);
    const auto again = engine().copy(original);
    ASSERT_TRUE(again);
    for (const Token token : random_tokens(40, 52)) step(*copy, token);  // goes its own way
    const std::vector<Token> next = random_tokens(20, 53);
    std::vector<std::vector<float>> right;
    right.reserve(next.size());
    for (const Token token : next) right.push_back(step(original, token));
    engine().release(original);
    for (std::size_t i = 0; i < next.size(); ++i) {
        EXPECT_LT(logit_error(step(*again, next[i]), right[i]), kSame);
    }
    EXPECT_FALSE(engine().copy(original));
}

TEST_F(Sequences, AReleasedSequenceIsGoneAndOthersAreNot) {
    const SequenceId gone = sequence(random_tokens(60, 61), config("full", 0));
    const SequenceId stays = sequence(random_tokens(60, 62), config("full", 0));
    engine().release(gone);
    engine().release(gone);
    engine().release(123456789);
    const DecodeInput input{.sequence = gone, .token = 1};
    const auto refused = engine().decode({&input, 1});
    ASSERT_FALSE(refused);
    EXPECT_FALSE(refused.error().message.empty());
    EXPECT_FALSE(engine().extend(gone, random_tokens(3, 1)));
    EXPECT_FALSE(step(stays, 1).empty());
}

TEST_F(Sequences, ARefusedStepChangesNothing) {
    const SequenceId id = sequence(random_tokens(60, 63), config("snapkv", 24));
    const KeepLists before = engine().positions(id);
    const auto outside = static_cast<Token>(tiny_vocabulary());
    for (const std::vector<DecodeInput>& inputs :
         {std::vector<DecodeInput>{{id, 3}, {987654, 3}}, std::vector<DecodeInput>{{id, outside}},
          std::vector<DecodeInput>{{id, 3}, {id, -1}}}) {
        EXPECT_FALSE(engine().decode(inputs));
        EXPECT_EQ(engine().positions(id), before);
        EXPECT_EQ(engine().info(id).tokens, 60);
    }
}

TEST_F(Sequences, RefusesWhatCannotBeRead) {
    const MethodConfig full = config("full", 0);
    const auto refuse = [&](std::span<const Token> prompt, std::span<const MethodConfig> configs,
                            const std::string& named) {
        const auto result = engine().prefill(prompt, configs);
        ASSERT_FALSE(result);
        EXPECT_EQ(result.error().kind, ErrorKind::bad_input);
        EXPECT_NE(result.error().message.find(named), std::string::npos) << result.error().message;
    };
    const std::vector<Token> good = random_tokens(30, 71);
    refuse({}, {&full, 1}, "empty");
    std::vector<Token> outside = good;
    outside[7] = static_cast<Token>(tiny_vocabulary());
    refuse(outside, {&full, 1}, std::to_string(tiny_vocabulary()));
    outside[7] = -1;
    refuse(outside, {&full, 1}, "-1");
    refuse(random_tokens(2048 + 17, 1), {&full, 1}, "17");  // says by how much
    const MethodConfig below_window = config("snapkv", 5);
    refuse(good, {&below_window, 1}, "window");
    // One bad configuration among good ones: nothing is left behind, the others still work.
    const std::vector<MethodConfig> mixed = {full, config("snapkv", 20), config("snapkw", 20)};
    refuse(good, mixed, "snapkv");
    const auto outside_text = engine().log_probabilities(outside);
    EXPECT_FALSE(outside_text);
    EXPECT_FALSE(step(sequence(good, full), 1).empty());
}

TEST_F(Sequences, TheWholeContextCanBeRead) {
    const std::vector<Token> tokens = random_tokens(2048, 72);
    const MethodConfig config = Sequences::config("snapkv", 40);
    const auto result = engine().prefill(tokens, {&config, 1});
    ASSERT_TRUE(result) << result.error().message;
    EXPECT_LT(logit_error(result->logits, pair_->reference->run(tokens).logits), 0.01);
}

TEST_F(Sequences, ProgressCountsUpAndCanStopThePrefill) {
    const std::vector<Token> prompt = random_tokens(300, 81);
    const MethodConfig full = config("full", 0);
    std::int64_t last = 0, total = 0;
    const auto counted =
        engine().prefill(prompt, {&full, 1}, {.progress = [&](std::int64_t done, std::int64_t all) {
                             EXPECT_GE(done, last);
                             last = done;
                             total = all;
                             return true;
                         }});
    ASSERT_TRUE(counted);
    EXPECT_GT(total, 0);
    EXPECT_EQ(last, total);
    std::int64_t calls = 0;
    const auto stopped = engine().prefill(
        prompt, {&full, 1}, {.progress = [&](std::int64_t, std::int64_t) { return ++calls < 2; }});
    ASSERT_FALSE(stopped);
    EXPECT_EQ(stopped.error().kind, ErrorKind::interrupted);
    EXPECT_FALSE(step(sequence(prompt, full), 1).empty());
}

TEST_F(Sequences, ThePrefillIsTheSameForEveryChunkSize) {
    const std::vector<Token> prompt = random_tokens(301, 91);
    const MethodConfig snapkv = config("snapkv", 32);
    const SequenceId expected = sequence(prompt, snapkv);
    const std::vector<float> logits = step(expected, 1);
    for (const std::int64_t chunk : {1, 17, 300, 301, 4096}) {
        const auto other = make_engine(pair_->model, chunk);
        ASSERT_TRUE(other);
        const auto result = other->prefill(prompt, {&snapkv, 1});
        ASSERT_TRUE(result) << result.error().message;
        const DecodeInput input{.sequence = result->sequences.at(0), .token = 1};
        ASSERT_TRUE(other->decode({&input, 1}));
        EXPECT_GE(mean_jaccard(other->positions(input.sequence), engine().positions(expected)),
                  0.99)
            << chunk;
        EXPECT_LT(logit_error(other->logits(0), logits), 0.01) << chunk;
    }
}

TEST_F(Sequences, TwoRunsAreTheSameToTheBit) {
    const std::vector<Token> prompt = random_tokens(222, 95);
    const MethodConfig ada = config("ada-kv", 40);
    const auto first = engine().prefill(prompt, {&ada, 1});
    const auto second = engine().prefill(prompt, {&ada, 1});
    ASSERT_TRUE(first && second);
    EXPECT_EQ(first->logits, second->logits);
    EXPECT_EQ(engine().positions(first->sequences[0]), engine().positions(second->sequences[0]));
    EXPECT_EQ(step(first->sequences[0], 4), step(second->sequences[0], 4));
}

}  // namespace
}  // namespace headkv::test
