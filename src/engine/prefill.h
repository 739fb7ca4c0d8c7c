// Reads a prompt layer by layer; each finished layer is compressed into every configuration's
// cache.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "cache/sequence_cache.h"
#include "engine/attention_ops.h"
#include "engine/compute.h"
#include "engine/future_queries.h"
#include "engine/graph.h"
#include "engine/key_clusters.h"
#include "engine/layer_views.h"
#include "engine/reconstruction.h"
#include "engine/value_cosines.h"
#include "headkv/engine.h"

namespace headkv {

// One cache that a prefill fills.
struct PrefillTarget {
    Method method;
    std::int64_t reserve = 0;  // free rows a head
    SequenceCache cache;
    QueryLog log;                                   // receives the last prompt query
    std::optional<SequenceCache> archive = {};      // receives every row of the prompt, for recall
    std::vector<KeyClusters> clusters = {};         // [layers * kv_heads] of the archive's rows,
                                                    // where the method ranks them
    std::optional<PromptSelection> selection = {};  // of `method`, while the prompt is read
    // Where Method::rows_have_classes(), and rows are not chosen from an archive:
    std::vector<HeadClasses> classes = {};  // [layers * kv_heads], behind the prompt
    std::vector<TokenKind> kinds = {};      // of all tokens
};

// A prefill cut into steps of one (layer, chunk), so that a caller can do other work between them.
// Every layer may be cut differently: the rows of a layer depend on the tokens before them, not on
// where the chunks begin.
// Peak memory: hidden states [embedding][tokens] f32 + one layer's keys and values f16; with
// Options::share, those of every layer that is still to be read by another, too; with
// Options::repeats, as much again for their tokens, but keys and values of one piece only; with
// Options::draft, room for its few tokens.
class Prefill {
public:
    struct Options {
        std::int64_t chunk = 512;
        bool all_tokens = false;  // the last layer computes every token, for log_probabilities
        // Multiplies and attends in bf16; null: f32.
        const kernels::TileKernels* unit = nullptr;
        // What is read behind the prompt in every layer, for methods that need it.
        std::vector<RepeatPiece> repeats = {};
        // The same, last: its queries look for methods that ask for it (LayerNeeds::draft).
        std::vector<Token> draft = {};
        // Takes what the attention of every layer gives (with all_tokens); must outlive the
        // prefill.
        ValueCosines* cosines = nullptr;
        // Layers that read other layers' rows: all targets' MethodConfig::share. May be null.
        std::shared_ptr<const LayerMap> share = {};
        // Called when a layer that owns rows has been read.
        std::function<void(std::int64_t layer, const LayerRows&)> visit = {};
    };
    // Error (failure): out of memory (names the bytes).
    static Result<std::unique_ptr<Prefill>> create(const Compute& compute, const Model& model,
                                                   std::span<const Token> prompt,
                                                   std::vector<PrefillTarget> targets,
                                                   const Options& options);

    // Does one step of at most `most` tokens (0: Options::chunk); true when nothing is left to do.
    Result<bool> step(std::int64_t most = 0);
    std::int64_t layer() const { return layer_; }
    std::int64_t tokens() const { return tokens_; }
    // Tokens x layers done, and in all; what is read twice counts twice.
    std::int64_t done() const { return layer_ * columns_ + begin_; }
    std::int64_t total() const { return model_.hyper.shape.layers * columns_; }

    // After the last step. Logits of tokens [first, first + count): [count][vocabulary].
    Result<std::vector<float>> logits(std::int64_t first, std::int64_t count);
    // Hidden states behind the last layer and its norm, [tokens][embedding]; needs all_tokens.
    Result<std::vector<float>> final_states();
    std::vector<PrefillTarget>& targets() { return targets_; }
    double compress_ms() const { return compress_ms_; }
    std::int64_t scratch_bytes() const;

private:
    Prefill(const Compute& compute, const Model& model, std::vector<PrefillTarget> targets,
            const Options& options);
    Result<void> allocate(std::span<const Token> prompt);

    // Tokens that lie together: the prompt, or what is read behind it.
    struct Stretch {
        const RepeatPiece* piece = nullptr;  // null: the prompt, or the draft
        std::int64_t first = 0, count = 0;   // columns
        std::int64_t row = 0;                // of its first token, which is its position, too
        bool prompt() const { return first == 0; }
    };
    const Stretch& stretch() const;  // of the next step
    // Keys and values of one layer, read by itself and by those that share them.
    struct Place {
        ggml_tensor* keys = nullptr;    // f16 [dim_k, tokens + longest piece, kv_heads]
        ggml_tensor* values = nullptr;  // f16 [dim_v, the same, kv_heads]
    };
    const Place& place() const { return places_[place_of_[static_cast<std::size_t>(layer_)]]; }
    bool owns() const { return !options_.share || options_.share->owns(layer_); }
    std::size_t assign_places();  // fills place_of_; how many there are
    LayerRows rows() const;       // that layer_ reads
    Result<void> embed(std::int64_t begin, std::int64_t count);
    Result<void> run_chunk(const Stretch& stretch, std::int64_t begin, std::int64_t count);
    // Copies the queries of the tokens that look, as far as they lie in the chunk; f32 q
    // [dim_k, query_heads, count].
    void store_queries(ggml_context* context, ggml_cgraph* graph, ggml_tensor* q,
                       const Stretch& stretch, std::int64_t begin, std::int64_t count) const;
    Result<void> compress_layer();
    Result<void> fill(PrefillTarget& target, std::int64_t layer, const LayerView& view);
    Result<void> compute_graph(ggml_cgraph* graph);
    // The values of a node, once it has been computed.
    Result<std::vector<float>> computed(ggml_context* context, ggml_tensor* node);

    const Compute& compute_;
    const Model::Impl& model_;
    const Tokenizer& tokenizer_;
    std::vector<PrefillTarget> targets_;
    Options options_;
    AttentionShape shape_;
    std::int64_t tokens_ = 0, window_ = 0;  // window_: last tokens whose queries are held
    std::vector<std::int32_t> sentences_;   // where they begin, if a method asks for it
    std::int64_t columns_ = 0;              // tokens_ and all that is read behind the prompt
    std::vector<Stretch> stretches_;        // all columns in order
    std::int64_t layer_ = 0, begin_ = 0;    // the next step: this layer, from this column on
    double compress_ms_ = 0;

    ggml_context_ptr context_;
    ggml_backend_buffer_ptr buffer_;
    ggml_tensor* ids_ = nullptr;        // i32 [columns]
    ggml_tensor* positions_ = nullptr;  // i32 [columns]
    ggml_tensor* hidden_ = nullptr;     // f32 [embedding, columns]
    std::vector<Place> places_;
    std::vector<std::size_t> place_of_;             // [layers]
    ggml_tensor* queries_ = nullptr;                // f32 [dim_k * query_heads, window + draft]
    std::optional<PackedLayer> packed_;             // of layer_, with a matrix unit
    std::int64_t packed_tokens_ = 0;                // of those rows
    std::optional<PackedLayerRows> packed_rows_;    // of layer_, with a matrix unit
    std::optional<FutureQueries> future_;           // of layer_, where a method asks for it
    std::optional<Reconstruction> reconstruction_;  // the same
    std::vector<TokenKind> kinds_;                  // of the prompt, where a method asks for it
    // What layers that share rows have seen, until the last of them: by their owner.
    std::map<std::int64_t, LayerViews::Observed> seen_;
    WorkMemory work_;  // of the graphs
};

}  // namespace headkv
