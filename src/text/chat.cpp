#include "headkv/chat.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>

namespace headkv {
namespace {

constexpr std::array<std::string_view, 15> names = {"chatml",         "llama2",
                                                    "llama3",         "mistral",
                                                    "gemma",          "phi3",
                                                    "zephyr",         "llama2-sys",
                                                    "llama2-sys-bos", "llama2-sys-strip",
                                                    "mistral-v1",     "mistral-v3-tekken",
                                                    "mistral-v7",     "mistral-v7-tekken",
                                                    "zephyr-beta"};

std::string name_list() {
    std::string list;
    for (const std::string_view name : names) {
        list += list.empty() ? "" : ", ";
        list += name;
    }
    return list;
}

std::string_view trimmed(std::string_view text) {
    const auto is_space = [](char c) { return std::isspace(static_cast<unsigned char>(c)) != 0; };
    while (!text.empty() && is_space(text.front())) {
        text.remove_prefix(1);
    }
    while (!text.empty() && is_space(text.back())) {
        text.remove_suffix(1);
    }
    return text;
}

bool is_system(const Message& message) { return message.role == "system"; }
bool is_user(const Message& message) { return message.role == "user"; }

// Collects the conversation, keeping the template's own text apart from what people wrote.
class Page {
public:
    Page& mark(std::string_view text) { return add(text, true); }
    Page& plain(std::string_view text) { return add(text, false); }
    // A role that is not one of the three could be anything, so it is no place for control tokens.
    Page& role(std::string_view text) {
        return add(text, text == "system" || text == "user" || text == "assistant");
    }
    std::vector<Segment> take() { return std::move(segments_); }

private:
    Page& add(std::string_view text, bool special) {
        if (text.empty()) {
            return *this;
        }
        if (segments_.empty() || segments_.back().special != special) {
            segments_.push_back({{}, special});
        }
        segments_.back().text += text;
        return *this;
    }

    std::vector<Segment> segments_;
};

using Messages = std::span<const Message>;

void render_chatml(Page& page, Messages messages, bool generation_prompt) {
    for (const Message& message : messages) {
        page.mark("<|im_start|>").role(message.role).mark("\n");
        page.plain(message.content).mark("<|im_end|>\n");
    }
    if (generation_prompt) {
        page.mark("<|im_start|>assistant\n");
    }
}

void render_llama3(Page& page, Messages messages, bool generation_prompt) {
    for (const Message& message : messages) {
        page.mark("<|start_header_id|>").role(message.role).mark("<|end_header_id|>\n\n");
        page.plain(trimmed(message.content)).mark("<|eot_id|>");
    }
    if (generation_prompt) {
        page.mark("<|start_header_id|>assistant<|end_header_id|>\n\n");
    }
}

// Phi 3 and Zephyr: a line with the role, the text, an end mark.
void render_role_lines(Page& page, Messages messages, bool generation_prompt,
                       std::string_view end_mark) {
    for (const Message& message : messages) {
        page.mark("<|").role(message.role).mark("|>\n");
        page.plain(message.content).mark(end_mark).mark("\n");
    }
    if (generation_prompt) {
        page.mark("<|assistant|>\n");
    }
}

// There is no system turn: its text opens the next user turn.
void render_gemma(Page& page, Messages messages, bool generation_prompt) {
    std::string system;
    for (const Message& message : messages) {
        if (is_system(message)) {
            system += trimmed(message.content);
            continue;
        }
        const bool assistant = message.role == "assistant";
        page.mark("<start_of_turn>");
        if (assistant) {
            page.mark("model");
        } else {
            page.role(message.role);
        }
        page.mark("\n");
        if (!system.empty() && !assistant) {
            page.plain(system).mark("\n\n");
            system.clear();
        }
        page.plain(trimmed(message.content)).mark("<end_of_turn>\n");
    }
    if (generation_prompt) {
        page.mark("<start_of_turn>model\n");
    }
}

struct Llama2Style {
    bool system_marks = true, bos_inside = false, strip = false;
};

// The closing [/INST] of a user turn already asks for the answer.
void render_llama2(Page& page, Messages messages, const Llama2Style& style) {
    page.mark("[INST] ");
    bool inside = true;
    for (const Message& message : messages) {
        const std::string_view content = style.strip ? trimmed(message.content) : message.content;
        if (!inside) {
            page.mark(style.bos_inside ? "<s>[INST] " : "[INST] ");
            inside = true;
        }
        if (is_system(message)) {
            page.mark(style.system_marks ? "<<SYS>>\n" : "").plain(content);
            page.mark(style.system_marks ? "\n<</SYS>>\n\n" : "\n");
        } else if (is_user(message)) {
            page.plain(content).mark(" [/INST]");
        } else {
            page.plain(content).mark("</s>");
            inside = false;
        }
    }
}

struct MistralStyle {
    std::string_view before, after;  // spaces around the [INST] marks
    bool strip_answer = false;
};

void render_mistral(Page& page, Messages messages, const MistralStyle& style) {
    bool inside = false;
    for (const Message& message : messages) {
        if (!inside) {
            page.mark(style.before).mark("[INST]").mark(style.after);
            inside = true;
        }
        if (is_system(message)) {
            page.plain(message.content).mark("\n\n");
        } else if (is_user(message)) {
            page.plain(message.content).mark(style.before).mark("[/INST]");
        } else {
            page.mark(style.after);
            page.plain(style.strip_answer ? trimmed(message.content)
                                          : std::string_view(message.content));
            page.mark("</s>");
            inside = false;
        }
    }
}

void render_mistral_v7(Page& page, Messages messages, std::string_view space) {
    for (const Message& message : messages) {
        if (is_system(message)) {
            page.mark("[SYSTEM_PROMPT]").mark(space).plain(message.content);
            page.mark("[/SYSTEM_PROMPT]");
        } else if (is_user(message)) {
            page.mark("[INST]").mark(space).plain(message.content).mark("[/INST]");
        } else {
            page.mark(space).plain(message.content).mark("</s>");
        }
    }
}

class Marks {
public:
    explicit Marks(std::string_view jinja) : jinja_(jinja) {}
    bool has(std::string_view mark) const { return jinja_.find(mark) != std::string_view::npos; }

private:
    std::string_view jinja_;
};

std::optional<ChatTemplate> detect_inst(const Marks& marks) {
    if (marks.has("[SYSTEM_PROMPT]")) {
        return marks.has("[INST] ") ? ChatTemplate::mistral_v7 : ChatTemplate::mistral_v7_tekken;
    }
    if (marks.has("' [INST] ' + system_message") || marks.has("[AVAILABLE_TOOLS]")) {
        if (marks.has(" [INST]")) {
            return ChatTemplate::mistral_v1;
        }
        return marks.has("\"[INST]\"") ? ChatTemplate::mistral_v3_tekken : ChatTemplate::mistral;
    }
    if (marks.has("content.strip()")) {
        return ChatTemplate::llama2_sys_strip;
    }
    if (marks.has("bos_token + '[INST]")) {
        return ChatTemplate::llama2_sys_bos;
    }
    return marks.has("<<SYS>>") ? ChatTemplate::llama2_sys : ChatTemplate::llama2;
}

// Families that write <|user|> and <|assistant|>; several others do so with other spacing.
std::optional<ChatTemplate> detect_role_lines(const Marks& marks) {
    if (marks.has("[gMASK]") || marks.has("<|tool_declare|>") ||
        marks.has("'|>' + message['content']")) {
        return std::nullopt;
    }
    if (marks.has("<|assistant|>") && marks.has("<|end|>")) {
        return ChatTemplate::phi3;
    }
    if (marks.has("<|user|>") && marks.has("message['content'] + '<|endoftext|>")) {
        return ChatTemplate::zephyr;
    }
    if (marks.has("<|user|>\n' + message['content'] + eos_token") ||
        marks.has("<|user|>\\n' + message['content'] + eos_token")) {
        return ChatTemplate::zephyr_beta;
    }
    return std::nullopt;
}

std::optional<ChatTemplate> detect(std::string_view jinja) {
    const Marks marks(jinja);
    if (marks.has("<|im_start|>")) {
        // Phi 4 and SmolVLM use the same mark for another layout.
        const bool other = marks.has("<|im_sep|>") || marks.has("<end_of_utterance>");
        return other ? std::nullopt : std::optional(ChatTemplate::chatml);
    }
    if (marks.has("[INST]")) {
        return detect_inst(marks);
    }
    if (marks.has("<|assistant|>") || marks.has("<|user|>")) {
        return detect_role_lines(marks);
    }
    if (marks.has("<start_of_turn>")) {
        return ChatTemplate::gemma;
    }
    if (marks.has("<|start_header_id|>") && marks.has("<|end_header_id|>")) {
        return ChatTemplate::llama3;
    }
    return std::nullopt;
}

// The text of the Jinja string literal that starts at jinja[begin], up to its closing quote.
std::string literal_text(std::string_view jinja, std::size_t begin, char quote) {
    std::string text;
    for (std::size_t i = begin; i < jinja.size() && jinja[i] != quote; ++i) {
        if (jinja[i] != '\\' || i + 1 == jinja.size()) {
            text.push_back(jinja[i]);
            continue;
        }
        const char escaped = jinja[++i];
        text.push_back(escaped == 'n' ? '\n' : escaped == 't' ? '\t' : escaped);
    }
    return text;
}

}  // namespace

std::span<const std::string_view> chat_template_names() { return names; }

std::string_view chat_template_name(ChatTemplate kind) {
    return names[static_cast<std::size_t>(kind)];
}

Result<ChatTemplate> chat_template_by_name(std::string_view name) {
    const auto* found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) {
        return bad_input("unknown chat template '{}'; known: {}", name, name_list());
    }
    return static_cast<ChatTemplate>(found - names.begin());
}

Result<ChatTemplate> chat_template_detect(std::string_view jinja) {
    if (jinja.empty()) {
        return bad_input("the model has no chat template; name one with --chat-template ({})",
                         name_list());
    }
    const std::optional<ChatTemplate> kind = detect(jinja);
    if (!kind) {
        return bad_input(
            "the model's chat template is none of the known ones; name one with --chat-template "
            "({})",
            name_list());
    }
    return *kind;
}

std::string chat_template_default_system(std::string_view jinja) {
    constexpr std::string_view opening = "<|im_start|>";
    constexpr std::string_view system = "<|im_start|>system\n";
    for (std::size_t at = jinja.find(opening); at != std::string_view::npos;
         at = jinja.find(opening, at + 1)) {
        if (at == 0 || (jinja[at - 1] != '\'' && jinja[at - 1] != '"')) {
            continue;
        }
        // A default is a constant: the literal holds the whole turn, end mark included.
        const std::string text = literal_text(jinja, at, jinja[at - 1]);
        const std::size_t end = text.find("<|im_end|>");
        if (text.starts_with(system) && end != std::string::npos) {
            return text.substr(system.size(), end - system.size());
        }
    }
    return {};
}

std::vector<Segment> chat_render(ChatTemplate kind, std::span<const Message> messages,
                                 bool generation_prompt, std::string_view default_system) {
    std::vector<Message> extended;
    if (!default_system.empty() && std::none_of(messages.begin(), messages.end(), is_system)) {
        extended.push_back({"system", std::string(default_system)});
        extended.insert(extended.end(), messages.begin(), messages.end());
        messages = extended;
    }
    Page page;
    switch (kind) {
        case ChatTemplate::chatml:
            render_chatml(page, messages, generation_prompt);
            break;
        case ChatTemplate::llama2:
            render_llama2(page, messages, {false, false, false});
            break;
        case ChatTemplate::llama3:
            render_llama3(page, messages, generation_prompt);
            break;
        case ChatTemplate::mistral:
            render_mistral(page, messages, {"", " ", true});
            break;
        case ChatTemplate::gemma:
            render_gemma(page, messages, generation_prompt);
            break;
        case ChatTemplate::phi3:
            render_role_lines(page, messages, generation_prompt, "<|end|>");
            break;
        case ChatTemplate::zephyr:
            render_role_lines(page, messages, generation_prompt, "<|endoftext|>");
            break;
        case ChatTemplate::llama2_sys:
            render_llama2(page, messages, {true, false, false});
            break;
        case ChatTemplate::llama2_sys_bos:
            render_llama2(page, messages, {true, true, false});
            break;
        case ChatTemplate::llama2_sys_strip:
            render_llama2(page, messages, {true, false, true});
            break;
        case ChatTemplate::mistral_v1:
            render_mistral(page, messages, {" ", " ", false});
            break;
        case ChatTemplate::mistral_v3_tekken:
            render_mistral(page, messages, {"", "", false});
            break;
        case ChatTemplate::mistral_v7:
            render_mistral_v7(page, messages, " ");
            break;
        case ChatTemplate::mistral_v7_tekken:
            render_mistral_v7(page, messages, "");
            break;
        case ChatTemplate::zephyr_beta:
            render_role_lines(page, messages, generation_prompt, "</s>");
            break;
    }
    return page.take();
}

}  // namespace headkv
