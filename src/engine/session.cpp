#include "headkv/session.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "engine/answer.h"
#include "text/keep_marks.h"

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

// The first `bytes` of adjacent segments.
std::vector<Segment> beginning(std::span<const Segment> segments, std::size_t bytes) {
    std::vector<Segment> result;
    for (const Segment& segment : segments) {
        if (bytes == 0) break;
        result.push_back({segment.text.substr(0, bytes), segment.special});
        bytes -= result.back().text.size();
    }
    return result;
}

// Tokens that hold bytes of a part of the text that they were made of. What stands before a place
// is tokenized by itself: up to where that differs from the whole, no merge has crossed the place.
class TokenPlaces {
public:
    TokenPlaces(const Tokenizer& tokenizer, std::span<const Segment> segments,
                std::span<const Token> tokens)
        : tokenizer_(tokenizer), segments_(segments), tokens_(tokens) {}

    PositionSpan tokens_of(const ByteSpan& span) const {
        const auto first = tokenizer_.encode(beginning(segments_, span.begin));
        const auto all = tokenizer_.encode(beginning(segments_, span.end));
        const auto same = common(all);
        auto end = same;
        // Bytes of the part that merges have put into other tokens than they are in by themselves.
        std::size_t left = 0;
        for (auto i = same; i < std::ssize(all); ++i)
            left += bytes(all[static_cast<std::size_t>(i)]);
        while (left > 0 && end < std::ssize(tokens_)) {
            left -= std::min(left, bytes(tokens_[static_cast<std::size_t>(end++)]));
        }
        return {std::min(common(first), end), end};
    }

private:
    std::int64_t common(const std::vector<Token>& other) const {
        return std::mismatch(other.begin(), other.end(), tokens_.begin(), tokens_.end()).first -
               other.begin();
    }
    std::size_t bytes(Token token) const { return tokenizer_.piece(token, true).size(); }

    const Tokenizer& tokenizer_;
    std::span<const Segment> segments_;
    std::span<const Token> tokens_;
};

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view kBlank = " \n\t\r";
    const auto first = text.find_first_not_of(kBlank);
    if (first == std::string_view::npos) return text.substr(0, 0);
    return text.substr(first, text.find_last_not_of(kBlank) + 1 - first);
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

Result<MarkedPrompt> marked_prompt(const Model& model, std::string_view document,
                                   std::string_view question, std::optional<ChatTemplate> chat,
                                   std::string_view system, const KeepParts& parts, bool special) {
    const Tokenizer& tokenizer = model.tokenizer();
    if (parts.system && !chat) {
        return bad_input("without a chat template there is no system part to keep");
    }
    UnmarkedText own{std::string(document), {}}, asked{std::string(question), {}};
    if (parts.marks) {
        auto of_document = take_keep_marks(document), of_question = take_keep_marks(question);
        if (!of_document) return tl::unexpected(of_document.error());
        if (!of_question) return tl::unexpected(of_question.error());
        own = std::move(*of_document);
        asked = std::move(*of_question);
        if (own.spans.empty() && asked.spans.empty() && !parts.may_lack) {
            return bad_input("nothing of the prompt stands between <keep> and </keep>");
        }
    }
    MarkedPrompt prompt;
    if (special && !chat) {
        prompt.tokens = tokenizer.encode(own.text, true);
    } else {
        auto tokens = question_prompt(model, own.text, asked.text, chat, system);
        if (!tokens) return tl::unexpected(tokens.error());
        prompt.tokens = std::move(*tokens);
    }
    if (!parts.marks && !parts.system) return prompt;

    // The same text again, in which the user's is looked for: templates may trim it.
    const std::string text = question_text(own.text, asked.text);
    std::vector<Segment> segments = {{text, special}};
    const auto inner = trimmed(text);
    const auto lead = static_cast<std::size_t>(inner.data() - text.data());
    std::size_t before = lead;  // bytes before `inner` in the segments
    if (chat) {
        std::vector<Message> messages;
        if (!system.empty()) messages.push_back({"system", std::string(system)});
        messages.push_back({"user", text});
        segments = chat_render(*chat, messages, true,
                               chat_template_default_system(tokenizer.chat_template()));
        std::string all;
        for (const Segment& segment : segments) all += segment.text;
        before = all.rfind(inner);
    } else if (!asked.text.empty() && !special) {
        segments[0].text += "\nAnswer:";
    }
    const TokenPlaces places(tokenizer, segments, prompt.tokens);
    const auto keep = [&](const ByteSpan& span) {
        const auto tokens = places.tokens_of(span);
        if (tokens.end > tokens.begin) prompt.keep.push_back(tokens);
    };
    if (parts.system && before > 0) keep({0, before});
    // From a place in `text` to one in the segments; blanks that the template took are nowhere.
    const auto place = [&](std::size_t at) {
        return before + std::clamp(at, lead, lead + inner.size()) - lead;
    };
    for (const ByteSpan& span : own.spans) keep({place(span.begin), place(span.end)});
    const auto offset = text.size() - asked.text.size();
    for (const ByteSpan& span : asked.spans) {
        keep({place(offset + span.begin), place(offset + span.end)});
    }
    return prompt;
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

MarkedPrompt truncate_middle(const MarkedPrompt& prompt, std::int64_t limit) {
    const auto size = std::ssize(prompt.tokens);
    if (size <= limit) return prompt;
    MarkedPrompt cut{truncate_middle(std::span(prompt.tokens), limit), {}};
    const auto front = std::max<std::int64_t>(limit, 0) / 2;
    const auto gone = size - std::ssize(cut.tokens);
    for (const auto& span : prompt.keep) {
        const PositionSpan before{span.begin, std::min(span.end, front)};
        const PositionSpan behind{std::max(span.begin - gone, front), span.end - gone};
        for (const auto& part : {before, behind}) {
            if (part.end > part.begin) cut.keep.push_back(part);
        }
    }
    return cut;
}

}  // namespace headkv
