// Reads a prompt layer by layer with ggml's own operations alone, for devices that run no kernels
// of ours. While the device computes a layer, the host selects the rows of the one before. Each
// stage of a model computes its layers on its own device; the hidden states of all tokens go to it
// once.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/compute.h"
#include "engine/device_cache.h"
#include "engine/graph.h"
#include "engine/pipeline.h"
#include "headkv/engine.h"

namespace headkv {

// One cache that a prefill fills.
struct DeviceTarget {
    Method method;
    std::shared_ptr<DeviceCache> cache;
    std::int64_t slot = 0;
    std::vector<std::vector<std::int32_t>> kept = {};  // [layers x kv_heads] positions
};

class DevicePrefill {
public:
    struct Options {
        std::int64_t chunk = 2048;  // made whole blocks
        bool all_tokens = false;    // the last layer computes every token, for log_probabilities
        // The last tokens of `text` that are a draft behind the prompt: their queries look for
        // methods that ask for it (LayerNeeds::draft), no cache sees them.
        std::int64_t draft = 0;
    };
    // `text`: the prompt, and the draft. Error (failure): out of memory (names the bytes).
    static Result<std::unique_ptr<DevicePrefill>> create(const Pipeline& pipeline,
                                                         const Model& model,
                                                         std::span<const Token> text,
                                                         std::vector<DeviceTarget> targets,
                                                         const Options& options);
    ~DevicePrefill();

    // Queues one (layer, chunk); true when all is computed. `most` > 0: of at most so many tokens,
    // in whole blocks and at least one block (see fill_masks), and waits for it, so that the caller
    // sees what the next one will take.
    Result<bool> step(std::int64_t most = 0);
    std::int64_t layer() const { return layer_; }
    std::int64_t tokens() const { return tokens_; }
    std::int64_t prompt_tokens() const { return tokens_ - options_.draft; }
    std::int64_t done() const { return layer_ * tokens_ + begin_; }
    std::int64_t total() const { return model_.hyper.shape.layers * tokens_; }
    // After the last step. Logits of tokens [first, first + count): [count][vocabulary].
    Result<std::vector<float>> logits(std::int64_t first, std::int64_t count);
    std::vector<DeviceTarget>& targets() { return targets_; }
    double compress_ms() const { return compress_ms_; }   // of the host
    std::int64_t scratch_bytes() const;                   // on all devices
    std::int64_t scratch_bytes(std::size_t stage) const;  // on one

private:
    DevicePrefill(const Pipeline& pipeline, const Model& model, std::vector<DeviceTarget> targets,
                  const Options& options);
    Result<void> allocate(std::span<const Token> text);
    Result<void> fill_masks(std::size_t stage);
    ggml_cgraph* new_graph(std::size_t stage, ggml_context* context) const;
    Result<void> run(std::size_t stage, ggml_cgraph* graph);
    // Hidden states of a chunk, from the stage before.
    void take_over(std::size_t stage, std::int64_t begin, std::int64_t count);
    ggml_tensor* hidden(std::size_t stage, ggml_context* context, std::int64_t begin,
                        std::int64_t count) const;
    Result<void> embed(std::int64_t begin, std::int64_t count);
    Result<void> run_chunk(std::int64_t begin, std::int64_t count);
    Result<void> observe();   // queues the observation of layer_
    Result<void> compress();  // rows of layer pending_ into every target
    Result<void> compact(DeviceTarget& target, std::span<const std::vector<std::int32_t>> keep);
    // Mean attention of `queries` tokens, behind which `skip` more stand, a draft's included.
    struct Looking {
        std::int64_t queries = 0, skip = 0;
        double decay = 1;  // what they count, see query_weights()
        std::int64_t alike = 0;
        bool operator==(const Looking&) const = default;
    };
    Looking looking(const LayerNeeds& needs) const;
    struct Seen {
        Looking looking;
        QueryWeights counts;
        ggml_tensor* mask = nullptr;     // f32 [tokens, queries]
        ggml_tensor* weights = nullptr;  // f32 [1, queries]; null: all count alike
        ggml_tensor* mean = nullptr;     // f32 [tokens, query_heads], on the device
        ggml_tensor* host = nullptr;     // the same in memory that the device writes to by itself
    };

    Result<void> allocate(std::size_t stage, std::span<const Looking> observations);

    // What of it lies on a stage's device. Null: what a stage without layers does not need.
    struct Place {
        ggml_context_ptr context, host_context, mask_context;
        ggml_backend_buffer_ptr buffer, host_buffer, mask_buffer;
        ggml_tensor* ids = nullptr;        // i32 [tokens], on the first stage
        ggml_tensor* positions = nullptr;  // i32 [tokens]
        // f32 [embedding, tokens]; of a first stage without layers [embedding, chunk]
        ggml_tensor* hidden = nullptr;
        ggml_tensor* keys[2] = {};       // f16 [dim_k, padded, kv_heads], of layer % 2
        ggml_tensor* values[2] = {};     // f16 [dim_v, padded, kv_heads]
        ggml_tensor* queries = nullptr;  // f32 [dim_k * query_heads, window]
        ggml_tensor* chosen = nullptr;   // i32 [2 * kv_heads * padded], see compact
        // i32, as long, in memory that the device reads by itself, and how much of it is taken by
        // lists that the device may still have to read
        ggml_tensor* host_lists = nullptr;
        std::int64_t lists_used = 0;
        ggml_tensor* causal = nullptr;  // f16 [padded + chunk, chunk], see fill_masks
        std::vector<Seen> seen;
        ggml_backend_event_ptr observed;   // null where the device has none
        std::unique_ptr<WorkMemory> work;  // of the graphs
    };

    const Pipeline& pipeline_;
    const Model::Impl& model_;
    std::vector<DeviceTarget> targets_;
    Options options_;
    AttentionShape shape_;
    std::int64_t tokens_ = 0, padded_ = 0, window_ = 0;  // window_: last tokens' queries held
    std::vector<Token> sentences_of_;      // the prompt, if a method asks where sentences begin
    std::vector<std::int32_t> sentences_;  // found while the device is busy
    std::vector<float> observed_;          // of the prompt alone, for one target
    std::int64_t layer_ = 0, begin_ = 0;
    std::int64_t pending_ = -1;  // layer whose rows wait to be selected
    double compress_ms_ = 0;
    std::vector<Place> places_;  // [stages]
};

}  // namespace headkv
