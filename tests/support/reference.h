// A second, naive implementation of the models in float32: weights dequantised, plain loops, no
// graph, no cache tricks. It reads GGUF by itself and shares nothing with src/.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <vector>

#include "headkv/scores.h"
#include "headkv/tokenizer.h"

namespace headkv::test {

using KeepLists = std::vector<std::vector<std::vector<std::int32_t>>>;  // [layers][kv_heads]

struct ReferenceShape {
    HeadShape heads;
    std::int64_t embedding = 0, feed_forward = 0, vocabulary = 0;
    std::int64_t head_dim_k = 0, head_dim_v = 0;
};

struct ReferenceOptions {
    bool all_logits = false;               // of every position, else of the last one
    std::int64_t queries = 64;             // last queries remembered, for attention
    std::vector<std::int64_t> owner = {};  // [layers] whose rows a layer reads; empty: its own
};

struct ReferenceRun {
    struct Layer {
        std::vector<float> queries;        // [query_heads][run.queries][head_dim_k], rotated
        std::vector<float> plain_queries;  // the same, not rotated
        std::vector<float> keys;           // [kv_heads][tokens][head_dim_k], rotated
        std::vector<float> values;         // [kv_heads][tokens][head_dim_v]
    };
    std::int64_t tokens = 0, queries = 0;
    std::vector<float> logits;  // [tokens or 1][vocabulary]
    std::vector<Layer> layers;
};

// Rows as headkv should hold them: dropped where not kept, positions untouched.
struct ReferenceCache {
    struct Head {
        std::vector<std::int32_t> positions;
        std::vector<float> keys, values;  // [rows][head_dim]
    };
    std::int64_t tokens = 0;
    std::vector<std::int64_t> owner;          // as ReferenceOptions has it
    std::vector<std::vector<Head>> heads;     // [layers][kv_heads]
    std::vector<std::vector<float>> queries;  // [layers][query_heads * head_dim_k] of the newest
};

class Reference {
public:
    explicit Reference(const std::filesystem::path& file);  // throws std::runtime_error
    ~Reference();

    const ReferenceShape& shape() const;

    ReferenceRun run(std::span<const Token> tokens, const ReferenceOptions& options = {}) const;

    // Attention weights of one of the remembered queries: softmax over keys 0 .. position, or only
    // over those below `to` (a seeded mistake leaves the window's keys out).
    std::vector<float> attention(const ReferenceRun& run, std::int64_t layer,
                                 std::int64_t query_head, std::int64_t position,
                                 std::int64_t to = -1) const;

    // A head of head_dim_k values as RoPE turns it at a position.
    std::vector<float> turned(std::span<const float> head, std::int64_t position) const;
    // What the output projection makes of a value that one query head alone puts out: [embedding].
    std::vector<float> projected(std::int64_t layer, std::int64_t query_head,
                                 std::span<const float> value) const;

    ReferenceCache cache(const ReferenceRun& run, const KeepLists& keep) const;
    ReferenceCache full_cache(const ReferenceRun& run) const;
    std::vector<float> decode(ReferenceCache& cache, Token token) const;  // logits
    // Of the newest decoded query over the rows held: [rows].
    std::vector<float> attention(const ReferenceCache& cache, std::int64_t layer,
                                 std::int64_t query_head) const;

private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace headkv::test
