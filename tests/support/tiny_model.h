// Tiny random GGUF models that the tests write themselves: every trait of the architecture table,
// odd sizes included, without a download.
#pragma once

#include <ggml.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "headkv/tokenizer.h"

namespace headkv::test {

enum class RopeScaling { none, linear, yarn };

// The defaults are a small grouped-query llama. All weights are drawn from `seed` alone.
struct TinyModel {
    std::string architecture =
        "llama";  // "llama", "qwen2" (qkv biases), "qwen3" (q and k norms), "clla"
    std::int64_t layers = 3;
    std::int64_t embedding = 64;
    std::int64_t query_heads = 4, kv_heads = 2;
    std::int64_t head_dim = 16;  // written as key_length / value_length unless embedding / heads
    std::int64_t rope_dimensions = 0;  // of each head that are rotated; 0: all
    // "clla": the last values of a key, which are its value, and whose rows each layer reads.
    std::int64_t latent = 0;
    std::vector<std::int64_t> shared_from = {};
    std::int64_t feed_forward = 96;
    std::int64_t context = 2048;
    bool tied = true;           // no output.weight: the embedding is used again
    bool rope_factors = false;  // tensor rope_freqs.weight, as Llama 3.1 has it
    RopeScaling rope_scaling = RopeScaling::none;
    float rope_scaling_factor = 4;
    std::int64_t original_context = 512;  // of YaRN
    float rope_base = 10000;
    ggml_type weight_type = GGML_TYPE_F32;     // matrices; rows that it does not divide stay f32
    ggml_type embedding_type = GGML_TYPE_F32;  // token_embd and output
    std::string pre = {};                      // pre-tokenizer; empty: that of the architecture
    std::uint64_t seed = 1;
};

// Writes the model; throws std::runtime_error if it cannot.
void write_tiny_model(const TinyModel& options, const std::filesystem::path& file);

// Entries of the vocabulary that every tiny model has: 256 bytes, some merges, control tokens.
std::int64_t tiny_vocabulary();

// `count` token ids of ordinary text tokens (no control tokens), drawn from `seed`.
std::vector<Token> random_tokens(std::int64_t count, std::uint64_t seed,
                                 std::int64_t vocabulary = 256);

// A folder of its own for one test, removed with everything in it at the end.
class TempFolder {
public:
    TempFolder();
    ~TempFolder();
    TempFolder(const TempFolder&) = delete;
    TempFolder& operator=(const TempFolder&) = delete;
    std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
    const std::filesystem::path& path() const { return path_; }

private:
    std::filesystem::path path_;
};

// The real model of the end-to-end tests: HEADKV_TEST_MODEL, else the default place below
// `source_folder`. Empty if there is none; then the test says so and is skipped.
std::filesystem::path real_model(const std::filesystem::path& source_folder);

}  // namespace headkv::test
