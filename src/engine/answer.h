// The running answer of one sequence: logits in, text out. Shared by generate() and Batch.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/session.h"

namespace headkv {

// Answer text on its way to the sink: whatever may still turn out to be a stop text waits.
class StopFilter {
public:
    explicit StopFilter(const std::vector<std::string>& stops);
    std::string push(std::string_view piece);  // text that is certainly part of the answer
    std::string flush();                       // the rest: nothing can follow
    bool stopped() const { return stopped_; }

private:
    std::string take(std::size_t count);
    std::size_t first_stop() const;
    std::size_t possible_stop() const;

    std::vector<std::string> stops_;
    std::string waiting_;
    bool stopped_ = false;
};

// Keeps references to the tokenizer and the sink.
class Answer {
public:
    Answer(const Tokenizer& tokenizer, const GenerateOptions& options, const TextSink& sink);

    // Samples a token, shows its text and returns it, to be decoded; nothing once the answer has
    // ended (end token, stop text, max_tokens, the sink said no).
    std::optional<Token> next(std::span<const float> logits);
    void stop(std::string reason);  // ends it from outside, "interrupted" say
    bool ended() const { return !reason_.empty(); }
    // The result, once ended. decode_ms is the caller's to fill in.
    Generation take();

private:
    void push(Token token);
    bool emit(const std::string& piece);

    const Tokenizer& tokenizer_;
    std::int64_t left_;  // tokens
    Sampler sampler_;
    StreamDecoder decoder_;
    StopFilter filter_;
    const TextSink& sink_;
    Generation result_;
    std::string reason_;  // why it ended
};

}  // namespace headkv
