// One prompt, many configurations: a single prefill fills the full cache and every compressed one,
// and their answers decode as sequences of one batch. Further questions are asked of the same
// caches.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/config.h"
#include "headkv/engine.h"

namespace headkv {

// A further question.
struct AskedTurn {
    std::vector<Token> prompt;     // what is read before its answer, not empty
    std::vector<Token> reference;  // right answer, not empty
};

struct Asked {
    std::vector<Token> prompt;
    // Tokens from here on are read after compression, so that no method sees the question when it
    // chooses; prompt.size(): all of it is compressed. 1 .. prompt.size().
    std::size_t compressed = 0;
    std::vector<Token> reference;  // right answer, not empty
    std::int64_t max_tokens = 32;  // of a greedy answer
    bool first_line = false;       // the answer ends with its first line that is not blank
    std::vector<AskedTurn> turns = {};
    // Every question, the first too, starts from a copy of the cache as it was compressed (there
    // must then be a question outside). False: each stands behind the questions and answers before
    // it, and rows that decoding gives up are gone for the later ones too.
    bool shared_context = false;
    QuestionPart question = {};           // in the prompt, where it is compressed with it
    std::vector<PositionSpan> keep = {};  // of the compressed part, in every head
};

// Tokens that follow a question: the greedy answer, or the reference.
std::int64_t answer_room(const Asked& asked, std::span<const Token> reference);

struct AnsweredTurn {
    std::string text;                     // greedy; with first_line, without the newline
    std::vector<double> log_probability;  // [reference], each given those before it
};

struct Answered {
    std::string method;  // the configuration's name and rows
    double rows = 0;
    std::string text;                     // greedy; with first_line, without the newline
    std::vector<double> log_probability;  // [reference], each given those before it
    std::int64_t kv_bytes = 0;            // of the rows kept of the compressed part
    std::int64_t kv_bytes_full = 0;
    double rows_kept = 0;                  // mean a head
    std::vector<AnsweredTurn> turns = {};  // as Asked has them: without the first question
    std::int64_t archive_bytes = 0;        // beside them, for recall
};

// The methods of `configs` as a prefill of the compressed part takes them.
std::vector<MethodConfig> asked_methods(const Asked& asked,
                                        std::span<const ConfigUnderTest> configs);

// Answers of full first, then of `configs` in their order. Without a question outside, the first
// token's distribution is the prefill's: no compressed row has been read for it. No sequence is
// left behind. Errors: those of prefill and decode.
Result<std::vector<Answered>> answer_with_all(Engine& engine, const Asked& asked,
                                              std::span<const ConfigUnderTest> configs,
                                              const Progress& progress = {});

// What stands before the newline that ends the first line with more than white space in it: the
// last token of an answer may hold that newline and more. All of the text where there is none.
std::string_view first_line(std::string_view text);

// An answer as the model would write it after the prompt. A raw prompt ends with "Answer:", so the
// answer begins with a blank, unless the vocabulary puts one there by itself.
std::vector<Token> answer_tokens(const Tokenizer& tokenizer, std::string_view answer, bool chat);

}  // namespace headkv
