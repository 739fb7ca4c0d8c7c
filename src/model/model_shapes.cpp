#include "model/model_shapes.h"

#include <array>

#include "model/architecture.h"

namespace headkv {

namespace {

// clang-format off
// As in the published models' config.json: of Qwen 2.5 the instruct versions, of mistral-7b v0.3,
// which has no sliding window. The tests compare the parameters with the known counts.
constexpr std::array<ModelShape, 16> kShapes{{
    // name            family  layers embed. heads KV dim  f-f   vocab. context  RoPE base eps  tied
    {"llama-3-8b",     "llama", 32, 4096, 32,  8, 128, 14336, 128256,  8192,  500000, 1e-5F, false},
    {"llama-3-70b",    "llama", 80, 8192, 64,  8, 128, 28672, 128256,  8192,  500000, 1e-5F, false},
    {"llama-2-7b",     "llama", 32, 4096, 32, 32, 128, 11008,  32000,  4096,   10000, 1e-5F, false},
    {"llama-2-13b",    "llama", 40, 5120, 40, 40, 128, 13824,  32000,  4096,   10000, 1e-5F, false},
    {"mistral-7b",     "llama", 32, 4096, 32,  8, 128, 14336,  32768, 32768, 1000000, 1e-5F, false},
    {"tinyllama-1.1b", "llama", 22, 2048, 32,  4,  64,  5632,  32000,  2048,   10000, 1e-5F, false},
    {"smollm2-135m",   "llama", 30,  576,  9,  3,  64,  1536,  49152,  8192,  100000, 1e-5F, true},
    {"smollm2-360m",   "llama", 32,  960, 15,  5,  64,  2560,  49152,  8192,  100000, 1e-5F, true},
    {"qwen2.5-0.5b",   "qwen2", 24,  896, 14,  2,  64,  4864, 151936, 32768, 1000000, 1e-6F, true},
    {"qwen2.5-1.5b",   "qwen2", 28, 1536, 12,  2, 128,  8960, 151936, 32768, 1000000, 1e-6F, true},
    {"qwen2.5-7b",     "qwen2", 28, 3584, 28,  4, 128, 18944, 152064, 32768, 1000000, 1e-6F, false},
    {"qwen2.5-14b",    "qwen2", 48, 5120, 40,  8, 128, 13824, 152064, 32768, 1000000, 1e-6F, false},
    {"qwen3-0.6b",     "qwen3", 28, 1024, 16,  8, 128,  3072, 151936, 40960, 1000000, 1e-6F, true},
    {"qwen3-4b",       "qwen3", 36, 2560, 32,  8, 128,  9728, 151936, 40960, 1000000, 1e-6F, true},
    {"qwen3-8b",       "qwen3", 36, 4096, 32,  8, 128, 12288, 151936, 40960, 1000000, 1e-6F, false},
    {"qwen3-14b",      "qwen3", 40, 5120, 40,  8, 128, 17408, 151936, 40960, 1000000, 1e-6F, false},
}};
// clang-format on

}  // namespace

std::span<const ModelShape> model_shapes() { return kShapes; }

Result<void> check_shape(const ModelShape& shape) {
    const auto traits = find_architecture(shape.architecture);
    if (!traits) return tl::unexpected(traits.error());
    if ((*traits)->latent) {
        return bad_input("a model of family {} is trained, not drawn: tools/train-clla makes one",
                         shape.architecture);
    }
    struct Bound {
        const char* what;
        std::int64_t value, most;
    };
    // No product of sizes below leaves 63 bits, and read_hyper() takes all of them.
    const Bound bounds[] = {
        {"layers", shape.layers, 1024},
        {"values in the embedding", shape.embedding, 1 << 18},
        {"query heads", shape.query_heads, 4096},
        {"KV heads", shape.kv_heads, 4096},
        {"values a head", shape.head_dim, 1024},
        {"values in the feed-forward part", shape.feed_forward, 1 << 20},
        {"tokens in the vocabulary", shape.vocabulary, 1 << 22},
        {"tokens of context", shape.context, std::int64_t{1} << 31},
    };
    for (const auto& [what, value, most] : bounds) {
        if (value < 1 || value > most) {
            return bad_input("a model with {} {}: 1 to {} are possible", value, what, most);
        }
    }
    if (shape.query_heads % shape.kv_heads != 0) {
        return bad_input("{} query heads cannot share {} KV heads evenly", shape.query_heads,
                         shape.kv_heads);
    }
    if (shape.head_dim % 2 != 0) {
        return bad_input("{} values a head: RoPE turns pairs, give an even number", shape.head_dim);
    }
    return {};
}

}  // namespace headkv
