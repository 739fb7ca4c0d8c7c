// Attention as custom ggml nodes on the CPU: work is cut into units that threads take in turn.
// Each op's plan object must live until the graph has been computed.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cache/sequence_cache.h"
#include "headkv/scores.h"
#include "kernels/attention.h"
#include "kernels/tiles.h"

namespace headkv {

struct AttentionShape {
    HeadShape heads;
    std::int64_t dim_k = 0, dim_v = 0;
    float scale = 1;  // 1 / sqrt(dim_k)
};

// One layer's rows packed for a matrix unit, in blocks of kernels::kPackedRows.
class PackedLayerRows {
public:
    // Whether heads of these dimensions can be packed.
    static bool fits(const AttentionShape& shape);
    PackedLayerRows(const kernels::TileKernels& unit, const AttentionShape& shape,
                    std::int64_t tokens);

    const kernels::TileKernels& unit() const { return *unit_; }
    kernels::PackedRows head(std::int64_t head) const;
    // Packs one block of a head from the layer's rows up to `end`.
    void pack(const LayerRows& rows, std::int64_t head, std::int64_t block, std::int64_t end);

private:
    const kernels::TileKernels* unit_;
    AttentionShape shape_;
    std::int64_t blocks_;
    kernels::PackedBuffer keys_, values_;  // [kv_heads][blocks][...]
};

// Causal attention of one prefill chunk over the layer's rows so far.
struct PrefillAttention {
    AttentionShape shape;
    LayerRows rows;                     // [kv_heads][tokens][dim], chunk included
    PackedLayerRows* packed = nullptr;  // the same rows, to be attended in bf16; null: exact
    std::int64_t unpacked = 0;          // first row that was not there when last packed
    std::atomic<std::int64_t> next_packed{0};
    std::int64_t position = 0;          // of the chunk's first token
    std::atomic<std::int64_t> next{0};  // next unit of work
};
// q [dim_k, query_heads, chunk] -> [dim_v * query_heads, chunk]. `after`: nodes that write the
// rows.
ggml_tensor* prefill_attention(ggml_context* context, ggml_tensor* q, std::span<ggml_tensor*> after,
                               PrefillAttention& plan);

// Mean attention of `count` queries over all keys (f32 softmax) up to the query's own; what each
// query counts: query_weights().
struct Observation {
    AttentionShape shape;
    LayerRows rows;
    const float* queries = nullptr;  // [count][query_heads][dim_k]
    std::int64_t count = 0;
    std::int64_t skip = 0;  // tokens behind the last query's; 0: these are the last tokens'
    bool squared = false;   // the mean of the squares instead
    double decay = 1;
    std::int64_t alike = 0;
    std::atomic<std::int64_t> next{0};
};
// -> [tokens, query_heads] f32.
ggml_tensor* observe(ggml_context* context, Observation& plan);

// The last queries of one sequence, kept for re-selection and calibration.
struct QueryLog {
    std::int64_t capacity = 0;  // tokens
    std::int64_t written = 0;   // tokens ever written; the newest is (written - 1) % capacity
    std::int64_t layers = 0, width = 0;  // width: query_heads * dim_k
    std::vector<float> data;             // [capacity][layers][width]

    QueryLog(std::int64_t layer_count, std::int64_t query_width, std::int64_t tokens);
    float* at(std::int64_t token, std::int64_t layer);
    const float* at(std::int64_t token, std::int64_t layer) const;
    std::int64_t recorded() const { return written < capacity ? written : capacity; }
    // Another capacity; the newest queries stay.
    void resize(std::int64_t tokens);
};

// One decode step of several sequences: appends each token's row to every head and attends to
// everything before it. The same plan serves all layers of the step.
class DecodeAttention {
public:
    struct Slot {
        SequenceCache* cache = nullptr;
        QueryLog* log = nullptr;
        std::int64_t first = 0;  // first token of the step's tokens, which are adjacent
        std::int64_t count = 0;
    };
    explicit DecodeAttention(const AttentionShape& shape) : shape_(shape) {}

    // Cuts the work of a step. Every slot must have room for its tokens.
    void prepare(std::span<const Slot> slots, std::int64_t layers);

    // q [dim_k, query_heads, tokens], k, v [dim, kv_heads, tokens] -> [dim_v * query_heads,
    // tokens]. `after`: a node that must have run before, or null. Where a slot's layer reads
    // another's rows, that layer has stored the tokens' rows; k and v are of no account, and null
    // where that is so for all slots.
    ggml_tensor* attend(ggml_context* context, ggml_tensor* q, ggml_tensor* k, ggml_tensor* v,
                        std::int64_t layer, ggml_tensor* after = nullptr);

private:
    struct Unit {
        std::int64_t slot, head;
        std::int64_t begin, end;  // rows held before the step
        bool tail;                // also appends and attends the step's own rows
        std::int64_t parts;       // units that share this (slot, head)
        std::int64_t join;        // index of their countdown
        std::int64_t state;       // offset of the partial results; -1 if alone
    };
    struct Layer {
        std::vector<Unit> units;
        std::atomic<std::int64_t> next{0};
    };
    struct Node {
        DecodeAttention* plan;
        std::int64_t layer;
    };
    static void compute(ggml_tensor* out, int thread, int threads, void* node);
    void run_unit(const Unit& unit, std::int64_t layer, ggml_tensor* out);
    void join(const Unit& last, std::int64_t layer, ggml_tensor* out);

    AttentionShape shape_;
    std::vector<Slot> slots_;
    std::vector<std::unique_ptr<Layer>> layers_;
    std::vector<std::unique_ptr<Node>> nodes_;
    std::unique_ptr<std::atomic<std::int64_t>[]> left_;  // parts still running, per join
    std::size_t joins_ = 0;
    std::vector<float> states_;  // partial results of shared (slot, head)s
};

}  // namespace headkv
