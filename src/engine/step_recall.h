// Recall while answering: before a step attends, heads of its sequences choose their rows anew from
// the archive, by the step's own queries. A node of its own in front of the attention, on the CPU.
#pragma once

#include <ggml.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/attention_ops.h"
#include "engine/key_clusters.h"
#include "headkv/method.h"

namespace headkv {

// The selection of one sequence in one step.
struct StepSelection {
    const Method* method = nullptr;
    const SequenceCache* archive = nullptr;  // every row before the step, in order of position
    SequenceCache* cache = nullptr;
    const QueryLog* log = nullptr;
    std::vector<KeyClusters>* clusters = nullptr;  // [layers][heads] of the archive; may be null
    std::int64_t first = 0;                        // token of the step that selects and attends
    std::int64_t queries = 1;  // that score: this token's and the last ones of the log
    // [layers][heads] rows that the head holds once that token's own is stored; 0: those it has.
    std::vector<std::int64_t> rows;

    std::int64_t rows_of(std::int64_t layer, std::int64_t head) const {
        return rows[static_cast<std::size_t>(layer * cache->shape().heads + head)];
    }
};

class StepRecall {
public:
    explicit StepRecall(const AttentionShape& shape) : shape_(shape) {}

    // Heads that will select hold at once as many rows as they will then: what is planned for the
    // step after this, such as its attention, is right.
    static void drop_rows(const StepSelection& selection);

    // The selections of a step, one per sequence at most; their rows have been dropped.
    void prepare(std::vector<StepSelection> selections);

    // Node of a layer: q [dim_k, query_heads, tokens], k [dim_k, kv_heads, tokens]. What attends
    // must come after it.
    ggml_tensor* select(ggml_context* context, ggml_tensor* q, ggml_tensor* k, std::int64_t layer);

private:
    struct Layer {
        StepRecall* plan;
        std::int64_t layer;
        std::atomic<std::int64_t> next{0};
    };
    static void compute(ggml_tensor* out, int thread, int threads, void* layer);
    void select_head(const StepSelection& selection, std::int64_t layer, std::int64_t head,
                     const float* queries, const float* keys) const;

    AttentionShape shape_;
    std::vector<StepSelection> selections_;
    std::vector<std::unique_ptr<Layer>> layers_;
};

// Rows [begin, end) of a head of a cache as a prefill has its keys: f16, not rotated.
void append_keys(const SequenceCache& cache, std::int64_t layer, std::int64_t head,
                 std::int64_t begin, std::int64_t end, std::vector<Half>& keys);

// Values [rows] of the first `rows` rows of an archive's head by the clusters of their keys, for
// queries [group][dim_k]; infinite for those that are in no cluster yet. Rows that have become too
// many for that, where the head keeps `kept`, become clusters first.
std::vector<float> cluster_values(const Method& method, const SequenceCache& archive,
                                  std::int64_t layer, std::int64_t head, std::int64_t rows,
                                  std::int64_t kept, std::span<const float> queries,
                                  KeyClusters& clusters);

// Attention of a token and of those before it over the rows of one head of the archive and the
// token's own row, mean over the tokens, which count by `decay` (query_weights()): [group][rows +
// 1]. `queries` [tokens][group][dim_k], not scaled, the newest last; a query sees the rows up to
// its own. `key` [dim_k]: of the newest.
std::vector<float> attention_to_archive(const AttentionShape& shape, kernels::Rows rows,
                                        std::span<const float> queries, const float* key,
                                        double decay);

}  // namespace headkv
