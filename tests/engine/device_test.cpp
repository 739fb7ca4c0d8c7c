// The engine for devices, which computes with ggml's own operations alone, beside the engine of our
// own kernels. Both run on the CPU here; tools/gpu-check compares them on a machine with a GPU.
#include <algorithm>
#include <cstdlib>
#include <set>

#include "engine/compute.h"
#include "engine/device_engine.h"
#include "engine/fixture.h"

namespace headkv::test {
namespace {

// Of a method and whether it is told a layout in blocks and groups, or none, which is one call a
// layer where a cache has one slot.
class Device : public testing::TestWithParam<std::pair<const char*, bool>> {
protected:
    static TinyModel several_heads() {
        TinyModel tiny;
        tiny.embedding = 128;
        tiny.query_heads = 8;
        tiny.kv_heads = 4;
        tiny.head_dim = 64;
        return tiny;
    }
    // HEADKV_TEST_DEVICE names the other side: "cpu" unless given, "cuda" in tools/gpu-check.
    Device() : pair(several_heads(), 256) {
        const char* name = std::getenv("HEADKV_TEST_DEVICE");
        // Joined as on devices with memory of their own; stages_test has matrices that lie apart.
        auto model =
            Model::load(pair.folder / "tiny.gguf",
                        {.device = name == nullptr ? "cpu" : name, .threads = 2, .join = true});
        EXPECT_TRUE(model) << (model ? "" : model.error().message);
        if (model) there = *model;
        device = other(1);
    }

    std::unique_ptr<Engine> other(std::int64_t slots) const {
        auto engine =
            Engine::create(there, {.chunk = 256, .slots = slots, .stock_operations = true});
        EXPECT_TRUE(engine);
        return engine ? std::move(*engine) : nullptr;
    }
    static std::string method() { return GetParam().first; }
    static bool grouped() { return GetParam().second; }
    // In blocks of 16 rows and two groups a layer, so that a short prompt has all that a long has.
    MethodConfig config(double rows = 48) const {
        auto config = method_config(method(), rows, pair.model->info().shape);
        if (grouped()) config.layout = {16, 2};
        return config;
    }
    // A GPU multiplies f32 in fewer bits than a CPU and sums in another order in every batch.
    static double tolerance() { return std::getenv("HEADKV_TEST_DEVICE") == nullptr ? 1e-3 : 2e-2; }
    // All steps of one engine before those of another: its threads stay awake for a while and would
    // be in the other's way.
    static std::vector<std::vector<float>> steps(Engine& engine, SequenceId sequence,
                                                 std::span<const Token> tokens) {
        std::vector<std::vector<float>> logits;
        for (const Token token : tokens) logits.push_back(step(engine, sequence, token));
        return logits;
    }
    static PrefillResult read(Engine& engine, std::span<const Token> prompt,
                              const MethodConfig& config) {
        auto result = engine.prefill(prompt, {&config, 1});
        EXPECT_TRUE(result) << (result ? "" : result.error().message);
        return result ? std::move(*result) : PrefillResult();
    }

    const HeadShape& shape() const { return pair.model->info().shape; }

    TinyPair pair;
    std::shared_ptr<const Model> there;
    std::unique_ptr<Engine> device;
};

// Share of rows held by both, over all heads.
double overlap(const std::vector<std::vector<std::vector<std::int32_t>>>& a,
               const std::vector<std::vector<std::vector<std::int32_t>>>& b) {
    std::size_t both = 0, all = 0;
    for (std::size_t layer = 0; layer < a.size(); ++layer) {
        for (std::size_t head = 0; head < a[layer].size(); ++head) {
            const std::set<std::int32_t> rows(a[layer][head].begin(), a[layer][head].end());
            for (const auto row : b[layer][head]) both += rows.count(row);
            all += std::max(rows.size(), b[layer][head].size());
        }
    }
    return static_cast<double>(both) / static_cast<double>(all);
}

TEST_P(Device, KeepsAndSaysWhatTheCpuDoes) {
    for (const std::int64_t length : {9, 300, 700}) {
        const auto prompt = random_tokens(length, 21);
        const auto ours = read(*device, prompt, config());
        const auto right = read(*pair.engine, prompt, config());
        EXPECT_LT(logit_error(ours.logits, right.logits), 0.01) << length;
        const auto mine = device->positions(ours.sequences.at(0));
        const auto theirs = pair.engine->positions(right.sequences.at(0));
        expect_same_sizes(mine, theirs);
        const double same = overlap(mine, theirs);
        EXPECT_GT(same, tolerance() < 0.01 ? 0.99 : 0.97) << length;
        EXPECT_EQ(device->info(ours.sequences[0]).plan_bytes,
                  pair.engine->info(right.sequences[0]).plan_bytes);
        // A row that turned in a near tie is another cache.
        const auto tokens = random_tokens(same == 1 ? 12 : 0, 22);
        const auto said = steps(*device, ours.sequences[0], tokens);
        const auto wanted = steps(*pair.engine, right.sequences[0], tokens);
        for (std::size_t i = 0; i < tokens.size(); ++i) {
            EXPECT_LT(logit_error(said[i], wanted[i]), 0.02) << length << ", step " << i;
        }
        device->release(ours.sequences[0]);
        pair.engine->release(right.sequences[0]);
    }
}

TEST_P(Device, LooksFromBeforeTheTailAndKeepsSentencesAsTheCpuDoes) {
    const auto prompt = pair.model->tokenizer().encode(
        "A first line. Then a second one! Does a third come? It does (\"see?\"). Two 1.5 and\n"
        "a last that goes on and on, without end as it were, until it ends. And the question is?");
    auto asked = config();
    asked.options.observe = 12;
    asked.options.skip_tail = 9;
    asked.options.sentences = true;
    const auto ours = read(*device, prompt, asked);
    const auto right = read(*pair.engine, prompt, asked);
    const double same = overlap(device->positions(ours.sequences.at(0)),
                                pair.engine->positions(right.sequences.at(0)));
    EXPECT_GT(same, tolerance() < 0.01 ? 0.99 : 0.97);
}

// In the prompt, and when the reserve is full.
TEST_P(Device, WeighsQueriesAsTheCpuDoes) {
    auto asked = config();
    if (!weighs_queries(**find_recipe(method()))) GTEST_SKIP() << "it does not look at the last";
    asked.options.observe = 12;
    asked.options.reserve = 256 - 48;  // both sides are full together, as below
    const auto prompt = random_tokens(300, 45), tokens = random_tokens(215, 46);
    const auto alike = read(*device, prompt, asked).sequences.at(0);
    asked.options.query_decay = 0.3;
    const auto ours = read(*device, prompt, asked).sequences.at(0);
    const auto right = read(*pair.engine, prompt, asked).sequences.at(0);
    const double same = overlap(device->positions(ours), pair.engine->positions(right));
    EXPECT_GT(same, tolerance() < 0.01 ? 0.99 : 0.97);
    EXPECT_LT(overlap(device->positions(ours), device->positions(alike)), 0.97);
    steps(*device, ours, tokens);
    steps(*device, alike, tokens);
    steps(*pair.engine, right, tokens);
    if (grouped() && method() != "snapkv") return;  // rows are whole blocks there
    const auto held = device->positions(ours);
    EXPECT_GT(overlap(held, pair.engine->positions(right)), same == 1 ? 0.97 : 0.9);
    EXPECT_LT(overlap(held, device->positions(alike)), 0.97);
}

TEST_P(Device, TheSameAloneAndAmongOthers) {
    const auto shared = other(4);
    std::vector<std::vector<Token>> prompts;
    std::vector<SequenceId> together;
    for (const std::uint64_t i : {0U, 1U, 2U, 3U, 4U}) {  // one more than the slots
        prompts.push_back(random_tokens(300, 30 + i));
        together.push_back(read(*shared, prompts.back(), config()).sequences.at(0));
    }
    shared->release(together[1]);  // a hole among the slots
    std::vector<std::vector<float>> last(5);
    for (int round = 0; round < 3; ++round) {
        std::vector<DecodeInput> inputs;
        std::vector<std::size_t> who;
        for (const std::size_t i : {0U, 2U, 3U, 4U}) {
            if (round == 1 && i == 2) continue;  // one waits
            inputs.push_back({together[i], static_cast<Token>(7 + i), true});
            who.push_back(i);
        }
        ASSERT_TRUE(shared->decode(inputs));
        for (std::size_t i = 0; i < who.size(); ++i) {
            last[who[i]].assign(shared->logits(i).begin(), shared->logits(i).end());
        }
    }
    for (const std::size_t which : {0U, 2U, 3U, 4U}) {
        const auto alone = read(*device, prompts[which], config()).sequences.at(0);
        std::vector<float> right;
        for (int i = 0; i < (which == 2 ? 2 : 3); ++i) {
            right = step(*device, alone, static_cast<Token>(7 + which));
        }
        EXPECT_TRUE(shared->positions(together[which]) == device->positions(alone)) << which;
        EXPECT_LT(logit_error(last[which], right), tolerance()) << which;
        device->release(alone);
    }
}

// Sequences of one cache that hold different numbers of rows.
TEST_P(Device, TheSameBesideALongerAnswer) {
    const auto shared = other(2);
    const auto prompt = random_tokens(300, 35);
    const auto longer = read(*shared, random_tokens(300, 36), config()).sequences.at(0);
    const auto late = read(*shared, prompt, config()).sequences.at(0);
    for (const Token token : random_tokens(90, 37)) step(*shared, longer, token);
    const auto alone = read(*device, prompt, config()).sequences.at(0);
    for (const Token token : random_tokens(6, 38)) {
        const std::vector<DecodeInput> inputs{{longer, 5, true}, {late, token, true}};
        ASSERT_TRUE(shared->decode(inputs));
        EXPECT_LT(logit_error(shared->logits(1), step(*device, alone, token)), tolerance());
    }
}

// A prompt below the budget, and more new rows than the device reserved.
TEST_P(Device, GoesOnBeyondItsReserve) {
    const auto prompt = random_tokens(40, 41);
    auto all = config(512);
    all.options.reserve = 1;
    all.options.pyramid_beta = 1;  // as many rows in every layer: no head is cut back
    const auto ours = read(*device, prompt, all).sequences.at(0);
    const auto right =
        read(*pair.engine, prompt, method_config("full", 0, pair.model->info().shape))
            .sequences.at(0);
    const auto tokens = random_tokens(260, 42);
    const auto mine = steps(*device, ours, tokens).back();
    const auto theirs = steps(*pair.engine, right, tokens).back();
    EXPECT_LT(logit_error(mine, theirs), 0.02);
    EXPECT_EQ(device->info(ours).tokens, 300);
}

// On the CPU heads are cut back to what the plan bounds, even if the prompt was below the budget.
TEST_P(Device, TheCpuCutsBackBehindAShortPrompt) {
    const auto id = read(*pair.engine, random_tokens(40, 41), config(100)).sequences.at(0);
    for (const Token token : random_tokens(260, 42)) step(*pair.engine, id, token);
    EXPECT_EQ(pair.engine->info(id).tokens, 300);
    if (method() == "full") return;
    EXPECT_LE(pair.engine->info(id).held_bytes / pair.model->info().row_bytes,
              (100 + config().options.reserve) * shape().layers * shape().kv_heads);
}

// Long answers do not grow: when the reserve is full, the last queries choose what stays.
TEST_P(Device, CutsBackAsTheCpuDoes) {
    auto some = config();
    // Both sides are full together: with 48 rows a whole block, or exactly this reserve.
    some.options.reserve = 256 - 48;
    const auto prompt = random_tokens(300, 43);
    const auto tokens = random_tokens(250, 44);
    const auto ours = read(*device, prompt, some).sequences.at(0);
    const auto right = read(*pair.engine, prompt, some).sequences.at(0);
    const bool even = !grouped() || method() == "snapkv" || method() == "streaming-llm";
    const bool same_start = overlap(device->positions(ours), pair.engine->positions(right)) == 1;
    const auto before = std::span(tokens).first(230);
    const auto mine = steps(*device, ours, before);
    const auto twin = device->copy(ours);
    ASSERT_TRUE(twin);
    const auto theirs = steps(*pair.engine, right, before);
    const auto held = device->positions(ours);
    for (const auto& layer : held) {
        for (const auto& list : layer) {
            EXPECT_TRUE(std::is_sorted(list.begin(), list.end()));
            EXPECT_EQ(std::set<std::int32_t>(list.begin(), list.end()).size(), list.size());
            EXPECT_EQ(list.back(), 529);
            EXPECT_LE(list.size(), method() == "full" ? 530U : 512U);
        }
    }
    if (even) {
        if (method() != "full") {  // which has no plan to stay within
            EXPECT_LT(device->info(ours).held_bytes,
                      256 * device->model().info().row_bytes * shape().layers * shape().kv_heads);
        }
        expect_same_sizes(held, pair.engine->positions(right));
        EXPECT_GT(overlap(held, pair.engine->positions(right)), same_start ? 0.97 : 0.9);
    }
    // What the copy goes on with is its own, whatever was logged before.
    const auto after = std::span(tokens).subspan(230);
    const auto first = steps(*device, ours, after).back();
    EXPECT_LT(logit_error(steps(*device, *twin, after).back(), first), tolerance());
    if (even && same_start && overlap(held, pair.engine->positions(right)) == 1) {
        EXPECT_LT(logit_error(mine.back(), theirs.back()), 0.02);
        EXPECT_LT(logit_error(first, steps(*pair.engine, right, after).back()), 0.02);
    }
}

// The same where heads of one layout are bounded by different plans: a prompt below the budget.
TEST_P(Device, CutsBackBehindAShortPrompt) {
    auto some = config(100);
    some.options.reserve = grouped() ? 1 : 40;  // without blocks each reserve is a cut
    const auto id = read(*device, random_tokens(40, 41), some).sequences.at(0);
    for (const Token token : random_tokens(700, 42)) step(*device, id, token);
    EXPECT_EQ(device->info(id).tokens, 740);
    if (method() == "full") return;
    // No head has more than a block beyond what the plan gives it.
    EXPECT_LE(device->info(id).held_bytes / device->model().info().row_bytes,
              (100 + 256) * shape().layers * shape().kv_heads);
}

// A copy made while queries are logged is cut back as its origin is.
TEST_P(Device, ACopyTakesItsLogAlong) {
    auto some = config();
    some.options.reserve = 1;
    const auto first = read(*device, random_tokens(300, 45), some).sequences.at(0);
    const auto tokens = random_tokens(240, 46);
    // Without a cut: plan rows up to 96 leave room for 160 tokens.
    std::size_t done = 0;
    while (done < tokens.size() && device->info(first).tokens < 300 + 190) {
        step(*device, first, tokens[done++]);
    }
    const auto twin = device->copy(first);
    ASSERT_TRUE(twin);
    const auto rest = std::span(tokens).subspan(done);
    const auto mine = steps(*device, first, rest).back();
    const auto theirs = steps(*device, *twin, rest).back();
    EXPECT_LT(logit_error(mine, theirs), tolerance());
    EXPECT_GT(overlap(device->positions(first), device->positions(*twin)),
              tolerance() < 0.01 ? 0.999 : 0.97);
}

TEST_P(Device, TellsTheAttentionThatTheCpuTells) {
    auto made = Engine::create(
        there, {.chunk = 256, .slots = 2, .keep_queries = true, .stock_operations = true});
    ASSERT_TRUE(made);
    auto& engine = **made;
    const auto prompt = random_tokens(300, 47);
    read(engine, random_tokens(40, 48), config());  // whoever is beside it
    const auto ours = read(engine, prompt, config()).sequences.at(0);
    const auto right = read(*pair.engine, prompt, config()).sequences.at(0);
    EXPECT_TRUE(engine.attention(ours, 0).empty()) << "no query has been decoded";
    if (overlap(engine.positions(ours), pair.engine->positions(right)) < 1) return;
    for (const Token token : random_tokens(3, 49)) {
        step(engine, ours, token);
        step(*pair.engine, right, token);
        for (std::int64_t layer = 0; layer < shape().layers; ++layer) {
            const auto mine = engine.attention(ours, layer);
            const auto theirs = pair.engine->attention(right, layer);
            ASSERT_EQ(mine.size(), theirs.size());
            for (std::size_t head = 0; head < mine.size(); ++head) {
                ASSERT_EQ(mine[head].size(), theirs[head].size()) << layer << " " << head;
                for (std::size_t row = 0; row < mine[head].size(); ++row) {
                    EXPECT_NEAR(mine[head][row], theirs[head][row], 1e-2);
                }
            }
        }
    }
    engine.release(ours);
    EXPECT_TRUE(engine.attention(ours, 0).empty());
}

TEST_P(Device, ACopyGoesItsOwnWay) {
    const auto prompt = random_tokens(300, 51);
    const auto first = read(*device, prompt, config()).sequences.at(0);
    const auto before = step(*device, first, 5);
    const auto twin = device->copy(first);
    ASSERT_TRUE(twin);
    EXPECT_TRUE(device->positions(*twin) == device->positions(first));
    const auto theirs = step(*device, *twin, 9);
    const auto mine = step(*device, first, 9);
    EXPECT_LT(logit_error(theirs, mine), tolerance());
    step(*device, *twin, 11);
    EXPECT_EQ(device->info(first).tokens, 302);
    EXPECT_EQ(device->info(*twin).tokens, 303);
}

TEST_P(Device, QuantisedRowsStayNear) {
    const auto prompt = random_tokens(300, 61);
    auto quantised = config();
    quantised.store = {StoreStep::q8_0, StoreStep::q8_0};
    const auto ours = read(*device, prompt, quantised).sequences.at(0);
    const auto right = read(*device, prompt, config()).sequences.at(0);
    EXPECT_TRUE(device->positions(ours) == device->positions(right));
    for (const Token token : random_tokens(8, 62)) {
        EXPECT_LT(logit_error(step(*device, ours, token), step(*device, right, token)), 0.1);
    }
    const auto twin = device->copy(ours);
    ASSERT_TRUE(twin);
    EXPECT_LT(logit_error(step(*device, *twin, 3), step(*device, ours, 3)), tolerance());
    EXPECT_LT(device->info(ours).plan_bytes, device->info(right).plan_bytes * 17 / 32 + 1);
}

// Keys and values of different types: ggml's CUDA attention takes no such pair as it is.
TEST_P(Device, MixedTypesSayWhatTheCpuDoes) {
    constexpr auto f16 = StoreStep::f16, q8 = StoreStep::q8_0, q4 = StoreStep::q4_0;
    const auto prompt = random_tokens(300, 63);
    const auto tokens = random_tokens(6, 64);
    const auto shared = other(3);
    for (const auto& store : {StoreTypes{q8, q4}, StoreTypes{q4, q8}, StoreTypes{f16, q8},
                              StoreTypes{q8, f16}, StoreTypes{q4, f16}}) {
        SCOPED_TRACE(name_of(store));
        auto mixed = config();
        mixed.store = store;
        const auto ours = read(*shared, prompt, mixed).sequences.at(0);
        const auto beside = read(*shared, random_tokens(300, 65), mixed).sequences.at(0);
        const auto right = read(*pair.engine, prompt, mixed).sequences.at(0);
        EXPECT_EQ(shared->info(ours).plan_bytes, pair.engine->info(right).plan_bytes);
        const auto twin = shared->copy(ours);
        ASSERT_TRUE(twin);
        std::vector<std::vector<float>> said;
        for (const Token token : tokens) {
            const std::vector<DecodeInput> inputs{{ours, token, true}, {beside, 5, true}};
            const auto done = shared->decode(inputs);
            ASSERT_TRUE(done) << done.error().message;
            said.emplace_back(shared->logits(0).begin(), shared->logits(0).end());
        }
        EXPECT_LT(logit_error(steps(*shared, *twin, tokens).back(), said.back()), tolerance());
        // A row that turned in a near tie is another cache.
        if (overlap(shared->positions(*twin), pair.engine->positions(right)) == 1) {
            const auto wanted = steps(*pair.engine, right, tokens);
            for (std::size_t i = 0; i < tokens.size(); ++i) {
                EXPECT_LT(logit_error(said[i], wanted[i]), 0.03) << "step " << i;
            }
        }
        for (const auto id : {ours, beside, *twin}) shared->release(id);
        pair.engine->release(right);
    }
}

// A prompt read in steps of at most so many tokens, another number in every step.
TEST_P(Device, ReadsNoMoreTokensAStepThanAsked) {
    const auto wide = Engine::create(there, {.chunk = 1024, .stock_operations = true});
    ASSERT_TRUE(wide);
    auto& engine = **wide;
    const auto prompt = random_tokens(1300, 66);
    const auto chosen = config();
    auto job = engine.start_prefill(prompt, {&chosen, 1});
    ASSERT_TRUE(job) << job.error().message;
    // Whole blocks of 256 tokens, at least one, at most a chunk; 0: a chunk.
    const std::vector<std::pair<std::int64_t, std::int64_t>> limits{
        {700, 512}, {1, 256}, {300, 256}, {5000, 1024}, {0, 1024}};
    bool done = false;
    for (std::size_t i = 0; !done; ++i) {
        const auto& [most, computed] = limits[i % limits.size()];
        const auto before = job->done();
        const auto left = 1300 - before % 1300;  // of the layer
        const auto step = job->step(most);
        ASSERT_TRUE(step) << step.error().message;
        EXPECT_EQ(job->done() - before, std::min(computed, left)) << "a step of " << most;
        done = *step;
    }
    EXPECT_EQ(job->done(), job->total());
    const auto ours = job->finish();
    ASSERT_TRUE(ours);
    const auto whole = read(engine, prompt, chosen);
    EXPECT_LT(logit_error(ours->logits, whole.logits), tolerance());
    EXPECT_GT(overlap(engine.positions(ours->sequences[0]), engine.positions(whole.sequences[0])),
              tolerance() < 0.01 ? 0.99 : 0.97);
    const auto right = read(*pair.engine, prompt, chosen);
    EXPECT_LT(logit_error(ours->logits, right.logits), 0.01);
}

TEST_P(Device, TellsTheBestTokenWithoutLogits) {
    const auto prompt = random_tokens(100, 71);
    const auto first = read(*device, prompt, config()).sequences.at(0);
    const auto twin = device->copy(first);
    ASSERT_TRUE(twin);
    const auto logits = step(*device, *twin, 4);
    const DecodeInput input{.sequence = first, .token = 4, .want_logits = false};
    ASSERT_TRUE(device->decode({&input, 1}));
    EXPECT_EQ(device->best(0), std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Graphs over all layers are as large as models have layers.
TEST(DeviceLayers, AreCopiedHoweverMany) {
    TinyModel tiny;
    tiny.layers = 12;
    tiny.embedding = 128;
    tiny.query_heads = 8;
    tiny.kv_heads = 4;
    tiny.head_dim = 64;
    const TinyPair pair(tiny, 256);
    const char* name = std::getenv("HEADKV_TEST_DEVICE");
    const auto model = Model::load(pair.folder / "tiny.gguf",
                                   {.device = name == nullptr ? "cpu" : name, .threads = 2});
    ASSERT_TRUE(model);
    const auto engine =
        Engine::create(*model, {.chunk = 256, .slots = 2, .stock_operations = true});
    ASSERT_TRUE(engine);
    auto config = method_config("headkv-r2", 48, pair.model->info().shape);
    config.layout = {16, 2};
    config.store = {StoreStep::q8_0, StoreStep::q8_0};
    const auto read = (*engine)->prefill(random_tokens(300, 82), {&config, 1});
    ASSERT_TRUE(read);
    const auto first = read->sequences.at(0);
    const auto twin = (*engine)->copy(first);
    ASSERT_TRUE(twin);
    const std::vector<DecodeInput> inputs{{first, 5, true}, {*twin, 5, true}};
    ASSERT_TRUE((*engine)->decode(inputs));
    EXPECT_LT(logit_error((*engine)->logits(0), (*engine)->logits(1)), 1e-3);
}

// A prompt, and one token behind it.
void read_and_step(DeviceEngine& engine, std::span<const Token> prompt,
                   const MethodConfig& config) {
    auto prefill = engine.start_prefill(prompt, {&config, 1}, {}, 16);
    EXPECT_TRUE(prefill);
    for (bool done = false; prefill && !done;) {
        const auto step = (*prefill)->step();
        EXPECT_TRUE(step);
        done = !step || *step;
    }
    SequenceId next = 0;
    const DecodeInput input{.sequence = engine.take(**prefill, next).at(0), .token = 5};
    EXPECT_TRUE(engine.step({&input, 1}, true));
}

// What two groups of heads add to a step, and one call over unequal heads does not.
TEST(DeviceLayers, AreOneAttentionCallHoweverUnequalTheirHeads) {
    TinyModel tiny;
    tiny.embedding = 128;
    tiny.query_heads = 8;
    tiny.kv_heads = 4;
    tiny.head_dim = 64;
    const TinyPair pair(tiny, 256);
    const auto& shape = pair.model->info().shape;
    const auto pipeline = Pipeline::create(*pair.model);
    ASSERT_TRUE(pipeline);
    const auto prompt = random_tokens(300, 83);
    const auto nodes = [&](const std::string& method, const RowLayout& layout) -> std::int64_t {
        DeviceEngine engine(*pipeline, pair.model, {.chunk = 256});
        auto config = method_config(method, 48, shape);
        config.layout = layout;
        read_and_step(engine, prompt, config);
        return engine.step_nodes();
    };
    const auto even = nodes("snapkv", {});
    EXPECT_EQ(nodes("headkv-r2", {}), even);
    // Two gathers, an attention and a join in each of the layers.
    EXPECT_EQ(nodes("headkv-r2", {16, 2}), even + 4 * shape.layers);
}

TEST(DeviceLayers, APromptGivenUpLeavesNoMemoryTaken) {
    const TinyPair pair({}, 256);
    const auto pipeline = Pipeline::create(*pair.model);
    ASSERT_TRUE(pipeline);
    const auto prompt = random_tokens(300, 84);
    const auto config = method_config("snapkv", 48, pair.model->info().shape);
    const auto peak = [&](DeviceEngine& engine) {
        read_and_step(engine, prompt, config);
        return engine.peak_bytes(0);
    };
    DeviceEngine fresh(*pipeline, pair.model, {.chunk = 256});
    DeviceEngine other(*pipeline, pair.model, {.chunk = 256});
    {
        const auto larger = method_config("full", 0, pair.model->info().shape);
        auto given_up = other.start_prefill(prompt, {&larger, 1}, {}, 16);
        ASSERT_TRUE(given_up);
        ASSERT_TRUE((*given_up)->step());
        EXPECT_FALSE(other.idle());
    }
    EXPECT_TRUE(other.idle());
    EXPECT_EQ(peak(other), peak(fresh));
}

INSTANTIATE_TEST_SUITE_P(Methods, Device,
                         testing::Values(std::pair{"full", false}, std::pair{"snapkv", false},
                                         std::pair{"pyramidkv", false}, std::pair{"ada-kv", false},
                                         std::pair{"headkv-r2", false},
                                         std::pair{"streaming-llm", true},
                                         std::pair{"snapkv", true}, std::pair{"ada-kv", true},
                                         std::pair{"headkv-r2", true}),
                         [](const auto& info) {
                             std::string name = info.param.first;
                             std::replace(name.begin(), name.end(), '-', '_');
                             return name + (info.param.second ? "_grouped" : "");
                         });

TEST(DeviceText, LogProbabilitiesAreThoseOfTheCpu) {
    TinyPair pair({}, 256);
    const auto device = Engine::create(pair.model, {.chunk = 256, .stock_operations = true});
    ASSERT_TRUE(device);
    const auto text = random_tokens(300, 81);
    const auto ours = (*device)->log_probabilities(text);
    const auto right = pair.engine->log_probabilities(text);
    ASSERT_TRUE(ours);
    ASSERT_TRUE(right);
    ASSERT_EQ(ours->size(), right->size());
    for (std::size_t i = 0; i < ours->size(); ++i) EXPECT_NEAR((*ours)[i], (*right)[i], 0.02);
}

}  // namespace
}  // namespace headkv::test
