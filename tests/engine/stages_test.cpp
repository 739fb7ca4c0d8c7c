// A model in stages says and keeps what it does in one. All stages lie on the CPU here, each with a
// backend of its own. HEADKV_TEST_STAGES names other devices, which take turns: cuda0,cuda1 in
// tools/gpu-check.
#include <cstdlib>
#include <numeric>

#include "engine/capacity.h"
#include "engine/fixture.h"
#include "engine/placement.h"
#include "support/header_only.h"

namespace headkv::test {
namespace {

// All that a caller sees of an engine at work.
struct Transcript {
    std::vector<std::vector<float>> logits;
    std::vector<KeepLists> kept;
    std::vector<std::vector<std::vector<float>>> attention;  // of steps and layers
    std::vector<Token> best;
    std::vector<std::int64_t> bytes;
};

class Stages : public testing::Test {
protected:
    static TinyModel several_heads() {
        TinyModel tiny;
        tiny.layers = 4;
        tiny.query_heads = 4;
        tiny.kv_heads = 2;
        tiny.head_dim = 64;
        tiny.rope_factors = true;
        return tiny;
    }
    Stages() { write_tiny_model(several_heads(), file()); }
    std::filesystem::path file() const { return folder.path() / "tiny.gguf"; }

    static std::vector<std::string> devices() {
        const char* given = std::getenv("HEADKV_TEST_STAGES");
        std::vector<std::string> names{""};
        for (const char letter : std::string(given == nullptr ? "cpu" : given)) {
            if (letter == ',') {
                names.emplace_back();
            } else {
                names.back() += letter;
            }
        }
        return names;
    }
    static bool elsewhere() { return std::getenv("HEADKV_TEST_STAGES") != nullptr; }

    std::unique_ptr<Engine> engine(const std::vector<std::int64_t>& layers) const {
        const auto names = devices();
        LoadOptions options{.device = names[0], .threads = 1};
        for (const auto count : layers) {
            options.stages.push_back({names[options.stages.size() % names.size()], count});
        }
        const auto model = Model::load(file(), options);
        EXPECT_TRUE(model) << (model ? "" : model.error().message);
        if (!model) return nullptr;
        auto made = Engine::create(
            *model, {.chunk = 256, .slots = 2, .keep_queries = true, .stock_operations = true});
        EXPECT_TRUE(made);
        return made ? std::move(*made) : nullptr;
    }

    static MethodConfig config(const Engine& engine, const std::string& name, StoreTypes store) {
        auto config = method_config(name, 48, engine.model().info().shape);
        config.layout = {16, 2};
        config.store = store;
        config.options.reserve = 1;
        return config;
    }

    static void decode(Engine& engine, std::span<const SequenceId> ids, Token token,
                       Transcript& into, bool want_logits = true) {
        std::vector<DecodeInput> inputs;
        for (const auto id : ids) inputs.push_back({id, token++, want_logits});
        const auto done = engine.decode(inputs);
        ASSERT_TRUE(done) << done.error().message;
        for (std::size_t i = 0; i < ids.size(); ++i) {
            into.best.push_back(engine.best(i));
            if (!want_logits) continue;
            into.logits.emplace_back(engine.logits(i).begin(), engine.logits(i).end());
        }
    }

    // Three caches of one prompt and one of another, answers side by side, a copy, a further turn
    // that is longer than the reserve, and a text.
    static Transcript work(Engine& engine) {
        Transcript said;
        const StoreTypes f16, mixed{StoreStep::q8_0, StoreStep::q4_0};
        const std::vector<MethodConfig> configs{config(engine, "headkv-r2", f16),
                                                config(engine, "ada-kv", mixed),
                                                config(engine, "full", f16)};
        const auto first = engine.prefill(random_tokens(600, 1), configs);
        EXPECT_TRUE(first) << (first ? "" : first.error().message);
        const auto other = engine.prefill(random_tokens(40, 2), {configs.data(), 1});
        EXPECT_TRUE(other);
        if (!first || !other) return said;
        said.logits = {first->logits, other->logits};
        auto ids = first->sequences;
        ids.push_back(other->sequences.at(0));
        for (const auto id : ids) {
            said.kept.push_back(engine.positions(id));
            const auto info = engine.info(id);
            std::int64_t kv = 0;
            for (const auto& place : engine.placement(id)) kv += place.kv_bytes;
            EXPECT_EQ(kv, info.plan_bytes);
            said.bytes.insert(said.bytes.end(), {info.plan_bytes, info.allocated_bytes});
        }
        for (const Token token : {3, 50}) decode(engine, ids, token, said);
        for (std::int64_t layer = 0; layer < engine.model().info().shape.layers; ++layer) {
            for (const auto id : ids) said.attention.push_back(engine.attention(id, layer));
        }
        decode(engine, ids, 9, said, false);
        const auto twin = engine.copy(ids[0]);
        EXPECT_TRUE(twin);
        engine.release(ids[3]);
        const auto turn = random_tokens(230, 3);
        const auto read = engine.extend(*twin, turn);
        EXPECT_TRUE(read) << (read ? "" : read.error().message);
        if (read) said.logits.push_back(*read);
        said.kept.push_back(engine.positions(*twin));
        decode(engine, std::vector{ids[0], ids[2], *twin}, 7, said);
        const auto text = engine.log_probabilities(random_tokens(300, 4));
        EXPECT_TRUE(text);
        if (text) said.logits.push_back(*text);
        said.bytes.push_back(engine.device_peak_bytes());
        return said;
    }

    TempFolder folder;
};

TEST_F(Stages, SayAndKeepWhatOneDoes) {
    const auto one = engine({});
    ASSERT_TRUE(one);
    const auto right = work(*one);
    ASSERT_EQ(right.logits.size(), 15U);
    const auto several = engine({0, 1, 2, 1, 0});
    ASSERT_TRUE(several);
    const auto ours = work(*several);
    ASSERT_EQ(ours.logits.size(), right.logits.size());
    for (std::size_t i = 0; i < right.logits.size(); ++i) {
        EXPECT_LE(logit_error(ours.logits[i], right.logits[i]), elsewhere() ? 2e-2 : 0.0) << i;
    }
    if (elsewhere()) return;  // near ties may turn
    EXPECT_EQ(ours.kept, right.kept);
    EXPECT_EQ(ours.attention, right.attention);
    EXPECT_EQ(ours.best, right.best);
    // Peaks differ: hidden states and work lie on every stage.
    auto bytes = ours.bytes;
    EXPECT_GT(bytes.back(), right.bytes.back());
    EXPECT_LT(bytes.back(), 3 * right.bytes.back());
    bytes.back() = right.bytes.back();
    EXPECT_EQ(bytes, right.bytes);
}

TEST_F(Stages, TellWhatLiesWhere) {
    const auto several = engine({1, 3});
    ASSERT_TRUE(several);
    const auto& info = several->model().info();
    EXPECT_EQ(info.device == "cpu", !elsewhere());
    const auto factors = several_heads().head_dim / 2 * 4;
    // The output is the embedding: once in the file, on two stages here.
    EXPECT_EQ(std::accumulate(info.layer_bytes.begin(), info.layer_bytes.end(),
                              info.output_bytes + factors),
              info.weight_bytes);
    EXPECT_GT(info.output_bytes, info.embedding_bytes);
    const auto places = several->placement(0);
    ASSERT_EQ(places.size(), 2U);
    EXPECT_EQ(places[0].first_layer, 0);
    EXPECT_EQ(places[0].layers, 1);
    EXPECT_EQ(places[1].first_layer, 1);
    EXPECT_EQ(places[1].layers, 3);
    EXPECT_GE(places[0].weight_bytes, info.embedding_bytes + info.layer_bytes[0] + factors);
    EXPECT_GE(places[1].weight_bytes, info.output_bytes + 3 * info.layer_bytes[1] + factors);
    for (const auto& place : places) EXPECT_EQ(place.kv_bytes, 0) << "there is no such sequence";
}

TEST_F(Stages, AreRefusedWhereTheyAreNotTheModel) {
    const std::vector<std::pair<std::vector<Stage>, std::string>> wrong{
        {{{"cpu", 1}, {"cpu", 2}}, "the stages have 3 layers, the model 4"},
        {{{"cpu", 2}, {"cpu", 0}, {"cpu", 2}}, "0 layers on cpu"},
        {{{"cpu", -1}, {"cpu", 5}}, "-1 layers on cpu"},
        {{{"abacus7", 4}}, "--device abacus7: unknown (here are auto, cpu, cuda"}};
    for (const auto& [stages, message] : wrong) {
        const auto model = Model::load(file(), {.device = "cpu", .stages = stages});
        ASSERT_FALSE(model) << message;
        EXPECT_EQ(model.error().kind, ErrorKind::bad_input);
        EXPECT_NE(model.error().message.find(message), std::string::npos) << model.error().message;
    }
}

// A prompt that is read in small steps crosses from stage to stage piece by piece.
TEST_F(Stages, ReadInStepsOfAnyLength) {
    const auto several = engine({0, 2, 2});
    ASSERT_TRUE(several);
    const auto prompt = random_tokens(600, 5);
    const auto chosen = config(*several, "snapkv", {});
    const auto whole = several->prefill(prompt, {&chosen, 1});
    ASSERT_TRUE(whole);
    auto job = several->start_prefill(prompt, {&chosen, 1});
    ASSERT_TRUE(job);
    for (std::int64_t most = 1;; most = most * 7 % 701) {
        const auto done = job->step(most);
        ASSERT_TRUE(done);
        if (*done) break;
    }
    const auto pieces = job->finish();
    ASSERT_TRUE(pieces);
    EXPECT_LE(logit_error(pieces->logits, whole->logits), elsewhere() ? 2e-2 : 0.0);
    if (elsewhere()) return;
    EXPECT_EQ(several->positions(pieces->sequences[0]), several->positions(whole->sequences[0]));
}

// What does not fit is refused, with the layers that would; these then do.
TEST_F(Stages, OfAsManyLayersAsFit) {
    const auto one = engine({});
    ASSERT_TRUE(one);
    const auto& info = one->model().info();
    const auto chosen = config(*one, "snapkv", {});
    const auto prompt = random_tokens(600, 6);
    DeviceLoad load{.methods = {chosen}, .prompt = 600, .sequences = 2, .chunk = 256};
    const auto all = memory_use(info, load)->total();
    const auto fits = most_layers(info, load, all - 1);
    EXPECT_GT(fits, 0);
    EXPECT_LT(fits, info.shape.layers);
    EXPECT_EQ(most_layers(info, load, info.output_bytes), 0);
    load.part = ModelPart{info.shape.layers - fits, fits, false, true, true};
    EXPECT_LT(memory_use(info, load)->total(), all);
    EXPECT_TRUE(check_fits(info, load, all - 1, "gpu"));
    load.part.reset();
    const auto refused = check_fits(info, load, all - 1, "gpu");
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find(fmt::format("--gpu-layers {} fits", fits)),
              std::string::npos)
        << refused.error().message;
}

// What a stage takes of its device, estimated and measured.
TEST_F(Stages, TakeWhatIsPlanned) {
    if (elsewhere()) GTEST_SKIP() << "a driver rounds sizes up";
    const auto several = engine({1, 3});
    ASSERT_TRUE(several);
    const auto& info = several->model().info();
    const auto chosen = config(*several, "snapkv", {});
    const auto read = several->prefill(random_tokens(600, 6), {&chosen, 1});
    ASSERT_TRUE(read);
    DeviceLoad load{.methods = {chosen}, .prompt = 600, .sequences = 2, .chunk = 256, .graphs = 0};
    load.methods[0].options.reserve = 1;
    const auto places = several->placement(read->sequences[0]);
    const auto parts = parts_of(info.stages);
    for (std::size_t i = 0; i < parts.size(); ++i) {
        load.part = parts[i];
        const auto planned = static_cast<double>(memory_use(info, load)->total());
        EXPECT_NEAR(static_cast<double>(places[i].peak_bytes) / planned, 1, 0.1) << i;
        const auto use = sequence_use(info, chosen, 600, 16, 2);
        ASSERT_TRUE(use);
        const auto begin = use->layer_plan_bytes.begin() + parts[i].first;
        EXPECT_EQ(std::accumulate(begin, begin + parts[i].layers, std::int64_t{0}),
                  places[i].kv_bytes);
        EXPECT_EQ(
            std::accumulate(use->layer_bytes.begin(), use->layer_bytes.end(), std::int64_t{0}),
            use->bytes());
    }
}

// --- which layers go where

class Placing : public testing::Test {
protected:
    Placing() {
        write_header_only("llama-3-8b", 32000, 8192, folder / "header.gguf");
        model = *read_model_info(folder / "header.gguf");
    }
    static std::vector<DeviceMemory> two(std::int64_t first, std::int64_t second) {
        return {{"cuda0", true, first, first}, {"cuda1", true, second, second}};
    }
    static std::string text(const Result<std::vector<Stage>>& stages) {
        if (!stages) return stages.error().message;
        std::string text;
        for (const auto& stage : *stages) text += fmt::format("{}:{} ", stage.device, stage.layers);
        return text;
    }
    std::string placed(std::span<const DeviceMemory> devices, std::vector<double> shares = {},
                       std::optional<std::int64_t> layers = {}) const {
        return text(place_layers(model, devices, shares, layers));
    }

    TempFolder folder;
    ModelInfo model;
};

TEST_F(Placing, TheLastLayersOnTheGpus) {
    const std::vector<DeviceMemory> one{{"cuda0", true, 1, 1}};
    EXPECT_EQ(placed(one), "cuda0:32 ");
    EXPECT_EQ(placed(one, {}, 99), "cuda0:32 ");
    EXPECT_EQ(placed(one, {}, 10), "cpu:22 cuda0:10 ");
    EXPECT_EQ(placed(one, {}, 0), "cpu:32 ");
    EXPECT_EQ(placed(two(40, 40), {}, 10), "cpu:22 cuda0:5 cuda1:5 ");
}

TEST_F(Placing, ByFreeMemoryOrShares) {
    EXPECT_EQ(placed(two(80, 80)), "cuda0:16 cuda1:16 ");
    EXPECT_EQ(placed(two(0, 80)), "cuda0:16 cuda1:16 ") << "a driver that does not say";
    EXPECT_EQ(placed(two(80, 80), {3, 1}), "cuda0:24 cuda1:8 ");
    EXPECT_EQ(placed(two(60, 20)), "cuda0:24 cuda1:8 ");
    // Each has a layer, whatever its share.
    EXPECT_EQ(placed(two(80, 80), {1, 1e9}), "cuda0:1 cuda1:31 ");
    EXPECT_EQ(placed(two(80, 80), {1e9, 1}), "cuda0:31 cuda1:1 ");
    EXPECT_EQ(placed(two(80, 80), {1}), "--gpu-split has 1 shares for 2 GPUs: give one each");
    EXPECT_NE(placed(two(80, 80), {1, 0}).find("a share of 0"), std::string::npos);
    EXPECT_NE(placed(two(80, 80), {1, NAN}).find("a share of nan"), std::string::npos);
    EXPECT_NE(placed(two(80, 80), {}, 1).find("1 layers on 2 GPUs"), std::string::npos);
}

}  // namespace
}  // namespace headkv::test
