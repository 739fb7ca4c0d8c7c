// Chat templates: recognised by their marks, never guessed, rendered as segments so that only the
// template's own text may contain control tokens.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/error.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct Message {
    std::string role;     // "system", "user" or "assistant"
    std::string content;  // plain text
};

enum class ChatTemplate {
    chatml,
    llama2,  // system text without marks of its own
    llama3,
    mistral,  // v3
    gemma,
    phi3,
    zephyr,  // turns end with <|endoftext|>
    // The same families with other marks or spacing.
    llama2_sys,        // system text between <<SYS>> marks
    llama2_sys_bos,    // ... and <s> before every later turn
    llama2_sys_strip,  // ... and every message stripped
    mistral_v1,
    mistral_v3_tekken,
    mistral_v7,
    mistral_v7_tekken,
    zephyr_beta  // turns end with </s>: Zephyr-7B, TinyLlama
};

// The names of --chat-template, in the order of the enum: "chatml", "llama2", ...
std::span<const std::string_view> chat_template_names();
std::string_view chat_template_name(ChatTemplate kind);

// By name. Error (bad_input): unknown name, the known ones listed.
Result<ChatTemplate> chat_template_by_name(std::string_view name);
// From the Jinja text inside a GGUF. Error (bad_input): empty or not recognised; names
// --chat-template.
Result<ChatTemplate> chat_template_detect(std::string_view jinja);
// A default system message that the Jinja text itself inserts (SmolLM2, Qwen2.5), empty if none.
std::string chat_template_default_system(std::string_view jinja);

// The conversation as llama.cpp renders it, ready for Tokenizer::encode(segments).
// `generation_prompt` appends the opening of the assistant's turn. BOS is not part of it.
// `default_system` is inserted when the messages hold no system message (empty: none).
std::vector<Segment> chat_render(ChatTemplate kind, std::span<const Message> messages,
                                 bool generation_prompt, std::string_view default_system = {});

}  // namespace headkv
