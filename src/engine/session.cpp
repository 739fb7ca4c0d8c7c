#include "headkv/session.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/answer.h"

namespace headkv {

namespace {

double elapsed_ms(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
        .count();
}

std::string question_text(std::string_view document, std::string_view question) {
    std::string text(document);
    if (!document.empty() && !question.empty()) text += "\n\nQuestion: ";
    return text.append(question);
}

}  // namespace

Result<Generation> generate(Engine& engine, SequenceId sequence, std::span<const float> logits,
                            const GenerateOptions& options, const TextSink& sink) {
    const auto start = std::chrono::steady_clock::now();
    const Tokenizer& tokenizer = engine.model().tokenizer();
    Answer answer(tokenizer, options, sink);
    while (const auto token = answer.next(logits)) {
        const DecodeInput input{.sequence = sequence, .token = *token};
        if (auto decoded = engine.decode({&input, 1}); !decoded) {
            return tl::unexpected(decoded.error());
        }
        logits = engine.logits(0);
    }
    Generation result = answer.take();
    result.decode_ms = elapsed_ms(start);
    return result;
}

Result<std::vector<Token>> question_prompt(const Model& model, std::string_view document,
                                           std::string_view question,
                                           std::optional<ChatTemplate> chat,
                                           std::string_view system) {
    if (document.empty() && question.empty()) {
        return bad_input("the prompt is empty: give a document, a question or both");
    }
    const Tokenizer& tokenizer = model.tokenizer();
    std::string text = question_text(document, question);
    if (!chat) {
        if (!question.empty()) text += "\nAnswer:";
        return tokenizer.encode(text);
    }
    std::vector<Message> messages;
    if (!system.empty()) messages.push_back({"system", std::string(system)});
    messages.push_back({"user", std::move(text)});
    const std::string own_system = chat_template_default_system(tokenizer.chat_template());
    return tokenizer.encode(chat_render(*chat, messages, true, own_system));
}

QuestionPart question_part(const Model& model, std::string_view document, std::string_view question,
                           std::optional<ChatTemplate> chat, std::string_view system) {
    if (document.empty() || question.empty()) return {};
    // Prompts of the same short document that differ in the question alone.
    const std::string_view other = question[0] == '0' ? "Why" : "0";
    const auto asked = question_prompt(model, "x", question, chat, system);
    const auto instead = question_prompt(model, "x", other, chat, system);
    if (!asked || !instead) return {};
    const auto begin = std::ranges::mismatch(*asked, *instead).in1;
    const auto end = std::mismatch(asked->rbegin(), asked->rend() - (begin - asked->begin()),
                                   instead->rbegin(), instead->rend())
                         .first.base();
    return {end - begin, asked->end() - end};
}

std::vector<Token> next_turn_prompt(const Model& model, std::string_view user, ChatTemplate chat) {
    // Rendered with a mark in place of the answer, the template itself says what follows an answer.
    // A control character keeps the mark out of the way of templates that trim their messages.
    const std::string mark = "\x01headkv\x01";
    const Message messages[] = {{"user", "x"}, {"assistant", mark}, {"user", std::string(user)}};
    std::vector<Segment> segments = chat_render(chat, messages, true);
    const auto marked = std::find_if(segments.begin(), segments.end(), [&](const Segment& segment) {
        return segment.text.find(mark) != std::string::npos;
    });
    if (marked == segments.end()) return {};
    marked->text.erase(0, marked->text.find(mark) + mark.size());
    segments.erase(segments.begin(), marked);
    return model.tokenizer().encode(segments, false);
}

std::vector<Token> truncate_middle(std::span<const Token> tokens, std::int64_t limit) {
    const auto size = static_cast<std::int64_t>(tokens.size());
    if (size <= limit) return {tokens.begin(), tokens.end()};
    const std::int64_t front = std::max<std::int64_t>(limit, 0) / 2;
    const std::int64_t back = std::max<std::int64_t>(limit, 0) - front;
    std::vector<Token> result(tokens.begin(), tokens.begin() + front);
    result.insert(result.end(), tokens.end() - back, tokens.end());
    return result;
}

}  // namespace headkv
