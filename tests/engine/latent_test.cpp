// Models whose layers share latent rows (family clla): against naive float32, and what a tiny one
// that was trained for it recalls: tests/support/clla-recall.gguf, as tools/train-clla writes it.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "engine/fixture.h"

namespace headkv::test {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

const std::vector<std::int64_t> kOwner = {0, 0, 2, 2, 0};

TinyModel latent_model() {
    TinyModel model;
    model.architecture = "clla";
    model.layers = 5;
    model.kv_heads = 1;
    model.head_dim = 64;
    model.rope_dimensions = 32;
    model.latent = 32;
    model.shared_from = kOwner;
    return model;
}

class Latent : public testing::Test {
protected:
    static void SetUpTestSuite() {
        pair_ = new TinyPair(latent_model());
        ASSERT_TRUE(pair_->engine);
    }
    static void TearDownTestSuite() {
        delete pair_;
        pair_ = nullptr;
    }
    static Engine& engine() { return *pair_->engine; }
    static MethodConfig config(const std::string& name, double rows) {
        auto made = method_config(name, rows, pair_->model->info().shape);
        made.share = nullptr;  // the engine has the model's own
        return made;
    }
    static std::vector<float> step(SequenceId id, Token token) {
        return test::step(engine(), id, token);
    }
    static TinyPair* pair_;
};
TinyPair* Latent::pair_ = nullptr;

TEST_F(Latent, ReadsAndAnswersAsANaiveForwardPass) {
    const auto prompt = random_tokens(150, 1);
    const auto run = pair_->reference->run(prompt, {.owner = kOwner});
    const auto asked = config("full", 0);
    const auto result = engine().prefill(prompt, {&asked, 1}).value();
    EXPECT_LT(logit_error(result.logits, run.logits), 0.01);
    KeepLists all(5, std::vector<std::vector<std::int32_t>>(1));
    for (const std::size_t layer : {0U, 2U}) {
        all[layer][0].resize(150);
        std::iota(all[layer][0].begin(), all[layer][0].end(), 0);
    }
    EXPECT_EQ(engine().positions(result.sequences[0]), all);
    auto cache = pair_->reference->cache(run, all);
    cache.owner = kOwner;
    for (const Token token : random_tokens(5, 2)) {
        EXPECT_LT(
            logit_error(step(result.sequences[0], token), pair_->reference->decode(cache, token)),
            0.01);
    }
    engine().release(result.sequences[0]);
}

TEST_F(Latent, SharingIsTheModelsOwn) {
    const auto& info = pair_->model->info();
    ASSERT_TRUE(info.share);
    EXPECT_EQ(info.share->owner, kOwner);
    EXPECT_TRUE(info.share->trained);
    EXPECT_EQ(info.head_dim_k, 64);
    EXPECT_EQ(info.head_dim_v, 32);
    const auto prompt = random_tokens(60, 3);
    auto other = config("full", 0);
    LayerMap map = *info.share;
    map.owner = {0, 1, 2, 2, 0};
    other.share = std::make_shared<const LayerMap>(std::move(map));
    const auto refused = engine().prefill(prompt, {&other, 1});
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("as it was trained"), std::string::npos);
    const auto device = Engine::create(pair_->model, {.stock_operations = true});
    ASSERT_FALSE(device);
    EXPECT_NE(device.error().message.find("--device cpu"), std::string::npos);
}

TEST_F(Latent, BytesAreOfTheLayersThatOwnRowsWhateverTheMethod) {
    const auto prompt = random_tokens(200, 4);
    for (const char* name : {"full", "clla", "snapkv", "kvsharer", "headkv-r2", "ada-kv",
                             "kv-compress", "h2o", "streaming-llm", "keydiff"}) {
        auto asked = config(name, 40);
        asked.options.reserve = 20;
        const bool all = std::string(name) == "full" || std::string(name) == "clla";
        if (std::string(name) == "clla") asked.store = {StoreStep::q4_0, StoreStep::q4_0};
        const auto result = engine().prefill(prompt, {&asked, 1});
        ASSERT_TRUE(result) << result.error().message;
        const auto id = result->sequences[0];
        const auto info = engine().info(id);
        // f16: 64 and 32 values of 2 bytes; q4_0: blocks of 32 in 18 bytes.
        const std::int64_t row = std::string(name) == "clla" ? 3 * 18 : (64 + 32) * 2;
        EXPECT_EQ(info.plan_bytes, (all ? 200 * 2 : 40 * 5) * row) << name;
        EXPECT_EQ(info.full_bytes, 200 * 2 * 192) << name;
        for (const Token token : random_tokens(50, 5)) {
            for (const float value : step(id, token)) ASSERT_TRUE(std::isfinite(value)) << name;
        }
        engine().release(id);
    }
}

TEST_F(Latent, WhatCannotSelectSharedRowsIsRefusedWithoutNamingShare) {
    const auto prompt = random_tokens(100, 6);
    for (const char* name : {"criticalkv", "expected-attention", "kvzip", "clusterkv", "ems"}) {
        const auto asked = config(name, 40);
        const auto refused = engine().prefill(prompt, {&asked, 1});
        ASSERT_FALSE(refused) << name;
        EXPECT_EQ(refused.error().kind, ErrorKind::bad_input);
        EXPECT_EQ(refused.error().message.find("--share"), std::string::npos)
            << refused.error().message;
    }
    EXPECT_FALSE(engine().value_cosines(prompt, {}));
    EXPECT_TRUE(engine().log_probabilities(prompt));
}

TEST(LatentFiles, WrongOnesAreRefused) {
    const auto refusal = [](const TinyModel& model) {
        const TempFolder folder;
        write_tiny_model(model, folder / "tiny.gguf");
        const auto loaded = Model::load(folder / "tiny.gguf", {.device = "cpu"});
        return loaded ? std::string("loaded") : loaded.error().message;
    };
    auto model = latent_model();
    EXPECT_EQ(refusal(model), "loaded");
    model.shared_from = {};  // every layer has its own
    EXPECT_EQ(refusal(model), "loaded");
    model.shared_from = {0, 0, 2, 2};
    EXPECT_NE(refusal(model).find("of 4 layers"), std::string::npos);
    model.shared_from = {0, 0, 1, 2, 0};
    EXPECT_NE(refusal(model).find("owns none"), std::string::npos);
    model.shared_from = {0, 2, 2, 2, 0};
    EXPECT_NE(refusal(model).find("earlier"), std::string::npos);
    model = latent_model();
    model.rope_dimensions = 48;
    EXPECT_NE(refusal(model).find("no room"), std::string::npos);
    model = latent_model();
    model.kv_heads = 2;
    EXPECT_NE(refusal(model).find("KV heads"), std::string::npos);
}

// --- the trained model

struct Recall {
    std::string prompt;
    char answer;
};

// Pairs of a letter and a capital, a token each, then one letter: "cAaLbK;a" -> 'L'. Drawn by
// another generator than the training's: of 12 letters and 12 capitals each, texts of 12 pairs are
// new.
std::vector<Recall> recalls(std::size_t count, std::int64_t pairs, std::uint64_t seed) {
    Random random(seed);
    std::vector<Recall> result;
    while (result.size() < count) {
        std::string letters = "abcdefghijkl", values;
        std::string prompt;
        for (std::int64_t i = 0; i < pairs; ++i) {
            std::swap(letters[at(i)], letters[at(i + random.below(12 - i))]);
            values += static_cast<char>('A' + random.below(12));
            prompt += letters[at(i)];
            prompt += values.back();
        }
        const auto asked = at(random.below(pairs));
        result.push_back({prompt + ";" + letters[asked], values[asked]});
    }
    return result;
}

class LatentTrained : public testing::Test {
protected:
    void SetUp() override {
        const auto file =
            std::filesystem::path(HEADKV_SOURCE_DIR) / "tests" / "support" / "clla-recall.gguf";
        engine_ = make_engine(load_model(file));
        ASSERT_TRUE(engine_);
    }
    // The share of the answers that is right: of the prompt's logits, and of a step that reads the
    // asked letter against the cache.
    std::pair<double, double> right(const MethodConfig& config, std::int64_t pairs) {
        constexpr std::size_t kCount = 400;
        std::size_t read = 0, decoded = 0;
        for (const auto& recall : recalls(kCount, pairs, 77)) {
            const auto tokens = engine_->model().tokenizer().encode(recall.prompt);
            EXPECT_EQ(std::ssize(tokens), pairs + 2);
            const Token answer =
                engine_->model().tokenizer().encode(std::string(1, recall.answer))[0];
            const auto best = [](std::span<const float> logits) {
                return static_cast<Token>(std::max_element(logits.begin(), logits.end()) -
                                          logits.begin());
            };
            const auto whole = engine_->prefill(tokens, {&config, 1}).value();
            read += best(whole.logits) == answer;
            engine_->release(whole.sequences[0]);
            const auto front = std::span(tokens).first(tokens.size() - 1);
            const auto cut = engine_->prefill(front, {&config, 1}).value();
            const DecodeInput input{.sequence = cut.sequences[0], .token = tokens.back()};
            EXPECT_TRUE(engine_->decode({&input, 1}));
            decoded += best(engine_->logits(0)) == answer;
            bytes_ = engine_->info(cut.sequences[0]).plan_bytes;
            tokens_ = std::ssize(front);
            engine_->release(cut.sequences[0]);
        }
        return {static_cast<double>(read) / kCount, static_cast<double>(decoded) / kCount};
    }
    std::unique_ptr<Engine> engine_;
    std::int64_t bytes_ = 0, tokens_ = 0;  // of the last cache
};

TEST_F(LatentTrained, RecallsAndKeepsItInFourBits) {
    MethodConfig full = method_config("full", 0, engine_->model().info().shape);
    MethodConfig four = full;
    four.method = "clla";
    four.store = {StoreStep::q4_0, StoreStep::q4_0};
    for (const std::int64_t pairs : {4, 8, 12}) {
        const auto [read, decoded] = right(full, pairs);
        RecordProperty(fmt::format("full_{}", pairs), fmt::format("{} {}", read, decoded));
        EXPECT_GE(read, 0.95) << pairs;
        EXPECT_GE(decoded, 0.95) << pairs;
        EXPECT_EQ(bytes_, tokens_ * 2 * (64 + 32) * 2);
        const auto [read_four, decoded_four] = right(four, pairs);
        RecordProperty(fmt::format("clla_{}", pairs), fmt::format("{}", decoded_four));
        EXPECT_EQ(read_four, read) << "a prompt is read with f16 rows";
        EXPECT_GE(decoded_four, decoded - 0.05) << pairs;
        EXPECT_EQ(bytes_, tokens_ * 2 * (2 + 1) * 18);
        fmt::print("{} pairs: right {:.4f} read, {:.4f} decoded, {:.4f} decoded from q4_0\n", pairs,
                   read, decoded, decoded_four);
    }
}

}  // namespace
}  // namespace headkv::test
