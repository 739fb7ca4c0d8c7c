// What a loaded model is made of; seen by src/model and src/engine only.
#pragma once

#include <ggml-backend.h>
#include <ggml-cpp.h>
#include <ggml.h>

#include <memory>
#include <span>
#include <vector>

#include "headkv/model.h"
#include "model/architecture.h"
#include "model/gguf_file.h"

namespace headkv {

// A weight matrix [in, out] as ggml multiplies it, and its untouched bytes in the file (for
// dequantising it once per prompt).
struct Matrix {
    ggml_tensor* tensor = nullptr;
    std::span<const std::byte> file;  // rows of `in` elements of type file_type
    ggml_type file_type = GGML_TYPE_F32;
    std::int64_t in = 0, out = 0;
    explicit operator bool() const { return tensor != nullptr; }
};

// Vectors are f32. Absent parts are null. All parts of a layer lie on its stage's device.
struct LayerWeights {
    ggml_tensor* attention_norm = nullptr;  // [embedding]
    // [embedding, heads * head_dim] ... and back; of a latent family there is no wv, and no wk
    // where the layer reads another's rows.
    Matrix wq, wk, wv, wo;
    ggml_tensor *bq = nullptr, *bk = nullptr, *bv = nullptr;
    ggml_tensor *q_norm = nullptr, *k_norm = nullptr;  // [head_dim_k]
    ggml_tensor* ffn_norm = nullptr;                   // [embedding]
    Matrix gate, up, down;                             // [embedding, feed_forward] twice, and back
    // wq, wk and wv one under another, gate and up likewise: the same memory, for one product in
    // place of several. Empty where they lie apart (LoadOptions::join).
    Matrix qkv, gate_up;
    ggml_tensor* rope_factors = nullptr;  // [rope dimensions / 2], Llama 3.1+; one a stage
};

struct Weights {
    Matrix token_embedding;              // [embedding, vocabulary], on the first stage
    ggml_tensor* output_norm = nullptr;  // [embedding], on the last stage
    Matrix output;                       // [embedding, vocabulary]; tied: the embedding's values
    std::vector<LayerWeights> layers;
};

// Consecutive layers and the device that holds them; info.stages in ggml's terms.
struct StageWeights {
    ggml_backend_dev_t device = nullptr;
    std::int64_t first = 0, layers = 0;
    std::int64_t bytes = 0;                        // that they take of its memory
    std::vector<ggml_context_ptr> contexts;        // tensor descriptions, one a buffer type
    std::vector<ggml_backend_buffer_ptr> buffers;  // their memory
};

struct Model::Impl {
    ModelInfo info;
    Hyper hyper;
    std::unique_ptr<GgufFile> file;
    std::unique_ptr<Tokenizer> tokenizer;
    std::vector<StageWeights> stages;  // front to back, at least one
    Weights weights;
};

}  // namespace headkv
