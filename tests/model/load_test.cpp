// Loading: what a good file says of itself, and that a bad one is refused with one line that helps,
// whatever is in it.
#include <gguf.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <memory>

#include "headkv/model.h"
#include "support/random.h"
#include "support/tiny_model.h"

namespace headkv::test {
namespace {

std::string read_bytes(const std::filesystem::path& file) {
    std::ifstream in(file, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const std::filesystem::path& file, const std::string& bytes) {
    std::ofstream out(file, std::ios::binary);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

class Load : public testing::Test {
protected:
    Result<std::shared_ptr<const Model>> load(const TinyModel& options) {
        write_tiny_model(options, file());
        return Model::load(file(), {.device = "cpu", .threads = 1});
    }
    std::filesystem::path file() const { return folder_ / "model.gguf"; }

    // Writes a tiny model, lets `change` alter its metadata or tensors, and expects a refusal that
    // names `named`.
    template <class Change>
    void refuse(Change change, const std::string& named) {
        write_tiny_model({}, file());
        ggml_context* tensors = nullptr;
        gguf_context* gguf =
            gguf_init_from_file(file().c_str(), {.no_alloc = false, .ctx = &tensors});
        ASSERT_NE(gguf, nullptr);
        gguf_context* changed = gguf_init_empty();
        gguf_set_kv(changed, gguf);
        change(changed, tensors);
        ASSERT_TRUE(gguf_write_to_file(changed, file().c_str(), false));
        gguf_free(changed);
        gguf_free(gguf);
        ggml_free(tensors);
        expect_refused(named);
    }

    void expect_refused(const std::string& named) {
        const auto model = Model::load(file(), {.device = "cpu", .threads = 1});
        ASSERT_FALSE(model) << "loaded, though " << named;
        EXPECT_EQ(model.error().kind, ErrorKind::bad_input);
        EXPECT_NE(model.error().message.find(named), std::string::npos) << model.error().message;
        EXPECT_EQ(model.error().message.find('\n'), std::string::npos) << model.error().message;
    }

    // All tensors as they are, but one left out.
    static void tensors_without(gguf_context* to, ggml_context* from, const std::string& name) {
        for (ggml_tensor* t = ggml_get_first_tensor(from); t; t = ggml_get_next_tensor(from, t)) {
            const std::string given = ggml_get_name(t);
            // the reader keeps the whole data section as one tensor of bytes
            if (given != name && t->type != GGML_TYPE_I8) gguf_add_tensor(to, t);
        }
    }
    static void all_tensors(gguf_context* to, ggml_context* from) { tensors_without(to, from, ""); }

    TempFolder folder_;
};

TEST_F(Load, TellsShapeAndSizes) {
    TinyModel options;
    options.head_dim = 24;  // not embedding / heads
    options.weight_type = GGML_TYPE_F16;
    const auto model = load(options);
    ASSERT_TRUE(model) << model.error().message;
    const ModelInfo& info = (*model)->info();
    EXPECT_EQ(info.architecture, "llama");
    EXPECT_EQ(info.name, "tiny");
    EXPECT_EQ(info.shape, (HeadShape{3, 4, 2}));
    EXPECT_EQ(info.embedding, 64);
    EXPECT_EQ(info.head_dim_k, 24);
    EXPECT_EQ(info.head_dim_v, 24);
    EXPECT_EQ(info.feed_forward, 96);
    EXPECT_EQ(info.context, 2048);
    EXPECT_EQ(info.vocabulary, tiny_vocabulary());
    EXPECT_EQ(info.row_bytes, 24 * 2 * 2);
    EXPECT_EQ(info.device, "cpu");
    EXPECT_EQ(info.threads, 1);
    EXPECT_EQ(info.fingerprint.size(), 16U);
    EXPECT_EQ((*model)->tokenizer().size(), tiny_vocabulary());
    const std::int64_t vectors = (1 + 2 * 3) * 64 * 4;
    const std::int64_t matrices = 3 * 2 * (64 * 4 * 24 * 2 + 2 * 64 * 2 * 24 + 3 * 64 * 96);
    EXPECT_EQ(info.weight_bytes, vectors + matrices + 64 * tiny_vocabulary() * 4);
}

TEST_F(Load, UngroupedHeadsNeedNoKeyOfTheirOwn) {
    TinyModel options;
    options.kv_heads = options.query_heads;
    const auto model = load(options);
    ASSERT_TRUE(model) << model.error().message;
    EXPECT_EQ((*model)->info().shape.kv_heads, 4);
}

TEST_F(Load, FingerprintFollowsTheWeightsNotTheFileName) {
    const auto first = load({});
    ASSERT_TRUE(first);
    std::filesystem::copy_file(file(), folder_ / "other.gguf");
    const auto renamed = Model::load(folder_ / "other.gguf", {.device = "cpu"});
    TinyModel other;
    other.seed = 2;
    const auto changed = load(other);
    ASSERT_TRUE(renamed && changed);
    EXPECT_EQ((*first)->info().fingerprint, (*renamed)->info().fingerprint);
    EXPECT_NE((*first)->info().fingerprint, (*changed)->info().fingerprint);
}

TEST_F(Load, TheTokenizerOfATinyModelWorks) {
    const auto model = load({});
    ASSERT_TRUE(model);
    const Tokenizer& tokenizer = (*model)->tokenizer();
    const std::string text = "the other thing \xC3\xA9\xF0\x9F\x99\x82\n\n  in";
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    EXPECT_LT(tokenizer.encode("the").size(), 3U);  // merges are used
}

TEST_F(Load, AMissingFileIsNamed) { expect_refused("model.gguf"); }

TEST_F(Load, AFolderIsRefused) {
    std::filesystem::create_directory(file());
    expect_refused("model.gguf");
}

TEST_F(Load, AnEmptyFileIsRefused) {
    write_bytes(file(), "");
    expect_refused("empty");
}

TEST_F(Load, TextIsNotGguf) {
    write_bytes(file(), "Once upon a time there was a file that was no model at all.\n");
    expect_refused("GGUF");
}

TEST_F(Load, AnotherArchitectureGetsTheListOfSupportedOnes) {
    const auto other = [](gguf_context* to, ggml_context* from) {
        gguf_set_val_str(to, "general.architecture", "mamba");
        all_tensors(to, from);
    };
    refuse(other, "mamba");
    for (const char* supported : {"llama", "qwen2", "qwen3"}) expect_refused(supported);
}

TEST_F(Load, NoArchitectureAtAll) {
    refuse(
        [](gguf_context* to, ggml_context* from) {
            gguf_remove_key(to, "general.architecture");
            all_tensors(to, from);
        },
        "general.architecture");
}

TEST_F(Load, EveryMissingTensorIsNamed) {
    for (const char* name :
         {"token_embd.weight", "output_norm.weight", "blk.0.attn_norm.weight",
          "blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.0.attn_v.weight",
          "blk.2.attn_output.weight", "blk.2.ffn_norm.weight", "blk.0.ffn_gate.weight",
          "blk.0.ffn_up.weight", "blk.2.ffn_down.weight"}) {
        refuse([&](gguf_context* to, ggml_context* from) { tensors_without(to, from, name); },
               name);
    }
}

TEST_F(Load, AbsurdHyperParametersAreNamed) {
    struct Bad {
        const char* key;
        std::uint32_t value;
    };
    constexpr std::uint32_t huge = std::numeric_limits<std::uint32_t>::max();
    for (const Bad bad : std::initializer_list<Bad>{{"llama.block_count", 0},
                                                    {"llama.block_count", huge},
                                                    {"llama.block_count", 4},  // one too many
                                                    {"llama.embedding_length", 0},
                                                    {"llama.embedding_length", huge},
                                                    {"llama.embedding_length", 128},
                                                    {"llama.feed_forward_length", 0},
                                                    {"llama.feed_forward_length", 97},
                                                    {"llama.attention.head_count", 0},
                                                    {"llama.attention.head_count", huge},
                                                    {"llama.attention.head_count", 8},
                                                    {"llama.attention.head_count_kv", 0},
                                                    {"llama.attention.head_count_kv", 3},
                                                    {"llama.attention.head_count_kv", huge},
                                                    {"llama.attention.key_length", 0},
                                                    {"llama.attention.key_length", 17},
                                                    {"llama.attention.key_length", huge},
                                                    {"llama.context_length", 0},
                                                    {"llama.rope.dimension_count", 1000},
                                                    {"llama.rope.dimension_count", 7}}) {
        SCOPED_TRACE(std::string(bad.key) + " = " + std::to_string(bad.value));
        refuse(
            [&](gguf_context* to, ggml_context* from) {
                gguf_set_val_u32(to, bad.key, bad.value);
                all_tensors(to, from);
            },
            "");
    }
}

TEST_F(Load, MissingHyperParametersAreNamed) {
    for (const char* key : {"llama.block_count", "llama.context_length", "llama.embedding_length",
                            "llama.feed_forward_length", "llama.attention.head_count",
                            "llama.attention.layer_norm_rms_epsilon"}) {
        refuse(
            [&](gguf_context* to, ggml_context* from) {
                gguf_remove_key(to, key);
                all_tensors(to, from);
            },
            key);
    }
}

TEST_F(Load, AHyperParameterOfAnotherTypeIsRefused) {
    refuse(
        [](gguf_context* to, ggml_context* from) {
            gguf_set_val_str(to, "llama.block_count", "three");
            all_tensors(to, from);
        },
        "llama.block_count");
    refuse(
        [](gguf_context* to, ggml_context* from) {
            gguf_set_val_u32(to, "general.architecture", 3);
            all_tensors(to, from);
        },
        "general.architecture");
}

TEST_F(Load, NonFiniteAndAbsurdRealsAreRefused) {
    for (const float value : {0.0F, -1.0F, std::numeric_limits<float>::infinity(),
                              std::numeric_limits<float>::quiet_NaN()}) {
        for (const char* key : {"llama.rope.freq_base", "llama.attention.layer_norm_rms_epsilon"}) {
            if (value == 0 && std::strstr(key, "epsilon")) continue;  // zero is odd, not wrong
            SCOPED_TRACE(std::string(key) + " = " + std::to_string(value));
            refuse(
                [&](gguf_context* to, ggml_context* from) {
                    gguf_set_val_f32(to, key, value);
                    all_tensors(to, from);
                },
                key);
        }
    }
}

TEST_F(Load, ATensorOfAnotherShapeIsNamedWithBothShapes) {
    std::unique_ptr<ggml_context, decltype(&ggml_free)> own(
        ggml_init({.mem_size = 1 << 16, .mem_buffer = nullptr, .no_alloc = false}), ggml_free);
    ggml_tensor* wrong = ggml_new_tensor_2d(own.get(), GGML_TYPE_F32, 64, 95);
    ggml_set_name(wrong, "blk.1.ffn_up.weight");
    std::memset(wrong->data, 0, ggml_nbytes(wrong));
    refuse(
        [&](gguf_context* to, ggml_context* from) {
            tensors_without(to, from, "blk.1.ffn_up.weight");
            gguf_add_tensor(to, wrong);
        },
        "blk.1.ffn_up.weight");
    expect_refused("95");
    expect_refused("96");
}

TEST_F(Load, VocabularyAndEmbeddingMustAgree) {
    refuse(
        [](gguf_context* to, ggml_context* from) {
            const char* words[] = {"a", "b", "c"};
            gguf_set_arr_str(to, "tokenizer.ggml.tokens", words, 3);
            gguf_remove_key(to, "tokenizer.ggml.token_type");
            all_tensors(to, from);
        },
        "");
}

TEST_F(Load, TruncatedAnywhereIsRefused) {
    write_tiny_model({}, file());
    const std::string whole = read_bytes(file());
    Random random(5);
    for (int i = 0; i < 60; ++i) {
        const auto length = static_cast<std::size_t>(
            random.below(static_cast<std::int64_t>(i < 40 ? whole.size() : 4096)));
        write_bytes(file(), whole.substr(0, length));
        const auto model = Model::load(file(), {.device = "cpu", .threads = 1});
        EXPECT_FALSE(model) << length << " of " << whole.size() << " bytes";
        if (!model) {
            EXPECT_FALSE(model.error().message.empty());
        }
    }
    write_bytes(file(), whole.substr(0, whole.size() - 1));
    expect_refused("trunc");
}

// Where the tensor data starts: all before it is the header that the fuzzing is about.
std::size_t header_size(const std::filesystem::path& file) {
    gguf_context* gguf = gguf_init_from_file(file.c_str(), {.no_alloc = true, .ctx = nullptr});
    const std::size_t size = gguf_get_data_offset(gguf);
    gguf_free(gguf);
    return size;
}

// One to four changes: a byte, a bit, or a length-like number at an even place.
std::string mutated(std::string bytes, std::size_t header, Random& random) {
    const auto limit = static_cast<std::int64_t>(header);
    for (std::int64_t n = 1 + random.below(4); n > 0; --n) {
        const auto place = static_cast<std::size_t>(random.below(limit));
        switch (random.below(4)) {
            case 0:
                bytes[place] = static_cast<char>(random.next());
                break;
            case 1:
                bytes[place] = static_cast<char>(bytes[place] ^ (1 << random.below(8)));
                break;
            case 2: {
                constexpr std::uint64_t numbers[] = {0,
                                                     1,
                                                     0x7FFFFFFF,
                                                     0x80000000,
                                                     0xFFFFFFFF,
                                                     0x7FFFFFFFFFFFFFFF,
                                                     0x8000000000000000,
                                                     0xFFFFFFFFFFFFFFFF,
                                                     0x4000000000000000,
                                                     1ULL << 40};
                const std::uint64_t number = numbers[random.below(std::size(numbers))];
                const std::size_t width = random.below(2) == 0 ? 4 : 8;
                if (place + width <= header) std::memcpy(&bytes[place], &number, width);
                break;
            }
            default:  // a few bytes go missing: everything behind is shifted
                bytes.erase(place, static_cast<std::size_t>(1 + random.below(9)));
        }
    }
    return bytes;
}

void load_and_use(const std::filesystem::path& file) {
    const auto model = Model::load(file, {.device = "cpu", .threads = 1});
    if (!model) {
        EXPECT_FALSE(model.error().message.empty());
        EXPECT_EQ(model.error().message.find('\n'), std::string::npos) << model.error().message;
        return;
    }
    // A model that loads has a tokenizer that can be used.
    const Tokenizer& tokenizer = (*model)->tokenizer();
    tokenizer.decode(tokenizer.encode("some text <|im_start|> 123", true));
}

void fuzz(const TinyModel& options, std::uint64_t seed, int variants) {
    const TempFolder folder;
    const std::filesystem::path file = folder / "model.gguf";
    write_tiny_model(options, file);
    const std::string whole = read_bytes(file);
    const std::size_t header = header_size(file);
    Random random(seed);
    for (int i = 0; i < variants; ++i) {
        SCOPED_TRACE("variant " + std::to_string(i));
        write_bytes(file, mutated(whole, header, random));
        load_and_use(file);
    }
}

// A crash ends the test program, so these are the tests that no byte of a header can crash us.
TEST(LoadFuzz, MutatedHeadersOfLlama) { fuzz({}, 11, 300); }
TEST(LoadFuzz, MutatedHeadersOfQwen2Quantised) {
    TinyModel options;
    options.architecture = "qwen2";
    options.weight_type = GGML_TYPE_Q4_0;
    options.layers = 1;
    fuzz(options, 12, 200);
}

// The first bytes (magic, version, counts) and the first keys are where most goes wrong.
TEST(LoadFuzz, EveryByteOfTheFirstKeys) {
    const TempFolder folder;
    const std::filesystem::path file = folder / "model.gguf";
    write_tiny_model({}, file);
    const std::string whole = read_bytes(file);
    for (std::size_t place = 0; place < 160; ++place) {
        for (const char value : {'\0', '\x7F', '\xFF'}) {
            SCOPED_TRACE("byte " + std::to_string(place));
            std::string bytes = whole;
            bytes[place] = value;
            write_bytes(file, bytes);
            load_and_use(file);
        }
    }
}

// The part of the header that describes tensors: names, dimensions, types, offsets.
TEST(LoadFuzz, MutatedTensorDescriptions) {
    const TempFolder folder;
    const std::filesystem::path file = folder / "model.gguf";
    write_tiny_model({}, file);
    const std::string whole = read_bytes(file);
    const std::size_t header = header_size(file), start = whole.find("token_embd.weight");
    ASSERT_LT(start, header);
    Random random(13);
    for (int i = 0; i < 300; ++i) {
        SCOPED_TRACE("variant " + std::to_string(i));
        const std::string tail = mutated(whole.substr(start), header - start, random);
        write_bytes(file, whole.substr(0, start) + tail);
        load_and_use(file);
    }
}

}  // namespace
}  // namespace headkv::test
