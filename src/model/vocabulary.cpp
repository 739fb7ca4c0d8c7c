#include "model/vocabulary.h"

#include <limits>
#include <optional>
#include <string>
#include <utility>

namespace headkv {
namespace {

constexpr const char* tokens_key = "tokenizer.ggml.tokens";

// The key's index, checked to hold a value of this type; nothing when the file has no such key.
Result<std::optional<std::int64_t>> find_key(const gguf_context* file, const char* key,
                                             gguf_type type) {
    const std::int64_t index = gguf_find_key(file, key);
    if (index < 0) {
        return std::optional<std::int64_t>();
    }
    const gguf_type found = gguf_get_kv_type(file, index);
    if (found != type) {
        return bad_input("{} is of type {}, expected {}", key, gguf_type_name(found),
                         gguf_type_name(type));
    }
    return std::optional(index);
}

Result<std::optional<std::int64_t>> find_array(const gguf_context* file, const char* key,
                                               gguf_type type) {
    auto index = find_key(file, key, GGUF_TYPE_ARRAY);
    if (!index || !*index) {
        return index;
    }
    const gguf_type found = gguf_get_arr_type(file, **index);
    if (found != type) {
        return bad_input("{} is an array of {}, expected {}", key, gguf_type_name(found),
                         gguf_type_name(type));
    }
    return index;
}

Result<void> read(const gguf_context* file, const char* key, std::string& value) {
    const auto index = find_key(file, key, GGUF_TYPE_STRING);
    if (!index) {
        return tl::unexpected(index.error());
    }
    if (*index) {
        value = gguf_get_val_str(file, **index);
    }
    return {};
}

Result<void> read(const gguf_context* file, const char* key, std::optional<bool>& value) {
    const auto index = find_key(file, key, GGUF_TYPE_BOOL);
    if (!index) {
        return tl::unexpected(index.error());
    }
    if (*index) {
        value = gguf_get_val_bool(file, **index);
    }
    return {};
}

Result<void> read(const gguf_context* file, const char* key, std::optional<Token>& value) {
    const auto index = find_key(file, key, GGUF_TYPE_UINT32);
    if (!index) {
        return tl::unexpected(index.error());
    }
    if (*index) {
        const std::uint32_t id = gguf_get_val_u32(file, **index);
        if (id > static_cast<std::uint32_t>(std::numeric_limits<Token>::max())) {
            return bad_input("{} is {}, which is no token id", key, id);
        }
        value = static_cast<Token>(id);
    }
    return {};
}

Result<void> read(const gguf_context* file, const char* key, std::vector<std::string>& value) {
    const auto index = find_array(file, key, GGUF_TYPE_STRING);
    if (!index) {
        return tl::unexpected(index.error());
    }
    if (*index) {
        const std::size_t count = gguf_get_arr_n(file, **index);
        value.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
            value.emplace_back(gguf_get_arr_str(file, **index, i));
        }
    }
    return {};
}

template <class T>
Result<void> read_numbers(const gguf_context* file, const char* key, gguf_type type,
                          std::vector<T>& value) {
    const auto index = find_array(file, key, type);
    if (!index) {
        return tl::unexpected(index.error());
    }
    if (*index) {
        const std::size_t count = gguf_get_arr_n(file, **index);
        const auto* data = static_cast<const T*>(gguf_get_arr_data(file, **index));
        value.assign(data, data + count);
    }
    return {};
}

Result<void> read(const gguf_context* file, const char* key, std::vector<float>& value) {
    return read_numbers(file, key, GGUF_TYPE_FLOAT32, value);
}

Result<void> read(const gguf_context* file, const char* key, std::vector<std::int32_t>& value) {
    return read_numbers(file, key, GGUF_TYPE_INT32, value);
}

// The older keys of the same marks count where the current one is missing.
Result<void> read_fim(const gguf_context* file, const char* key, const char* old_key,
                      std::optional<Token>& value) {
    auto done = read(file, key, value);
    return done && !value ? read(file, old_key, value) : done;
}

}  // namespace

Result<Vocabulary> read_vocabulary(const gguf_context* file) {
    Vocabulary v;
    Result<void> done;
    const auto next = [&](const char* key, auto& value) {
        if (done) {
            done = read(file, key, value);
        }
    };
    const auto next_fim = [&](const char* key, const char* old_key, std::optional<Token>& value) {
        if (done) {
            done = read_fim(file, key, old_key, value);
        }
    };
    next("tokenizer.ggml.model", v.model);
    next("tokenizer.ggml.pre", v.pre);
    next("general.name", v.name);
    next(tokens_key, v.tokens);
    next("tokenizer.ggml.scores", v.scores);
    next("tokenizer.ggml.token_type", v.types);
    next("tokenizer.ggml.merges", v.merges);
    next("tokenizer.ggml.bos_token_id", v.bos);
    next("tokenizer.ggml.eos_token_id", v.eos);
    next("tokenizer.ggml.eot_token_id", v.eot);
    next("tokenizer.ggml.eom_token_id", v.eom);
    next("tokenizer.ggml.unknown_token_id", v.unknown);
    next("tokenizer.ggml.padding_token_id", v.pad);
    next_fim("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id", v.fim_prefix);
    next_fim("tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.suffix_token_id", v.fim_suffix);
    next_fim("tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.middle_token_id", v.fim_middle);
    next("tokenizer.ggml.fim_pad_token_id", v.fim_pad);
    next("tokenizer.ggml.fim_rep_token_id", v.fim_repo);
    next("tokenizer.ggml.fim_sep_token_id", v.fim_separator);
    next("tokenizer.ggml.add_bos_token", v.add_bos);
    next("tokenizer.ggml.add_eos_token", v.add_eos);
    next("tokenizer.ggml.add_space_prefix", v.add_space_prefix);
    next("tokenizer.chat_template", v.chat_template);
    if (!done) {
        return tl::unexpected(std::move(done).error());
    }
    if (v.model.empty() || v.tokens.empty()) {
        return bad_input("the file has no vocabulary ({}); convert the model with its tokenizer",
                         v.model.empty() ? "tokenizer.ggml.model" : tokens_key);
    }
    return v;
}

}  // namespace headkv
