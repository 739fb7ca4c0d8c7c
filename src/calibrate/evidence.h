// Where in a prompt an answer comes from, and how much of a head's attention goes there. The
// measure of calibration by a user's own task (docs/scores.md says why it is what it is).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "calibrate/probe.h"

namespace headkv {

// Weights 0..1 of the prompt's tokens; `top` of a head's strongest positions are looked at.
struct Evidence {
    std::vector<float> weight;  // [prompt tokens]
    std::int64_t top = 0;       // at least 1
    std::string kind;           // verbatim, words, document
};

// A part of the prompt's text, in bytes of the joined pieces.
struct WeightedBytes {
    std::size_t begin = 0, end = 0;
    float weight = 1;
};
// A token has the largest weight of the parts that it shares a byte with, white space left out;
// `top` is the number of tokens with any.
Evidence evidence_of(std::span<const std::string> pieces, std::span<const WeightedBytes> parts,
                     std::string kind);

// Of an answer, in the tokens `context` of the prompt (the document):
// verbatim  the answer occurs there, as whole words, at most 8 times: those places
// words     words of it do, each at most 8 times: their places, weighing 1 / occurrences
// document  none does (a translation, a label): every token but the prompt's first 4, which heads
//           look at when they have nothing to look at; the top 16 positions
Evidence find_evidence(std::span<const std::string> pieces, TokenSpan context,
                       std::string_view answer);

// Of the head's `top` strongest positions (ties: the lower ones) the attention times the weight,
// summed: 0..1. `attention` may go on behind the prompt, with the answer so far: no weight there.
double evidence_score(std::span<const float> attention, const Evidence& evidence);

}  // namespace headkv
