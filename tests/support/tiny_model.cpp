#include "support/tiny_model.h"

#include <fmt/format.h>
#include <ggml.h>
#include <gguf.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>

#include "support/random.h"

namespace headkv::test {
namespace {

constexpr std::array kMerges = {"t h", "th e", "i n", "e r", "\u0120 t", "a n", "o n", "\u0120 a"};
constexpr std::array kControl = {"<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"};

void append_utf8(std::string& text, std::uint32_t code) {
    if (code < 0x80) {
        text += static_cast<char>(code);
    } else {  // the byte alphabet ends below U+0800
        text += static_cast<char>(0xC0 | (code >> 6));
        text += static_cast<char>(0x80 | (code & 0x3F));
    }
}

// The text that byte-level BPE vocabularies give a byte: itself where it is visible, else a letter
// from U+0100 on.
std::vector<std::string> byte_alphabet() {
    std::vector<std::string> texts(256);
    std::uint32_t next = 0x100;
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
        const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) ||
                             (byte >= 0xAE && byte <= 0xFF);
        append_utf8(texts[byte], visible ? byte : next++);
    }
    return texts;
}

struct TinyVocabulary {
    std::vector<std::string> tokens;
    std::vector<std::int32_t> types;
};

TinyVocabulary vocabulary() {
    TinyVocabulary result;
    result.tokens = byte_alphabet();
    for (const std::string merge : kMerges) {
        const std::size_t space = merge.find(' ');
        result.tokens.push_back(merge.substr(0, space) + merge.substr(space + 1));
    }
    result.types.assign(result.tokens.size(), static_cast<std::int32_t>(TokenType::normal));
    for (const char* control : kControl) {
        result.tokens.emplace_back(control);
        result.types.push_back(static_cast<std::int32_t>(TokenType::control));
    }
    return result;
}

struct GgufDelete {
    void operator()(gguf_context* context) const { gguf_free(context); }
};
struct GgmlDelete {
    void operator()(ggml_context* context) const { ggml_free(context); }
};

class Writer {
public:
    explicit Writer(const TinyModel& options)
        : options_(options), random_(options.seed), gguf_(gguf_init_empty()) {
        ggml_init_params params{};
        params.mem_size = std::size_t{64} << 20;
        tensors_.reset(ggml_init(params));
        if (!gguf_ || !tensors_) throw std::runtime_error("tiny model: out of memory");
    }

    void write(const std::filesystem::path& file) {
        metadata();
        tokenizer();
        weights();
        if (!gguf_write_to_file(gguf_.get(), file.c_str(), false)) {
            throw std::runtime_error(fmt::format("tiny model: cannot write {}", file.string()));
        }
    }

private:
    std::string key(const char* name) const { return options_.architecture + "." + name; }
    void number(const char* name, std::int64_t value) {
        gguf_set_val_u32(gguf_.get(), key(name).c_str(), static_cast<std::uint32_t>(value));
    }
    void real(const char* name, float value) {
        gguf_set_val_f32(gguf_.get(), key(name).c_str(), value);
    }

    void metadata() {
        gguf_set_val_str(gguf_.get(), "general.architecture", options_.architecture.c_str());
        gguf_set_val_str(gguf_.get(), "general.name", "tiny");
        number("block_count", options_.layers);
        number("context_length", options_.context);
        number("embedding_length", options_.embedding);
        number("feed_forward_length", options_.feed_forward);
        number("attention.head_count", options_.query_heads);
        if (options_.kv_heads != options_.query_heads) {  // optional key: absent means ungrouped
            number("attention.head_count_kv", options_.kv_heads);
        }
        if (options_.head_dim * options_.query_heads != options_.embedding || options_.latent > 0) {
            number("attention.key_length", options_.head_dim);
            number("attention.value_length",
                   options_.latent > 0 ? options_.latent : options_.head_dim);
        }
        if (!options_.shared_from.empty()) {
            const std::vector<std::int32_t> from(options_.shared_from.begin(),
                                                 options_.shared_from.end());
            gguf_set_arr_data(gguf_.get(), key("attention.shared_from").c_str(), GGUF_TYPE_INT32,
                              from.data(), from.size());
        }
        real("attention.layer_norm_rms_epsilon", 1e-5F);
        real("rope.freq_base", options_.rope_base);
        if (options_.rope_dimensions > 0) number("rope.dimension_count", options_.rope_dimensions);
        if (options_.rope_scaling == RopeScaling::none) return;
        const bool yarn = options_.rope_scaling == RopeScaling::yarn;
        gguf_set_val_str(gguf_.get(), key("rope.scaling.type").c_str(), yarn ? "yarn" : "linear");
        real("rope.scaling.factor", options_.rope_scaling_factor);
        if (yarn) number("rope.scaling.original_context_length", options_.original_context);
    }

    void tokenizer() {
        const TinyVocabulary words = vocabulary();
        std::vector<const char*> texts;
        texts.reserve(words.tokens.size());
        for (const std::string& text : words.tokens) texts.push_back(text.c_str());
        std::vector<const char*> merges(kMerges.begin(), kMerges.end());
        gguf_context* gguf = gguf_.get();
        gguf_set_val_str(gguf, "tokenizer.ggml.model", "gpt2");
        const std::string pre = options_.architecture == "llama" ? "smollm" : "qwen2";
        gguf_set_val_str(gguf, "tokenizer.ggml.pre",
                         options_.pre.empty() ? pre.c_str() : options_.pre.c_str());
        gguf_set_arr_str(gguf, "tokenizer.ggml.tokens", texts.data(), texts.size());
        gguf_set_arr_data(gguf, "tokenizer.ggml.token_type", GGUF_TYPE_INT32, words.types.data(),
                          words.types.size());
        gguf_set_arr_str(gguf, "tokenizer.ggml.merges", merges.data(), merges.size());
        const auto first = static_cast<std::uint32_t>(words.tokens.size() - kControl.size());
        gguf_set_val_u32(gguf, "tokenizer.ggml.unknown_token_id", first);
        gguf_set_val_u32(gguf, "tokenizer.ggml.bos_token_id", first + 1);
        gguf_set_val_u32(gguf, "tokenizer.ggml.eos_token_id", first + 4);
        gguf_set_val_bool(gguf, "tokenizer.ggml.add_bos_token", false);
        gguf_set_val_str(gguf, "tokenizer.chat_template",
                         "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' "
                         "+ message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}");
    }

    void weights() {
        const TinyModel& o = options_;
        const std::int64_t words = tiny_vocabulary();
        const std::int64_t query = o.query_heads * o.head_dim, rows = o.kv_heads * o.head_dim;
        const std::int64_t seen = o.latent > 0 ? o.query_heads * o.latent : query;
        // Attention of a random model is flat unless q and k are large; 1.4 makes softmax inputs
        // with a standard deviation of about 2, so that heads do prefer some rows.
        matrix("token_embd.weight", o.embedding, words, 0.3F * root(o.embedding), o.embedding_type);
        vector("output_norm.weight", o.embedding, 1.0F, 0.1F);
        if (!o.tied) matrix("output.weight", o.embedding, words, 2.0F, o.embedding_type);
        if (o.rope_factors) rope_factors();
        for (std::int64_t layer = 0; layer < o.layers; ++layer) {
            const auto name = [&](const char* part) {
                return fmt::format("blk.{}.{}", layer, part);
            };
            vector(name("attn_norm.weight"), o.embedding, 1.0F, 0.1F);
            matrix(name("attn_q.weight"), o.embedding, query, 1.4F, o.weight_type);
            // a test's map may be too short
            const bool reads = layer < std::ssize(o.shared_from) &&
                               o.shared_from[static_cast<std::size_t>(layer)] != layer;
            if (!reads) matrix(name("attn_k.weight"), o.embedding, rows, 1.4F, o.weight_type);
            if (o.latent == 0) {
                matrix(name("attn_v.weight"), o.embedding, rows, 1.0F, o.weight_type);
            }
            matrix(name("attn_output.weight"), seen, o.embedding, 0.4F, o.weight_type);
            if (o.architecture == "qwen2") {
                vector(name("attn_q.bias"), query, 0.0F, 0.5F);
                vector(name("attn_k.bias"), rows, 0.0F, 0.5F);
                vector(name("attn_v.bias"), rows, 0.0F, 0.5F);
            }
            if (o.architecture == "qwen3") {
                vector(name("attn_q_norm.weight"), o.head_dim, 1.4F, 0.2F);
                vector(name("attn_k_norm.weight"), o.head_dim, 1.4F, 0.2F);
            }
            vector(name("ffn_norm.weight"), o.embedding, 1.0F, 0.1F);
            matrix(name("ffn_gate.weight"), o.embedding, o.feed_forward, 1.0F, o.weight_type);
            matrix(name("ffn_up.weight"), o.embedding, o.feed_forward, 1.0F, o.weight_type);
            matrix(name("ffn_down.weight"), o.feed_forward, o.embedding, 0.5F, o.weight_type);
        }
    }

    static float root(std::int64_t n) { return std::sqrt(static_cast<float>(n)); }

    // gain 1: outputs as large as the inputs
    void matrix(const std::string& name, std::int64_t in, std::int64_t out, float gain,
                ggml_type type) {
        std::vector<float> values(static_cast<std::size_t>(in * out));
        for (float& value : values) value = random_.normal() * gain / root(in);
        if (in % ggml_blck_size(type) != 0) type = GGML_TYPE_F32;
        ggml_tensor* tensor = ggml_new_tensor_2d(tensors_.get(), type, in, out);
        if (type == GGML_TYPE_F32) {
            std::memcpy(tensor->data, values.data(), values.size() * sizeof(float));
        } else {
            ggml_quantize_chunk(type, values.data(), tensor->data, 0, out, in, nullptr);
        }
        add(tensor, name);
    }

    void vector(const std::string& name, std::int64_t n, float mean, float deviation) {
        ggml_tensor* tensor = ggml_new_tensor_1d(tensors_.get(), GGML_TYPE_F32, n);
        for (float& value : floats(tensor)) value = mean + deviation * random_.normal();
        add(tensor, name);
    }

    // Low frequencies are slowed down, high ones are not, as Llama 3.1 ships them.
    void rope_factors() {
        const std::int64_t n = options_.head_dim / 2;
        ggml_tensor* tensor = ggml_new_tensor_1d(tensors_.get(), GGML_TYPE_F32, n);
        float factor = 1;
        for (float& value : floats(tensor)) {
            value = factor;
            factor += 7.0F / static_cast<float>(n);
        }
        add(tensor, "rope_freqs.weight");
    }

    static std::span<float> floats(ggml_tensor* tensor) {
        return {static_cast<float*>(tensor->data), static_cast<std::size_t>(tensor->ne[0])};
    }

    void add(ggml_tensor* tensor, const std::string& name) {
        ggml_set_name(tensor, name.c_str());
        gguf_add_tensor(gguf_.get(), tensor);
    }

    TinyModel options_;
    Random random_;
    std::unique_ptr<gguf_context, GgufDelete> gguf_;
    std::unique_ptr<ggml_context, GgmlDelete> tensors_;
};

}  // namespace

void write_tiny_model(const TinyModel& options, const std::filesystem::path& file) {
    Writer(options).write(file);
}

std::int64_t tiny_vocabulary() {
    return static_cast<std::int64_t>(256 + kMerges.size() + kControl.size());
}

std::vector<Token> random_tokens(std::int64_t count, std::uint64_t seed, std::int64_t vocabulary) {
    Random random(seed);
    std::vector<Token> tokens(static_cast<std::size_t>(count));
    for (Token& token : tokens) token = static_cast<Token>(random.below(vocabulary));
    return tokens;
}

TempFolder::TempFolder() {
    static std::atomic<int> next{0};
    path_ = std::filesystem::temp_directory_path() /
            fmt::format("headkv-test-{}-{}", ::getpid(), next++);
    std::filesystem::create_directories(path_);
}

TempFolder::~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path real_model(const std::filesystem::path& source_folder) {
    if (const char* named = std::getenv("HEADKV_TEST_MODEL")) return named;
    std::filesystem::path usual = source_folder / ".deps" / "models" / "smollm2-135m.gguf";
    return std::filesystem::exists(usual) ? usual : std::filesystem::path{};
}

}  // namespace headkv::test
