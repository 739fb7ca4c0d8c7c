// The families that the graph knows, as a table of traits, and the hyper-parameters of one model.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "headkv/error.h"
#include "headkv/layer_map.h"
#include "headkv/scores.h"
#include "model/gguf_file.h"

namespace headkv {

enum class RopeKind { adjacent_pairs, halves };  // ggml's NORMAL and NEOX
enum class Presence { never, optional, required };

// What tells one family's layer from another's. A new family that differs only here is one line.
struct Traits {
    std::string_view name;  // general.architecture
    RopeKind rope;
    Presence qkv_bias;
    Presence qk_norm;  // RMS norm over each head of q and k, before RoPE
    // One KV head: the end of its key, which RoPE leaves as it is, is its value, a latent row. A
    // layer may read the rows of an earlier one (attention.shared_from) and has no matrix for its
    // own then (2410.15252; what makes keys and values of latent rows is folded into q and output).
    bool latent = false;
};

std::span<const Traits> architectures();
// Error (bad_input): lists the supported ones.
Result<const Traits*> find_architecture(std::string_view name);

struct Rope {
    std::int64_t dimensions = 0;  // leading part of a head that is rotated
    float base = 10000;
    float frequency_scale = 1;  // 1 / factor of linear or YaRN scaling
    float yarn_mix = 0;         // ggml's ext_factor: 1 with YaRN
    float attention_factor = 1;
    float beta_fast = 32, beta_slow = 1;
    std::int64_t original_context = 0;
};

// All counts are checked against each other and against sane bounds.
struct Hyper {
    const Traits* traits = nullptr;
    HeadShape shape;
    std::int64_t embedding = 0, feed_forward = 0, head_dim_k = 0, head_dim_v = 0, vocabulary = 0;
    std::int64_t context = 0;
    float norm_epsilon = 1e-5F;
    Rope rope;
    std::shared_ptr<const LayerMap> share;  // of latent families, as ModelInfo has it; else null
};

Result<Hyper> read_hyper(const GgufFile& file);

}  // namespace headkv
