#include "headkv/session.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace headkv {

namespace {

// Answer text on its way to the sink: whatever may still turn out to be a stop text waits.
class StopFilter {
public:
    explicit StopFilter(const std::vector<std::string>& stops) {
        for (const auto& stop : stops) {
            if (!stop.empty()) stops_.push_back(stop);
        }
    }

    // Text that is certainly part of the answer.
    std::string push(std::string_view piece) {
        waiting_ += piece;
        const std::size_t found = first_stop();
        stopped_ = found != std::string::npos;
        return take(stopped_ ? found : waiting_.size() - possible_stop());
    }
    // At the end nothing can follow: what waits is answer.
    std::string flush() { return stopped_ ? std::string() : take(waiting_.size()); }
    bool stopped() const { return stopped_; }

private:
    std::string take(std::size_t count) {
        std::string text = waiting_.substr(0, count);
        waiting_.erase(0, count);
        return text;
    }

    std::size_t first_stop() const {
        std::size_t first = std::string::npos;
        for (const auto& stop : stops_) first = std::min(first, waiting_.find(stop));
        return first;
    }

    // Length of the longest end of the waiting text that begins a stop text.
    std::size_t possible_stop() const {
        std::size_t longest = 0;
        for (const auto& stop : stops_) {
            for (std::size_t n = std::min(stop.size() - 1, waiting_.size()); n > longest; --n) {
                if (waiting_.ends_with(std::string_view(stop).substr(0, n))) longest = n;
            }
        }
        return longest;
    }

    std::vector<std::string> stops_;
    std::string waiting_;
    bool stopped_ = false;
};

// The running answer: tokens in, text out to the sink and into the result.
class Answer {
public:
    Answer(const Tokenizer& tokenizer, const GenerateOptions& options, const TextSink& sink)
        : decoder_(tokenizer), filter_(options.stop), sink_(sink) {}

    // Returns the reason to stop, or an empty text.
    std::string push(Token token) {
        result_.tokens.push_back(token);
        // The sink is asked even when there is nothing to show: it may want to stop.
        const bool go_on = emit(filter_.push(decoder_.push(token)));
        if (filter_.stopped()) return "stop";
        return go_on ? "" : "interrupted";
    }

    Generation finish(std::string reason) {
        // The last bytes may complete a stop text as well as a character.
        std::string rest = filter_.stopped() ? std::string() : filter_.push(decoder_.flush());
        if (filter_.stopped() && reason != "interrupted") reason = "stop";
        rest += filter_.flush();
        if (!rest.empty()) emit(rest);
        result_.stop_reason = std::move(reason);
        return std::move(result_);
    }

private:
    bool emit(const std::string& piece) {
        result_.text += piece;
        return !sink_ || sink_(piece);
    }

    StreamDecoder decoder_;
    StopFilter filter_;
    const TextSink& sink_;
    Generation result_;
};

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
    Sampler sampler(options.sampler);
    Answer answer(tokenizer, options, sink);
    std::string reason = options.max_tokens > 0 ? "" : "length";
    for (std::int64_t count = 1; reason.empty(); ++count) {
        const Token token = sampler.sample(logits);
        if (tokenizer.is_end(token)) {
            reason = "end";
            break;
        }
        sampler.accept(token);
        reason = answer.push(token);
        if (reason.empty() && count == options.max_tokens) reason = "length";
        if (!reason.empty()) break;
        const DecodeInput input{.sequence = sequence, .token = token};
        if (auto decoded = engine.decode({&input, 1}); !decoded) {
            return tl::unexpected(decoded.error());
        }
        logits = engine.logits(0);
    }
    Generation result = answer.finish(std::move(reason));
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
