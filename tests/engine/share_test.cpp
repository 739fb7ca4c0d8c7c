// Layers that read the rows of earlier ones, against naive float32.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

class Share : public testing::Test {
protected:
    static void SetUpTestSuite() {
        TinyModel deep;
        deep.layers = 5;
        pair_ = new TinyPair(deep);
        ASSERT_TRUE(pair_->engine);
    }
    static void TearDownTestSuite() {
        delete pair_;
        pair_ = nullptr;
    }
    static Engine& engine() { return *pair_->engine; }
    static HeadShape shape() { return pair_->model->info().shape; }
    static std::int64_t row_bytes() { return pair_->model->info().row_bytes; }
    static MethodConfig config(const std::string& name, double rows,
                               std::vector<std::int64_t> owner = {0, 1, 0, 3, 1}) {
        auto made = method_config(name, rows, shape());
        made.share = nullptr;
        if (owner.empty()) return made;
        LayerMap map;
        map.shape = shape();
        map.owner = std::move(owner);
        made.share = std::make_shared<const LayerMap>(std::move(map));
        return made;
    }
    static SequenceId sequence(std::span<const Token> prompt, const MethodConfig& config) {
        auto result = engine().prefill(prompt, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? result->sequences.at(0) : -1;
    }
    static std::vector<float> step(SequenceId id, Token token) {
        return test::step(engine(), id, token);
    }
    static TinyPair* pair_;
};
TinyPair* Share::pair_ = nullptr;

TEST_F(Share, ReadsAndAnswersAsANaiveForwardPass) {
    const auto prompt = random_tokens(150, 1);
    for (const auto& owner : std::vector<std::vector<std::int64_t>>{
             {0, 0, 0, 0, 0}, {0, 1, 0, 3, 1}, {0, 1, 1, 3, 3}, {0, 1, 2, 3, 0}}) {
        const auto run = pair_->reference->run(prompt, {.owner = owner});
        const auto asked = config("full", 0, owner);
        const auto result = engine().prefill(prompt, {&asked, 1}).value();
        EXPECT_LT(logit_error(result.logits, run.logits), 0.01);
        KeepLists all(5, std::vector<std::vector<std::int32_t>>(at(shape().kv_heads)));
        for (std::size_t layer = 0; layer < 5; ++layer) {
            if (at(owner[layer]) != layer) continue;
            for (auto& head : all[layer]) {
                for (std::int32_t i = 0; i < 150; ++i) head.push_back(i);
            }
        }
        EXPECT_EQ(engine().positions(result.sequences[0]), all);
        auto cache = pair_->reference->cache(run, all);
        cache.owner = owner;
        for (const Token token : random_tokens(5, 2)) {
            EXPECT_LT(logit_error(step(result.sequences[0], token),
                                  pair_->reference->decode(cache, token)),
                      0.01);
        }
        engine().release(result.sequences[0]);
    }
}

class ShareBehind : public Share, public testing::WithParamInterface<std::int64_t> {};
INSTANTIATE_TEST_SUITE_P(SkipTail, ShareBehind, testing::Values(0, 7));

// An owner's rows are those that any of its readers looks at most.
TEST_P(ShareBehind, AnOwnersRowsAreChosenForAllWhoReadThem) {
    const auto skip = GetParam();
    const auto prompt = random_tokens(200, 3);
    const std::vector<std::int64_t> owner = {0, 1, 0, 3, 1};
    const auto run = pair_->reference->run(prompt, {.queries = 16 + skip, .owner = owner});
    auto asked = config("kvsharer", 30, owner);
    asked.options.kernel = 1;
    asked.options.skip_tail = skip;
    const auto id = sequence(prompt, asked);
    const auto ours = engine().positions(id);
    std::size_t same = 0, alone = 0, all = 0;
    for (const std::int64_t layer : {0, 1, 3}) {
        for (std::int64_t head = 0; head < shape().kv_heads; ++head) {
            std::vector<double> joined(184, 0.0), own(184, 0.0);
            std::vector<std::vector<std::vector<double>>> readers(5);  // [layer][query][position]
            for (std::int64_t reader = layer; reader < 5; ++reader) {
                if (owner[at(reader)] != layer) continue;
                // The larger of the readers' means, query head by query head.
                std::vector<std::vector<double>> of_query(at(shape().group()),
                                                          std::vector<double>(184, 0.0));
                for (std::int64_t g = 0; g < shape().group(); ++g) {
                    for (std::int64_t position = 184 - skip; position < 200 - skip; ++position) {
                        const auto weights = pair_->reference->attention(
                            run, reader, head * shape().group() + g, position);
                        for (std::size_t i = 0; i < std::min<std::size_t>(184, weights.size());
                             ++i) {
                            of_query[at(g)][i] += static_cast<double>(weights[i]);
                        }
                    }
                }
                readers[at(reader)] = of_query;
            }
            for (std::size_t i = 0; i < 184; ++i) {
                for (std::int64_t g = 0; g < shape().group(); ++g) {
                    double most = 0;
                    for (std::int64_t reader = layer; reader < 5; ++reader) {
                        if (owner[at(reader)] != layer) continue;
                        most = std::max(most, readers[at(reader)][at(g)][i]);
                    }
                    joined[i] += most;
                    own[i] += readers[at(layer)][at(g)][i];
                }
            }
            // 30 rows a head of five layers are 50 of three: 34 and the window.
            const auto best = [](const std::vector<double>& values) {
                std::vector<std::int32_t> order(184);
                for (std::int32_t i = 0; i < 184; ++i) order[at(i)] = i;
                std::stable_sort(order.begin(), order.end(),
                                 [&](auto a, auto b) { return values[at(a)] > values[at(b)]; });
                order.resize(34);
                std::sort(order.begin(), order.end());
                return order;
            };
            const auto& kept = ours[at(layer)][at(head)];
            ASSERT_EQ(kept.size(), 50U);
            const auto count = [&](const std::vector<std::int32_t>& right) {
                std::vector<std::int32_t> both;
                std::set_intersection(kept.begin(), kept.end(), right.begin(), right.end(),
                                      std::back_inserter(both));
                return both.size();
            };
            same += count(best(joined));
            alone += count(best(own));
            all += 34;
        }
    }
    EXPECT_GE(static_cast<double>(same), 0.97 * static_cast<double>(all));
    EXPECT_LT(static_cast<double>(alone), 0.95 * static_cast<double>(all));
    engine().release(id);
}

TEST_F(Share, BytesAreTheBudgetsWhateverTheMethodAndTheAnswer) {
    const auto prompt = random_tokens(220, 4);
    const auto heads = shape().layers * shape().kv_heads;
    for (const char* name : {"kvsharer", "snapkv", "ada-kv", "headkv-r2", "kv-compress", "h2o",
                             "pyramidkv", "streaming-llm", "keydiff"}) {
        auto asked = config(name, 40);
        asked.options.reserve = 20;
        const auto id = sequence(prompt, asked);
        EXPECT_EQ(engine().info(id).plan_bytes, 40 * heads * row_bytes()) << name;
        EXPECT_EQ(engine().info(id).held_bytes, 40 * heads * row_bytes()) << name;
        std::int64_t most = 0;
        for (const Token token : random_tokens(70, 5)) {
            for (const float value : step(id, token)) ASSERT_TRUE(std::isfinite(value));
            most = std::max(most, engine().info(id).held_bytes);
        }
        // The reserve is of the three layers that own rows.
        EXPECT_LE(most, (40 * heads + 20 * 3 * shape().kv_heads) * row_bytes()) << name;
        const auto held = engine().positions(id);
        for (std::size_t head = 0; head < held[2].size(); ++head) {
            EXPECT_TRUE(held[2][head].empty());
            EXPECT_TRUE(held[4][head].empty());
            EXPECT_EQ(held[0][head].back(), 289);
        }
        engine().release(id);
    }
}

TEST_F(Share, MapsAreReadApartAndAnsweredTogether) {
    const auto prompt = random_tokens(130, 6);
    const std::vector<MethodConfig> configs = {config("full", 0, {}), config("kvsharer", 40),
                                               config("snapkv", 40, {}), config("full", 0),
                                               config("kvsharer", 40, {0, 0, 2, 3, 4})};
    const auto together = engine().prefill(prompt, configs).value();
    std::vector<SequenceId> alone;
    for (std::size_t i = 0; i < configs.size(); ++i) {
        const auto one = engine().prefill(prompt, {&configs[i], 1}).value();
        EXPECT_EQ(together.logits_of(i), one.logits) << i;
        alone.push_back(one.sequences[0]);
        EXPECT_EQ(engine().positions(alone[i]), engine().positions(together.sequences[i])) << i;
    }
    auto job = engine().start_prefill(prompt, configs).value();
    for (bool done = false; !done;) done = job.step().value();
    EXPECT_EQ(job.done(), job.total());
    const auto in_steps = job.finish().value();
    EXPECT_EQ(in_steps.readings, together.readings);
    for (std::size_t i = 0; i < alone.size(); ++i) {
        EXPECT_EQ(engine().positions(in_steps.sequences[i]),
                  engine().positions(together.sequences[i]));
    }
    for (const auto id : in_steps.sequences) engine().release(id);
    EXPECT_NE(together.logits_of(0), together.logits_of(1));
    EXPECT_EQ(together.logits_of(0), together.logits_of(2));
    EXPECT_EQ(together.logits_of(1), together.logits_of(3));
    for (const Token token : random_tokens(6, 7)) {
        std::vector<DecodeInput> inputs;
        for (const auto id : together.sequences) inputs.push_back({.sequence = id, .token = token});
        ASSERT_TRUE(engine().decode(inputs));
        std::vector<std::vector<float>> logits;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            logits.emplace_back(engine().logits(i).begin(), engine().logits(i).end());
        }
        for (std::size_t i = 0; i < alone.size(); ++i) {
            EXPECT_LT(logit_error(logits[i], step(alone[i], token)), 1e-3) << i;
        }
    }
    for (const auto id : alone) engine().release(id);
    for (const auto id : together.sequences) engine().release(id);
}

TEST_F(Share, CopiesAndTurnsGoOnAlike) {
    const auto id = sequence(random_tokens(130, 8), config("kvsharer", 40));
    const auto other = engine().copy(id).value();
    const auto turn = random_tokens(90, 9);
    EXPECT_EQ(engine().extend(id, turn).value(), engine().extend(other, turn).value());
    EXPECT_EQ(engine().positions(id), engine().positions(other));
    EXPECT_EQ(engine().info(id).held_bytes, engine().info(other).held_bytes);
    engine().release(id);
    engine().release(other);
}

TEST_F(Share, StatesAreTheModelsOwn) {
    const auto text = random_tokens(64, 10);
    const auto run = pair_->reference->run(text);
    const auto states = engine().states(text).value();
    const auto near = [](const std::vector<float>& ours, std::size_t first,
                         const std::vector<float>& right) {
        ASSERT_LE(first + right.size(), ours.size());
        for (std::size_t i = 0; i < right.size(); ++i) {
            ASSERT_NEAR(ours[first + i], right[i], 0.02) << i;
        }
    };
    for (std::size_t layer = 0; layer < 5; ++layer) {
        near(states.keys, layer * run.layers[layer].keys.size(), run.layers[layer].keys);
        near(states.values, layer * run.layers[layer].values.size(), run.layers[layer].values);
    }
    EXPECT_EQ(states.final.size(), 64U * 64);
    const auto asked = config("full", 0);
    EXPECT_NE(engine().states(text, asked.share).value().final, states.final);
    EXPECT_EQ(engine().states(text).value().final, states.final);
}

TEST_F(Share, WhatCannotShareIsRefused) {
    const auto prompt = random_tokens(100, 11);
    const auto refusal = [&](const MethodConfig& asked) {
        const auto refused = engine().prefill(prompt, {&asked, 1});
        if (refused) return std::string("accepted");
        EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
        return refused.error().message;
    };
    EXPECT_NE(refusal(config("kvsharer", 30, {})).find("--share"), std::string::npos);
    EXPECT_NE(refusal(config("criticalkv", 30)).find("leave --share out"), std::string::npos);
    EXPECT_NE(refusal(config("kvzip", 30)).find("leave --share out"), std::string::npos);
    EXPECT_NE(refusal(config("clusterkv", 30)).find("--recall"), std::string::npos);
    auto merging = config("snapkv", 30);
    merging.options.merge = MergeRows{0.5, true};
    EXPECT_NE(refusal(merging).find("--merge 0"), std::string::npos);
    EXPECT_NE(refusal(config("ems", 30)).find("--merge 0"), std::string::npos);
    auto turned = config("streaming-llm", 30);
    turned.options.in_cache_positions = true;
    EXPECT_NE(refusal(turned).find("--positions text"), std::string::npos);
    auto marked = config("snapkv", 30);
    marked.keep = {{40, 44}};
    EXPECT_NE(refusal(marked).find("marked parts"), std::string::npos);
    auto recalled = config("snapkv", 30);
    recalled.recall = StoreStep::f16;
    EXPECT_NE(refusal(recalled).find("--recall"), std::string::npos);
    EXPECT_NE(refusal(config("snapkv", 30, {0, 1, 0, 3})).find("another model"), std::string::npos);
    EXPECT_NE(refusal(config("snapkv", 30, {0, 2, 2, 3, 4})).find("earlier"), std::string::npos);
    EXPECT_NE(refusal(config("snapkv", 30, {0, 0, 1, 3, 4})).find("owns none"), std::string::npos);
    auto other = Engine::create(pair_->model, {.stock_operations = true}).value();
    const auto asked = config("kvsharer", 30);
    EXPECT_NE(other->prefill(prompt, {&asked, 1}).error().message.find("--device cpu"),
              std::string::npos);
    EXPECT_FALSE(other->check(prompt, asked));
}

}  // namespace
}  // namespace headkv::test
