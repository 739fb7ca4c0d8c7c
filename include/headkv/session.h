// The easy way in: one document, one question, one method.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "headkv/chat.h"
#include "headkv/engine.h"
#include "headkv/sampler.h"

namespace headkv {

struct GenerateOptions {
    std::int64_t max_tokens = 256;
    SamplerOptions sampler;
    std::vector<std::string> stop;  // texts that end the answer; not part of it
};

struct Generation {
    std::vector<Token> tokens;
    std::string text;
    std::string stop_reason;  // "end", "stop", "length", "interrupted"
    double decode_ms = 0;
};

// Receives text as it comes; returning false stops the answer ("interrupted").
using TextSink = std::function<bool(std::string_view piece)>;

// Generates from `logits` (the prefill's) until an end token, a stop text, max_tokens or the sink.
// Errors are decode()'s.
Result<Generation> generate(Engine& engine, SequenceId sequence, std::span<const float> logits,
                            const GenerateOptions& options, const TextSink& sink = {});

// The prompt of the main job. With a template: one user message "document\n\nQuestion: question".
// Without (`raw`): the same text and "\nAnswer:". Without a question: the document alone. Without a
// document: the question alone. An empty `system` means the model's own default.
// Error (bad_input): both parts empty.
Result<std::vector<Token>> question_prompt(const Model& model, std::string_view document,
                                           std::string_view question,
                                           std::optional<ChatTemplate> chat,
                                           std::string_view system = {});

// A prompt and the parts of it that every head is to keep (MethodConfig::keep).
struct MarkedPrompt {
    std::vector<Token> tokens;
    std::vector<PositionSpan> keep;
};
struct KeepParts {
    bool marks = false;  // what stands between <keep> and </keep>, which are not part of the prompt
    bool system = false;    // what the template puts in front of the user's text
    bool may_lack = false;  // a prompt without marks is as good
};
// question_prompt(), with the tokens that hold some of those parts. `special`: texts of control
// tokens become those tokens, without a template. Errors (bad_input): question_prompt's, marks that
// do not pair, none where there should be some, no template where its part is to be kept.
Result<MarkedPrompt> marked_prompt(const Model& model, std::string_view document,
                                   std::string_view question, std::optional<ChatTemplate> chat,
                                   std::string_view system, const KeepParts& parts,
                                   bool special = false);
// Where the question lies in such a prompt, whatever the document; nothing without a question or
// without a document, where all of the prompt is question.
QuestionPart question_part(const Model& model, std::string_view document, std::string_view question,
                           std::optional<ChatTemplate> chat, std::string_view system = {});

// A further turn of a conversation, for Engine::extend: closes the assistant's turn that is in the
// cache, adds `user` and opens the next answer.
std::vector<Token> next_turn_prompt(const Model& model, std::string_view user, ChatTemplate chat);

// Shortens a prompt to `limit` tokens by taking out its middle (as LongBench does).
std::vector<Token> truncate_middle(std::span<const Token> tokens, std::int64_t limit);
// The same with the parts to keep, less what was in the middle.
MarkedPrompt truncate_middle(const MarkedPrompt& prompt, std::int64_t limit);

}  // namespace headkv
