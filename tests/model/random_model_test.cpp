// Models with random weights: every named shape loads, the bytes follow from the seed alone, and a
// file is whole or not there.
#include "model/random_model.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

#include "headkv/model.h"
#include "model/gguf_file.h"
#include "support/tiny_model.h"

namespace headkv::test {
namespace {

ModelShape small_shape(std::string_view architecture = "llama") {
    return {.name = "small",
            .architecture = architecture,
            .layers = 2,
            .embedding = 256,
            .query_heads = 4,
            .kv_heads = 2,
            .head_dim = 64,
            .feed_forward = 512,
            .vocabulary = 1000,
            .context = 512};
}

class RandomModels : public testing::Test {
protected:
    std::filesystem::path file() const { return folder_ / "model.gguf"; }

    static std::string read(const std::filesystem::path& file) {
        std::ifstream in(file, std::ios::binary);
        return {std::istreambuf_iterator<char>(in), {}};
    }

    static RandomModel plan(const ModelShape& shape, ggml_type type, std::uint64_t seed = 1) {
        auto model = RandomModel::plan(shape, type, seed);
        EXPECT_TRUE(model) << model.error().message;
        return model ? *model : RandomModel{};
    }

    std::string written(const ModelShape& shape, ggml_type type, std::uint64_t seed, int threads) {
        const auto done = write_random_model(plan(shape, type, seed), file(),
                                             {.threads = threads, .overwrite = true});
        EXPECT_TRUE(done) << done.error().message;
        return read(file());
    }

    void expect_refused(const ModelShape& shape, ggml_type type, const std::string& named) {
        const auto model = RandomModel::plan(shape, type, 1);
        ASSERT_FALSE(model) << named;
        EXPECT_EQ(model.error().kind, ErrorKind::bad_input);
        EXPECT_NE(model.error().message.find(named), std::string::npos) << model.error().message;
    }

    std::size_t files() const {
        const std::filesystem::directory_iterator entries(folder_.path());
        return static_cast<std::size_t>(std::distance(begin(entries), end(entries)));
    }

    TempFolder folder_;
};

// Full size, but for the weights: a hole in the file, which costs nothing, takes their place.
TEST_F(RandomModels, EveryNamedShapeLoadsAndHasTheKnownSize) {
    // As the models' pages count them, tied weights once.
    const std::map<std::string_view, std::int64_t> parameters = {
        {"llama-3-8b", 8030261248},   {"llama-3-70b", 70553706496}, {"llama-2-7b", 6738415616},
        {"llama-2-13b", 13015864320}, {"mistral-7b", 7248023552},   {"tinyllama-1.1b", 1100048384},
        {"smollm2-135m", 134515008},  {"smollm2-360m", 361821120},  {"qwen2.5-0.5b", 494032768},
        {"qwen2.5-1.5b", 1543714304}, {"qwen2.5-7b", 7615616512},   {"qwen2.5-14b", 14770033664},
        {"qwen3-0.6b", 596049920},    {"qwen3-4b", 4022468096},     {"qwen3-8b", 8190735360},
        {"qwen3-14b", 14768307200}};
    ASSERT_EQ(parameters.size(), model_shapes().size());
    for (const ModelShape& shape : model_shapes()) {
        SCOPED_TRACE(shape.name);
        const RandomModel model = plan(shape, GGML_TYPE_Q8_0);
        ASSERT_TRUE(parameters.contains(shape.name));
        EXPECT_EQ(model.parameters(), parameters.at(shape.name));
        std::ofstream out(file(), std::ios::binary);
        out.write(reinterpret_cast<const char*>(model.header().data()),
                  static_cast<std::streamsize>(model.header().size()));
        out.close();
        std::filesystem::resize_file(file(), static_cast<std::uintmax_t>(model.bytes()));
        const auto loaded =
            Model::load(file(), {.device = "cpu", .threads = 1, .extra_buffers = false});
        ASSERT_TRUE(loaded) << loaded.error().message;
        const ModelInfo& info = (*loaded)->info();
        EXPECT_EQ(info.architecture, shape.architecture);
        EXPECT_EQ(info.shape.layers, shape.layers);
        EXPECT_EQ(info.shape.query_heads, shape.query_heads);
        EXPECT_EQ(info.shape.kv_heads, shape.kv_heads);
        EXPECT_EQ(info.embedding, shape.embedding);
        EXPECT_EQ(info.head_dim_k, shape.head_dim);
        EXPECT_EQ(info.head_dim_v, shape.head_dim);
        EXPECT_EQ(info.feed_forward, shape.feed_forward);
        EXPECT_EQ(info.vocabulary, shape.vocabulary);
        EXPECT_EQ(info.context, shape.context);
        EXPECT_EQ((*loaded)->tokenizer().size(), shape.vocabulary);
    }
}

TEST_F(RandomModels, ThreadsAndRunsDoNotChangeAByteAndTheSeedDoes) {
    // Large enough that the matrices are cut into several parts.
    ModelShape shape = small_shape("qwen2");
    shape.feed_forward = 2048;
    for (const ggml_type type : {GGML_TYPE_Q8_0, GGML_TYPE_F16, GGML_TYPE_Q4_K}) {
        const std::string one = written(shape, type, 1, 1);
        EXPECT_EQ(static_cast<std::int64_t>(one.size()), plan(shape, type).bytes());
        EXPECT_TRUE(written(shape, type, 1, 3) == one) << ggml_type_name(type);
        EXPECT_TRUE(written(shape, type, 1, 3) == one) << ggml_type_name(type);
        EXPECT_FALSE(written(shape, type, 2, 3) == one) << ggml_type_name(type);
    }
    EXPECT_EQ(files(), 1U);
}

// Were these to change, a seed would no longer mean the same model as in an older version.
TEST_F(RandomModels, TheNumbersOfASeedStayWhatTheyAre) {
    written(small_shape(), GGML_TYPE_F32, 1, 2);
    const auto opened = GgufFile::open(file());
    ASSERT_TRUE(opened) << opened.error().message;
    const auto first = [&](const char* name, std::size_t count) {
        std::vector<float> values(count);
        std::memcpy(values.data(), opened->tensor_bytes(opened->tensor(name)).data(), count * 4);
        return values;
    };
    EXPECT_EQ(first("output_norm.weight", 4),
              (std::vector<float>{0.983886719F, 1.046875F, 0.7734375F, 0.83984375F}));
    EXPECT_EQ(first("blk.1.ffn_down.weight", 4),
              (std::vector<float>{0.0169675462F, 0.00285435375F, 0.0293364134F, 0.0195047501F}));
}

TEST_F(RandomModels, WeightsHaveTheMomentsOfANormalDistribution) {
    written(small_shape(), GGML_TYPE_F32, 5, 2);
    const auto opened = GgufFile::open(file());
    ASSERT_TRUE(opened) << opened.error().message;
    const auto expect_normal = [&](const char* name, double mean, double deviation) {
        const auto bytes = opened->tensor_bytes(opened->tensor(name));
        std::vector<float> values(bytes.size() / sizeof(float));
        std::memcpy(values.data(), bytes.data(), bytes.size());
        const auto count = static_cast<double>(values.size());
        double sum = 0, squares = 0, fourth = 0, neighbours = 0, before = 0;
        for (const float value : values) {
            const double unit = (static_cast<double>(value) - mean) / deviation;
            sum += unit;
            squares += unit * unit;
            fourth += unit * unit * unit * unit;
            neighbours += unit * before;
            before = unit;
        }
        const double tolerance = 5 / std::sqrt(count);
        EXPECT_NEAR(sum / count, 0, tolerance) << name;
        EXPECT_NEAR(squares / count, 1, 1.5 * tolerance) << name;
        EXPECT_NEAR(fourth / count, 3 - 1.2 / 8, 10 * tolerance) << name;  // of eight bytes
        EXPECT_NEAR(neighbours / count, 0, tolerance) << name;
    };
    expect_normal("token_embd.weight", 0, 2 / 16.0);
    expect_normal("blk.0.attn_q.weight", 0, 1.4 / 16.0);
    expect_normal("blk.1.ffn_up.weight", 0, 1 / 16.0);
    expect_normal("blk.1.attn_norm.weight", 1, 0.102);
}

TEST_F(RandomModels, EveryTypeLoads) {
    for (const ggml_type type : random_model_types()) {
        SCOPED_TRACE(ggml_type_name(type));
        EXPECT_FALSE(ggml_quantize_requires_imatrix(type));
        EXPECT_EQ(*find_random_model_type(ggml_type_name(type)), type);
        EXPECT_FALSE(written(small_shape("qwen3"), type, 1, 2).empty());
        const auto loaded = Model::load(file(), {.device = "cpu", .threads = 1});
        EXPECT_TRUE(loaded) << loaded.error().message;
    }
    EXPECT_EQ(*find_random_model_type("Q4_k"), GGML_TYPE_Q4_K);
    const auto unknown = find_random_model_type("q9_0");
    ASSERT_FALSE(unknown);
    EXPECT_NE(unknown.error().message.find("q8_0"), std::string::npos) << unknown.error().message;
    expect_refused(small_shape(), GGML_TYPE_I32, "i32");
    expect_refused(small_shape(), GGML_TYPE_IQ2_XXS, "iq2_xxs");
}

TEST_F(RandomModels, TextGoesThroughTheVocabularyAndBack) {
    for (const char* architecture : {"llama", "qwen2"}) {
        ModelShape shape = small_shape(architecture);
        shape.vocabulary = 256 + 26 + 26 * 26 + 4;
        written(shape, GGML_TYPE_Q8_0, 1, 1);
        const auto loaded = Model::load(file(), {.device = "cpu", .threads = 1});
        ASSERT_TRUE(loaded) << loaded.error().message;
        const Tokenizer& tokenizer = (*loaded)->tokenizer();
        const std::string text = "if it is so, é 12\n";
        const auto tokens = tokenizer.encode(text, false, false);
        EXPECT_EQ(tokenizer.decode(tokens), text);
        // "if" has no space before it; " it", " is", " so" are one token each.
        EXPECT_EQ(tokens.size(), 2U + 3U + 1U + 3U + 3U + 1U) << architecture;
        EXPECT_EQ(tokens[2], 256 + 26 + ('i' - 'a') * 26 + ('t' - 'a'));
    }
}

TEST_F(RandomModels, AbsurdShapesAreNamed) {
    const auto refuse = [&](auto change, const std::string& named) {
        ModelShape shape = small_shape();
        change(shape);
        expect_refused(shape, GGML_TYPE_Q8_0, named);
    };
    refuse([](auto& s) { s.layers = 0; }, "0 layers");
    refuse([](auto& s) { s.layers = -1; }, "-1 layers");
    refuse([](auto& s) { s.embedding = std::int64_t{1} << 62; }, "values in the embedding");
    refuse([](auto& s) { s.query_heads = 0; }, "0 query heads");
    refuse([](auto& s) { s.kv_heads = 3; }, "4 query heads cannot share 3 KV heads");
    refuse([](auto& s) { s.kv_heads = 8; }, "4 query heads cannot share 8 KV heads");
    refuse([](auto& s) { s.head_dim = 0; }, "0 values a head");
    refuse([](auto& s) { s.head_dim = 63; }, "even");
    refuse([](auto& s) { s.feed_forward = 500; }, "the feed-forward size is 500");
    refuse([](auto& s) { s.embedding = 100; }, "blocks of 32 values (q8_0)");
    refuse([](auto& s) { s.vocabulary = 260; }, "at least 261");
    refuse([](auto& s) { s.context = 0; }, "0 tokens of context");
    refuse([](auto& s) { s.architecture = "bert"; }, "supported are: llama");
    // Whatever passes has a size that 64 bits hold.
    ModelShape largest = small_shape();
    largest.layers = 1024;
    largest.embedding = 1 << 18;
    largest.query_heads = largest.kv_heads = 4096;
    largest.head_dim = 1024;
    largest.feed_forward = 1 << 20;
    const RandomModel model = plan(largest, GGML_TYPE_F32);
    EXPECT_GT(model.parameters(), std::int64_t{1} << 51);
    EXPECT_GT(model.bytes(), model.parameters() * 4);
    const auto done = write_random_model(model, file());
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().kind, ErrorKind::bad_input);
    EXPECT_NE(done.error().message.find("GiB are free"), std::string::npos);
    EXPECT_EQ(files(), 0U);
}

TEST_F(RandomModels, SmallestVocabulary) {
    ModelShape shape = small_shape();
    shape.vocabulary = 261;
    written(shape, GGML_TYPE_Q8_0, 1, 1);
    EXPECT_TRUE(Model::load(file(), {.device = "cpu", .threads = 1}));
}

TEST_F(RandomModels, AnExistingFileStaysUnlessItIsToGo) {
    std::ofstream(file()) << "mine";
    const RandomModel model = plan(small_shape(), GGML_TYPE_Q8_0);
    const auto refused = write_random_model(model, file());
    ASSERT_FALSE(refused);
    EXPECT_NE(refused.error().message.find("--force"), std::string::npos);
    EXPECT_EQ(read(file()), "mine");
    // A link stays a link.
    std::filesystem::create_symlink(file(), folder_ / "link");
    ASSERT_TRUE(write_random_model(model, folder_ / "link", {.overwrite = true}));
    EXPECT_TRUE(std::filesystem::is_symlink(folder_ / "link"));
    EXPECT_EQ(std::filesystem::file_size(file()), static_cast<std::uintmax_t>(model.bytes()));
    EXPECT_EQ(files(), 2U);
}

TEST_F(RandomModels, WhoeverStopsItGetsNothing) {
    std::ofstream(file()) << "mine";
    const RandomModel model = plan(small_shape(), GGML_TYPE_Q8_0);
    for (const int calls : {0, 1, 5}) {
        for (const int threads : {1, 3}) {
            int left = calls;
            const auto done = write_random_model(
                model, file(),
                {.threads = threads, .overwrite = true, .progress = [&](auto part, auto whole) {
                     EXPECT_LE(part, whole);
                     return left-- > 0;
                 }});
            // The calling thread may have drawn few parts or none before the others had them all.
            if (done) break;
            EXPECT_EQ(done.error().kind, ErrorKind::interrupted);
            EXPECT_EQ(read(file()), "mine");
            EXPECT_EQ(files(), 1U);
        }
    }
}

TEST_F(RandomModels, AFileSystemThatTakesNoMoreLeavesNothingBehind) {
    struct rlimit old = {};
    ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    const RandomModel model = plan(small_shape(), GGML_TYPE_Q8_0);
    const struct rlimit tight = {static_cast<rlim_t>(model.bytes() / 2), old.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &tight), 0);
    const auto done = write_random_model(model, file());
    setrlimit(RLIMIT_FSIZE, &old);
    std::signal(SIGXFSZ, handler);
    ASSERT_FALSE(done);
    EXPECT_EQ(done.error().kind, ErrorKind::bad_input);
    EXPECT_NE(done.error().message.find("cannot write"), std::string::npos) << done.error().message;
    EXPECT_EQ(files(), 0U);
}

}  // namespace
}  // namespace headkv::test
