// Text to token ids and back, as llama.cpp does it for the same GGUF vocabulary.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"

namespace headkv {

using Token = std::int32_t;

// Kinds of GGUF vocabulary entries (tokenizer.ggml.token_type).
enum class TokenType : std::int32_t {
    undefined = 0,
    normal = 1,
    unknown = 2,
    control = 3,
    user_defined = 4,
    unused = 5,
    byte = 6
};

// The `tokenizer.*` metadata of a GGUF file, as read. Lengths are checked by Tokenizer::create.
struct Vocabulary {
    std::string model;  // tokenizer.ggml.model: "gpt2" (byte-level BPE), "llama" (SPM)
    std::string pre;    // tokenizer.ggml.pre: "llama-bpe", "qwen2", "smollm", ...
    std::string name;   // general.name: decides rules that no tokenizer.* key carries (Phi-3)
    std::vector<std::string> tokens;  // [vocab] text of each token
    std::vector<float> scores;        // [vocab] SPM merge scores; may be empty for BPE
    std::vector<std::int32_t> types;  // [vocab] TokenType; may be empty (all normal)
    std::vector<std::string> merges;  // BPE merges "left right", best first
    std::optional<Token> bos, eos, eot, eom, unknown, pad;  // ids named by the metadata
    // Marks of fill-in-the-middle prompts; absent ones are found by their usual texts.
    std::optional<Token> fim_prefix, fim_suffix, fim_middle, fim_pad, fim_repo, fim_separator;
    std::optional<bool> add_bos, add_eos,
        add_space_prefix;       // absent: the default of the model kind
    std::string chat_template;  // tokenizer.chat_template (Jinja text), may be empty
};

// A stretch of prompt text. Only in segments with `special` are the texts of control tokens
// (such as <|im_end|>) recognised: a document can never smuggle one in.
struct Segment {
    std::string text;
    bool special = false;
};

class Tokenizer {
public:
    // Errors (bad_input): unknown model or pre-tokenizer (lists the supported ones), arrays whose
    // lengths disagree, ids outside the vocabulary.
    static Result<Tokenizer> create(Vocabulary vocabulary);

    Tokenizer(Tokenizer&&) noexcept;
    Tokenizer& operator=(Tokenizer&&) noexcept;
    ~Tokenizer();

    // Ids of one text. `special`: texts of control tokens become those tokens. `add_bos`: prepend
    // BOS (and append EOS) where the metadata (or the default of the model kind) asks for it.
    // Invalid UTF-8 is tokenized as llama.cpp does (bytes), never an error.
    std::vector<Token> encode(std::string_view text, bool special = false,
                              bool add_bos = true) const;

    // Ids of adjacent segments, as if they were one text: merges cross segment borders, special
    // tokens are recognised only where the segment allows it.
    std::vector<Token> encode(std::span<const Segment> segments, bool add_bos = true) const;

    // Bytes of one token (may be a part of a UTF-8 character). Control tokens are empty unless
    // `special`. Out-of-range ids give an empty string.
    std::string piece(Token token, bool special = false) const;
    // Bytes of a sequence of tokens, with the leading-space rule of SPM vocabularies.
    std::string decode(std::span<const Token> tokens, bool special = false) const;

    std::int64_t size() const;       // vocabulary entries
    bool is_end(Token token) const;  // EOS, EOT, EOM and the known end-of-turn texts
    bool is_control(Token token) const;
    std::optional<Token> bos() const;
    std::optional<Token> eos() const;
    std::optional<Token> find(std::string_view text) const;  // token whose text is exactly this
    const std::string& chat_template() const;                // Jinja text of the GGUF, may be empty

private:
    struct Impl;
    explicit Tokenizer(std::unique_ptr<Impl> impl);
    std::unique_ptr<Impl> impl_;
};

// Turns generated tokens into text without ever emitting half a UTF-8 character.
class StreamDecoder {
public:
    explicit StreamDecoder(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}
    std::string push(Token token);  // complete characters that this token finishes (may be empty)
    std::string flush();            // what is left; an incomplete character becomes U+FFFD

private:
    const Tokenizer* tokenizer_;
    std::string pending_;  // at most 3 bytes of an unfinished character
    bool first_ = true;
};

}  // namespace headkv
