// Which rows of a prompt a model needs to write the prompt again (KVzip, 2505.23416): it is told
// to, reads its own words in pieces behind the prompt, and a row counts for as much as the one
// query of those that looks at it most.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/attention_ops.h"
#include "headkv/error.h"
#include "headkv/tokenizer.h"

namespace headkv {

// What is read behind the prompt, at the positions that follow it, for one piece of it.
struct RepeatPiece {
    std::int64_t begin = 0, count = 0;  // rows of the prompt that are scored
    std::vector<Token> tokens;          // an instruction, then the tokens of those rows again
    std::int64_t length() const { return static_cast<std::int64_t>(tokens.size()); }
};

// Pieces of 2000 tokens (fewer where the model's `context` leaves no room for so many behind the
// prompt) of all but the first kSinkQueries tokens. Error (bad_input): room for hardly any.
Result<std::vector<RepeatPiece>> repeat_pieces(const Tokenizer& tokenizer,
                                               std::span<const Token> prompt, std::int64_t context);

// The scores of one layer.
class Reconstruction {
public:
    Reconstruction(const AttentionShape& shape, std::int64_t tokens)
        : shape_(shape),
          tokens_(tokens),
          best_(static_cast<std::size_t>(shape.heads.kv_heads * tokens)) {}

    // A node that scores the piece's rows by the queries q [dim_k, query_heads, chunk] of its
    // tokens from `offset` on: softmax over the prompt's first kSinkQueries rows, the piece's rows
    // and, causally, the rows of the piece's own tokens, which lie from row `own` on in `rows`.
    // `after`: nodes that write those. One node at a time; take() when it has been computed.
    ggml_tensor* score(ggml_context* context, ggml_tensor* q, std::span<ggml_tensor*> after,
                       const LayerRows& rows, std::int64_t own, const RepeatPiece& piece,
                       std::int64_t offset);
    void take();

    // [kv_heads][tokens]: the highest weight that a query has given, over the group; the first rows
    // have none.
    std::span<const float> best() const { return best_; }
    void clear();

private:
    static void compute(ggml_tensor* out, int thread, int threads, void* data);
    void run_unit(std::int64_t head, std::int64_t first, std::int64_t count, const float* q,
                  float* out) const;

    AttentionShape shape_;
    std::int64_t tokens_;
    std::vector<float> best_;
    LayerRows rows_;  // what follows: of the node under way
    std::int64_t own_ = 0, offset_ = 0, begin_ = 0, count_ = 0;
    ggml_tensor* node_ = nullptr;  // f32 [count, kv_heads, blocks of queries]
    std::atomic<std::int64_t> next_{0};
};

}  // namespace headkv
