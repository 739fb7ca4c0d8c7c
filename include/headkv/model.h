// A GGUF model in memory: checked hyper-parameters, weights on their device, tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "headkv/error.h"
#include "headkv/scores.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct LoadOptions {
    std::string device = "auto";  // "auto", "cpu", "cuda"
    int threads = 0;              // 0: one per core
    bool extra_buffers = true;    // repacked / AMX weight layouts where ggml offers them
};

struct ModelInfo {
    std::string path, name, architecture,
        fingerprint;  // fingerprint: 16 hex digits, see docs/formats.md
    HeadShape shape;
    std::int64_t embedding = 0, head_dim_k = 0, head_dim_v = 0, feed_forward = 0, vocabulary = 0;
    std::int64_t context = 0;       // tokens the model was trained (or scaled by its metadata) for
    std::int64_t weight_bytes = 0;  // tensor bytes in the file
    std::int64_t row_bytes = 0;     // one f16 row of one KV head: K and V
    std::string device;             // "cpu", "cuda0", ...
    int threads = 1;
};

// Immutable once loaded; may be shared by several engines.
class Model {
public:
    // Errors (bad_input): not GGUF, truncated, absurd counts, missing or mis-shaped tensors,
    // unsupported architecture (lists the supported ones) or tensor type. Never crashes on input.
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
