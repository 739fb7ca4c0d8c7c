// One probe: a needle of one length and depth, as text and as tokens.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/haystack.h"
#include "calibrate/needles.h"
#include "headkv/chat.h"
#include "headkv/error.h"
#include "headkv/method.h"
#include "headkv/model.h"
#include "headkv/tokenizer.h"

namespace headkv {

struct ProbeSpec {
    std::int64_t length = 0;  // tokens of the document, needle included
    double depth = 0;         // percent of the haystack that stands before the needle
    std::int64_t needle = 0;  // index
};

// All combinations in an order shuffled by `seed`, so that a run that is stopped early is balanced.
std::vector<ProbeSpec> plan_probes(std::span<const std::int64_t> lengths,
                                   std::span<const double> depths, std::int64_t needles,
                                   std::uint64_t seed);

// The same probes in an order in which families take turns, so that any first part of it has about
// as many of each; `families` [needles].
std::vector<ProbeSpec> balanced(std::vector<ProbeSpec> probes,
                                std::span<const std::string> families);

// Puts the needle after the last sentence that ends at or before `offset` (at the very end if the
// offset is the text's end), one space around it.
std::string insert_needle(std::string_view text, std::string_view needle, std::size_t offset);

// The haystack cut to `spec.length` tokens less the needle's, back to a whole sentence, with the
// needle in it; the k sentences that belong elsewhere follow at even steps of 1 / (k + 1) of the
// text, the beginning behind the end. Length 0 gives those and the needle alone.
std::string build_document(const Tokenizer& tokenizer, const Haystack& haystack,
                           const Needle& needle, const ProbeSpec& spec);

struct TokenSpan {
    std::int64_t begin = 0, end = 0;  // [begin, end)
    std::int64_t size() const { return end - begin; }
    bool contains(std::int64_t position) const { return position >= begin && position < end; }
};

// The tokens that hold `part`, found by the bytes of the tokens' pieces, so that it does not matter
// how merges crossed its borders: a token counts if it holds a byte of `part` that is not a space.
// `within`: the part is looked for inside the first occurrence of this text (the needle). Nothing
// if absent.
std::optional<TokenSpan> find_span(const Tokenizer& tokenizer, std::span<const Token> tokens,
                                   std::string_view within, std::string_view part);
// The same on pieces, for tests.
std::optional<TokenSpan> find_span(std::span<const std::string> pieces, std::string_view within,
                                   std::string_view part);

// A probe as the model reads it.
struct PreparedProbe {
    std::vector<Token> prompt;
    TokenSpan span;                  // of the real needle in the prompt
    std::vector<PositionSpan> keep;  // the system part, where it is to be kept
};

// Errors (bad_input): the needle is not found in the prompt, the prompt exceeds the context, no
// template whose system part could be kept.
Result<PreparedProbe> prepare_probe(const Model& model, const Haystack& haystack,
                                    const Needle& needle, const ProbeSpec& spec,
                                    std::optional<ChatTemplate> chat, std::string_view system = {},
                                    bool keep_system = false);

// True once an answer's first line is complete: a newline after something that is not white space.
bool line_complete(const Tokenizer& tokenizer, std::span<const Token> answer);

}  // namespace headkv
