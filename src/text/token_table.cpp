#include "text/token_table.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <span>

namespace headkv {
namespace {

using Texts = std::span<const std::string_view>;

constexpr std::array<std::string_view, 12> turn_ends = {"<|eot_id|>",
                                                        "<|im_end|>",
                                                        "<|end|>",
                                                        "<end_of_turn>",
                                                        "<|endoftext|>",
                                                        "<|end_of_text|>",
                                                        "<EOT>",
                                                        "_<EOT>",
                                                        "[EOT]",
                                                        "<\uFF5Cend\u2581of\u2581sentence\uFF5C>",
                                                        "<end_of_utterance>",
                                                        "</s>"};
constexpr std::array<std::string_view, 10> other_ends = {
    "<|eom_id|>", "<|return|>", "<|call|>", "<|flush|>",        "<|calls|>",
    "[EOS]",      "<eos>",      "<turn|>",  "<|tool_response>", "[e~["};

// Marks of fill-in-the-middle prompts, for vocabularies whose metadata does not name them.
constexpr std::array<std::string_view, 8> fim_prefixes = {
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>",    "<\uFF5Cfim\u2581begin\uFF5C>",
    "<PRE>",          "\u2581<PRE>",  "<|code_prefix|>", "<|prefix|>"};
constexpr std::array<std::string_view, 8> fim_suffixes = {
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>",    "<\uFF5Cfim\u2581hole\uFF5C>",
    "<SUF>",          "\u2581<SUF>",  "<|code_suffix|>", "<|suffix|>"};
constexpr std::array<std::string_view, 8> fim_middles = {
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>",    "<\uFF5Cfim\u2581end\uFF5C>",
    "<MID>",          "\u2581<MID>",  "<|code_middle|>", "<|middle|>"};
constexpr std::array<std::string_view, 5> fim_pads = {"<|fim_pad|>", "<fim-pad>", "<fim_pad>",
                                                      "<PAD>", "[PAD]"};
constexpr std::array<std::string_view, 5> fim_repos = {"<|fim_repo|>", "<|repo_name|>",
                                                       "<fim-repo>", "<REPO>", "<reponame>"};
constexpr std::array<std::string_view, 1> fim_separators = {"<|file_sep|>"};
// Structure of gpt-oss replies: always matched, always shown.
constexpr std::array<std::string_view, 4> harmony_marks = {"<|channel|>", "<|message|>",
                                                           "<|start|>", "<|constrain|>"};

std::uint8_t attribute_of(std::int32_t type) {
    switch (static_cast<TokenType>(type)) {
        case TokenType::normal:
            return attribute_normal;
        case TokenType::unknown:
            return attribute_unknown;
        case TokenType::control:
            return attribute_control;
        case TokenType::user_defined:
            return attribute_user_defined;
        case TokenType::byte:
            return attribute_byte;
        case TokenType::undefined:
        case TokenType::unused:
            break;
    }
    return 0;
}

void set(TokenTable& table, Token token, TokenAttribute attribute, bool on = true) {
    auto& bits = table.attributes[static_cast<std::size_t>(token)];
    bits = static_cast<std::uint8_t>(on ? bits | attribute : bits & ~attribute);
}

void mark_end(TokenTable& table, std::optional<Token> token) {
    if (token) {
        table.ends[static_cast<std::size_t>(*token)] = true;
    }
}

// The token that plays a role: named by the metadata, else found by its text, which makes it a
// control token whatever type the file gives it.
std::optional<Token> by_role(TokenTable& table, std::optional<Token> named, Texts texts) {
    if (named) {
        return named;
    }
    for (const std::string_view text : texts) {
        if (const Token token = table.find(text); token >= 0) {
            set(table, token, attribute_control);
            return token;
        }
    }
    return std::nullopt;
}

void mark_ends_by_text(TokenTable& table) {
    const auto mark_all = [&table](Texts texts) {
        for (const std::string_view text : texts) {
            if (const Token token = table.find(text); token >= 0) {
                mark_end(table, token);
                set(table, token, attribute_control);
            }
        }
    };
    mark_all(turn_ends);
    mark_all(other_ends);
}

bool ends_with_text(const TokenTable& table, std::string_view text) {
    const Token token = table.find(text);
    return token >= 0 && table.ends[static_cast<std::size_t>(token)];
}

void unmark_end(TokenTable& table, std::string_view text, TokenAttribute attribute) {
    if (const Token token = table.find(text); token >= 0) {
        const auto index = static_cast<std::size_t>(token);
        if (table.ends[index]) {
            table.ends[index] = false;
            table.attributes[index] = attribute;
        }
    }
}

// Families in which a usual end mark only closes a part of the reply.
void apply_exceptions(TokenTable& table) {
    const bool call = ends_with_text(table, "<|call|>") || ends_with_text(table, "<|calls|>");
    if (call && (ends_with_text(table, "<|return|>") || ends_with_text(table, "<|flush|>"))) {
        unmark_end(table, "<|end|>", attribute_user_defined);
    }
    if (ends_with_text(table, "<|tool_response>") || ends_with_text(table, "<|plamo:eos|>")) {
        unmark_end(table, "</s>", attribute_normal);
    }
}

std::string lower(std::string_view text) {
    std::string out(text);
    std::transform(out.begin(), out.end(), out.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return out;
}

// White space that some vocabularies' special tokens swallow is not in the file's metadata; the
// reference tokenizer knows these by the names of the model and the pre-tokenizer.
void apply_stripping(TokenTable& table, const Vocabulary& vocabulary) {
    const auto set_by_text = [&table](std::string_view text, TokenAttribute attribute, bool on) {
        if (const Token token = table.find(text); token >= 0) {
            set(table, token, attribute, on);
        }
    };
    const std::string name = lower(vocabulary.name);
    if (vocabulary.pre == "jina-v2-de" || vocabulary.pre == "jina-v2-es" ||
        vocabulary.pre == "jina-v2-code") {
        set_by_text("<mask>", attribute_strip_left, true);
    } else if (name.find("phi-3") != std::string::npos || name.find("phi3") != std::string::npos) {
        constexpr unsigned special = attribute_control | attribute_user_defined | attribute_unknown;
        for (Token token = 0; token < static_cast<Token>(table.texts.size()); ++token) {
            if (table.has(token, special)) {
                set(table, token, attribute_strip_right);
            }
        }
        set_by_text("</s>", attribute_strip_right, true);
        for (const std::string_view text : {"<unk>", "<s>", "<|endoftext|>"}) {
            set_by_text(text, attribute_strip_right, false);
        }
    } else if (name.find("modern-bert") != std::string::npos) {
        set_by_text("[MASK]", attribute_strip_left, true);
    }
}

}  // namespace

TokenTable make_token_table(Vocabulary& vocabulary) {
    TokenTable table;
    table.texts = std::move(vocabulary.tokens);
    const std::size_t count = table.texts.size();
    table.attributes.assign(count, attribute_normal);
    table.ends.assign(count, false);
    table.index.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        std::string& text = table.texts[i];
        if (text.empty()) {
            // A text of its own, so that an empty one never matches anything.
            text = fmt::format("[EMPTY_{}]", i);
        }
        if (!vocabulary.types.empty()) {
            table.attributes[i] = attribute_of(vocabulary.types[i]);
        }
        table.longest = std::max(table.longest, text.size());
        table.index.insert(table.texts, static_cast<Token>(i));
    }

    by_role(table, vocabulary.fim_prefix, fim_prefixes);
    by_role(table, vocabulary.fim_suffix, fim_suffixes);
    by_role(table, vocabulary.fim_middle, fim_middles);
    mark_end(table, by_role(table, vocabulary.fim_pad, fim_pads));
    mark_end(table, by_role(table, vocabulary.fim_repo, fim_repos));
    mark_end(table, by_role(table, vocabulary.fim_separator, fim_separators));
    mark_ends_by_text(table);
    for (const std::string_view text : harmony_marks) {
        if (const Token token = table.find(text); token >= 0) {
            table.attributes[static_cast<std::size_t>(token)] = attribute_user_defined;
        }
    }
    mark_end(table, vocabulary.eos);
    mark_end(table, vocabulary.eot);
    mark_end(table, vocabulary.eom);
    apply_exceptions(table);
    apply_stripping(table, vocabulary);
    return table;
}

}  // namespace headkv
