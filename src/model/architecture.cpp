#include "model/architecture.h"

#include <ggml.h>

#include <array>
#include <cmath>
#include <optional>
#include <vector>

namespace headkv {

namespace {

constexpr std::array<Traits, 4> kTable{{
    // Llama 2, 3 and 3.1+, Mistral, TinyLlama, SmolLM2
    {"llama", RopeKind::adjacent_pairs, Presence::optional, Presence::never},
    {"qwen2", RopeKind::halves, Presence::required, Presence::never},
    {"qwen3", RopeKind::halves, Presence::optional, Presence::required},
    {"clla", RopeKind::adjacent_pairs, Presence::never, Presence::never, true},
}};

// Reads `architecture.key`s and collects the first complaint.
class Reader {
public:
    Reader(const GgufFile& file, std::string architecture)
        : file_(file), prefix_(std::move(architecture) + ".") {}

    std::int64_t integer(const std::string& key, std::int64_t low, std::int64_t high,
                         std::int64_t fallback = -1) {
        const auto value = file_.integer(prefix_ + key);
        if (!value && fallback >= 0) return fallback;
        if (!value) {
            complain(fmt::format("{}: metadata {}{} is missing or no number", file_.name(), prefix_,
                                 key));
            return low;
        }
        if (*value < low || *value > high) {
            complain(fmt::format("{}: metadata {}{} is {}, allowed are {} to {}", file_.name(),
                                 prefix_, key, *value, low, high));
            return low;
        }
        return *value;
    }

    // A fallback below `low` means that the key is required.
    float number(const std::string& key, double low, double high, double fallback) {
        const auto found = file_.number(prefix_ + key);
        if (!found && fallback < low) {
            complain(fmt::format("{}: metadata {}{} is missing or no number", file_.name(), prefix_,
                                 key));
            return static_cast<float>(low);
        }
        const auto value = found.value_or(fallback);
        if (!std::isfinite(value) || value < low || value > high) {
            complain(fmt::format("{}: metadata {}{} is {}, allowed are {} to {}", file_.name(),
                                 prefix_, key, value, low, high));
            return static_cast<float>(low);
        }
        return static_cast<float>(value);
    }

    std::string text(const std::string& key) { return file_.text(prefix_ + key).value_or(""); }
    std::optional<std::vector<std::int64_t>> integers(const std::string& key) {
        return file_.integers(prefix_ + key);
    }
    bool has(const std::string& key) const { return file_.number(prefix_ + key).has_value(); }

    void complain(std::string message) {
        if (complaint_.empty()) complaint_ = std::move(message);
    }
    const std::string& complaint() const { return complaint_; }

private:
    const GgufFile& file_;
    std::string prefix_, complaint_;
};

Rope read_rope(Reader& reader, const Hyper& hyper) {
    Rope rope;
    rope.dimensions = reader.integer("rope.dimension_count", 2, hyper.head_dim_k, hyper.head_dim_k);
    if (rope.dimensions % 2 != 0) reader.complain("rope.dimension_count is odd");
    rope.base = reader.number("rope.freq_base", 1, 1e12, 10000);
    rope.original_context =
        reader.integer("rope.scaling.original_context_length", 1, 1 << 30, hyper.context);
    const auto kind = reader.text("rope.scaling.type");
    // Older converters wrote the linear factor under another key.
    double factor = reader.number("rope.scaling.factor", 0, 1e6, 0);
    if (factor == 0) factor = reader.number("rope.scale_linear", 0, 1e6, 0);
    if (factor == 0) factor = 1;
    if (kind == "linear" || kind.empty()) {
        rope.frequency_scale = static_cast<float>(1 / factor);
    } else if (kind == "yarn") {
        rope.frequency_scale = static_cast<float>(1 / factor);
        rope.yarn_mix = 1;
        rope.beta_fast = reader.number("rope.scaling.yarn_beta_fast", 0, 1e6, 32);
        rope.beta_slow = reader.number("rope.scaling.yarn_beta_slow", 0, 1e6, 1);
    } else if (kind != "none") {
        reader.complain(
            fmt::format("rope scaling \"{}\" is not supported (none, linear, yarn are)", kind));
    }
    rope.attention_factor = reader.number("rope.scaling.attn_factor", 0, 1e6, 1);
    return rope;
}

// What a latent family has besides.
void read_latent(Reader& reader, const GgufFile& file, Hyper& hyper) {
    if (hyper.shape.kv_heads != 1) {
        reader.complain(fmt::format("{}: {} KV heads, latent rows are of 1", file.name(),
                                    hyper.shape.kv_heads));
    }
    if (hyper.rope.dimensions + hyper.head_dim_v > hyper.head_dim_k) {
        reader.complain(
            fmt::format("{}: a key of {} values has no room for {} that RoPE turns and a latent "
                        "row of {}",
                        file.name(), hyper.head_dim_k, hyper.rope.dimensions, hyper.head_dim_v));
    }
    const auto owner = reader.integers("attention.shared_from");
    if (!owner) return;
    LayerMap map;
    map.architecture = hyper.traits->name;
    map.shape = hyper.shape;
    map.owner = *owner;
    map.trained = true;
    if (std::ssize(map.owner) != hyper.shape.layers) {
        reader.complain(fmt::format("{}: attention.shared_from is of {} layers, the model has {}",
                                    file.name(), map.owner.size(), hyper.shape.layers));
    } else if (const auto wrong = wrong_owner(map.owner); !wrong.empty()) {
        reader.complain(fmt::format("{}: attention.shared_from: {}", file.name(), wrong));
    }
    hyper.share = std::make_shared<const LayerMap>(std::move(map));
}

}  // namespace

std::span<const Traits> architectures() { return kTable; }

Result<const Traits*> find_architecture(std::string_view name) {
    std::string known;
    for (const auto& traits : kTable) {
        if (traits.name == name) return &traits;
        known += known.empty() ? "" : ", ";
        known += traits.name;
    }
    return bad_input("architecture \"{}\" is not supported; supported are: {}", name, known);
}

Result<Hyper> read_hyper(const GgufFile& file) {
    const auto name = file.text("general.architecture");
    if (!name)
        return bad_input("{}: general.architecture is missing, this is no model", file.name());
    const auto traits = find_architecture(*name);
    if (!traits) return bad_input("{}: {}", file.name(), traits.error().message);

    constexpr std::int64_t kMost = 1 << 24;
    Reader reader(file, *name);
    Hyper hyper;
    hyper.traits = *traits;
    hyper.shape.layers = reader.integer("block_count", 1, 4096);
    hyper.embedding = reader.integer("embedding_length", 1, kMost);
    hyper.feed_forward = reader.integer("feed_forward_length", 1, kMost);
    hyper.shape.query_heads = reader.integer("attention.head_count", 1, 65536);
    hyper.shape.kv_heads = reader.integer("attention.head_count_kv", 1, hyper.shape.query_heads,
                                          hyper.shape.query_heads);
    hyper.context = reader.integer("context_length", 1, std::int64_t{1} << 31);
    hyper.norm_epsilon = reader.number("attention.layer_norm_rms_epsilon", 0, 1, -1);
    const auto implied = hyper.embedding / hyper.shape.query_heads;
    hyper.head_dim_k = reader.integer("attention.key_length", 1, 1024, implied);
    hyper.head_dim_v = reader.integer("attention.value_length", 1, 1024, implied);
    if (hyper.head_dim_k < 1 || hyper.head_dim_k > 1024) {
        reader.complain(
            fmt::format("{}: {} values a head (1 to 1024 allowed)", file.name(), hyper.head_dim_k));
    }
    if (hyper.shape.query_heads % hyper.shape.kv_heads != 0) {
        reader.complain(fmt::format("{}: {} query heads cannot share {} key/value heads evenly",
                                    file.name(), hyper.shape.query_heads, hyper.shape.kv_heads));
    }
    if (reader.has("expert_count") && reader.integer("expert_count", 0, kMost) > 0) {
        reader.complain(fmt::format("{}: mixtures of experts are not supported", file.name()));
    }
    if (reader.has("attention.sliding_window") && *name != "llama" &&
        reader.integer("attention.sliding_window", 0, kMost) > 0) {
        reader.complain(fmt::format("{}: sliding-window attention is not supported", file.name()));
    }
    if (reader.complaint().empty()) hyper.rope = read_rope(reader, hyper);
    if (hyper.traits->latent && reader.complaint().empty()) read_latent(reader, file, hyper);
    if (!reader.complaint().empty()) return bad_input("{}", reader.complaint());

    const auto* embedding = file.tensor("token_embd.weight");
    if (embedding == nullptr)
        return bad_input("{}: tensor token_embd.weight is missing", file.name());
    hyper.vocabulary = embedding->ne[1];
    return hyper;
}

}  // namespace headkv
