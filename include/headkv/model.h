// A GGUF model in memory: checked hyper-parameters, weights on their device, tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "headkv/error.h"
#include "headkv/layer_map.h"
#include "headkv/scores.h"
#include "headkv/tokenizer.h"

namespace headkv {

// Consecutive layers on one device.
struct Stage {
    std::string device;  // as LoadOptions has it; of a loaded model "cpu", "cuda0", ...
    std::int64_t layers = 0;
    std::int64_t weight_bytes = 0;  // on it, once loaded
};

struct LoadOptions {
    // "auto", "cpu", "cuda" (the first GPU), or a device as ggml names it: "cuda1", "vulkan0".
    std::string device = "auto";
    int threads = 0;            // 0: one per core
    bool extra_buffers = true;  // repacked / AMX weight layouts where ggml offers them
    // Matrices that multiply the same columns lie one under another, for one product in place of
    // several: by default where weights are copied into a device's own memory. Elsewhere it costs
    // a copy of the weights.
    std::optional<bool> join = {};
    // All layers, front to back, instead of `device`: the first stage embeds the tokens, the last
    // one makes the logits; these two may have no layers. Engines compute stage after stage, with
    // ggml's own operations.
    std::vector<Stage> stages = {};
};

struct ModelInfo {
    std::string path, name, architecture,
        fingerprint;  // fingerprint: 16 hex digits, see docs/formats.md
    HeadShape shape;
    std::int64_t embedding = 0, head_dim_k = 0, head_dim_v = 0, feed_forward = 0, vocabulary = 0;
    std::int64_t context = 0;       // tokens the model was trained (or scaled by its metadata) for
    std::int64_t weight_bytes = 0;  // tensor bytes in the file
    std::vector<std::int64_t> layer_bytes;  // [layers] of these, a layer's
    std::int64_t embedding_bytes = 0;       // the token embedding's
    std::int64_t output_bytes = 0;  // the output matrix's (the embedding's, where tied) and norm's
    // Of these, what every decode step reads: all but an embedding that rows are only taken from.
    std::int64_t step_bytes = 0;
    std::int64_t step_weights = 0;  // elements of the matrices among them
    std::int64_t row_bytes = 0;     // one f16 row of one KV head: K and V
    std::string device;             // "cpu", "cuda0", ...; of several stages "cpu+cuda0"
    std::vector<Stage> stages;      // front to back, at least one; with its device's name
    int threads = 1;
    // Layers that read the rows of earlier ones, as the model was trained: engines share so,
    // whatever the method. Null: every layer has its own.
    std::shared_ptr<const LayerMap> share;
};

// What a file's header says of a model: no weight is loaded, `device` and `stages` stay empty.
// Errors (bad_input): not GGUF, truncated, absurd counts, unsupported architecture.
Result<ModelInfo> read_model_info(const std::filesystem::path& file);

// Memory of the device that LoadOptions::device names.
struct DeviceMemory {
    std::string device;  // as ModelInfo has it
    bool own = false;    // its own memory, not the machine's
    std::int64_t free = 0, total = 0;
};
// Error: no such device.
Result<DeviceMemory> device_memory(const std::string& name);
// The GPUs that ggml sees, in its order.
std::vector<DeviceMemory> gpus();

// Immutable once loaded; may be shared by several engines.
class Model {
public:
    // Errors (bad_input): not GGUF, truncated, absurd counts, missing or mis-shaped tensors,
    // unsupported architecture (lists the supported ones) or tensor type, no such device, stages
    // that are not all layers. Never crashes on input.
    static Result<std::shared_ptr<const Model>> load(const std::filesystem::path& file,
                                                     const LoadOptions& options = {});
    ~Model();
    Model(const Model&) = delete;
    Model& operator=(const Model&) = delete;

    const ModelInfo& info() const;
    const Tokenizer& tokenizer() const;

    struct Impl;  // src/model/model_impl.h
    const Impl& impl() const { return *impl_; }

private:
    explicit Model(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

}  // namespace headkv
