// How far a compressed cache moves the next-token distribution from that of the full cache, on
// plain text: the measure with the least noise there is.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "eval/config.h"
#include "eval/statistics.h"
#include "headkv/engine.h"

namespace headkv {

// Two distributions over the vocabulary, given as logits, and the token that really followed.
struct Difference {
    double divergence = 0;  // KL(full || other), nats; never below 0
    bool same_best = false;
    double log_probability_full = 0, log_probability = 0;  // of the token that followed
};
Difference difference(std::span<const float> full, std::span<const float> other, Token next);

struct DivergenceSettings {
    std::int64_t prefix = 1024;  // tokens that are read and compressed
    std::int64_t tokens = 128;   // tokens behind them that are predicted, each from those before
    std::int64_t chunks = 0;     // of prefix + tokens tokens; 0: as many as the text has
    std::uint64_t seed = 1;      // of the intervals
};

struct DivergenceRow {
    std::string method;
    double rows = 0;
    std::int64_t tokens = 0;    // predictions; the first of a chunk needs no cache row and
                                // counts nowhere
    Estimate divergence;        // mean, nats a token; 95 % by chunk
    double divergence_95 = 0;   // 95 % of the predictions are below
    Estimate same_best;         // share of the predictions with the same best token
    double perplexity = 0;      // of the text behind the prefix
    Estimate dlog_probability;  // of the text, a token, minus full's
    std::int64_t kv_bytes = 0, kv_bytes_full = 0;  // of the last chunk
};

// Full first (its divergence is 0), then the configurations in their order. Every chunk is read
// once for all of them. Errors (bad_input): a text shorter than one chunk, prefix or tokens below
// 2; and those of the engine.
Result<std::vector<DivergenceRow>> run_divergence(Engine& engine, std::span<const Token> text,
                                                  std::span<const ConfigUnderTest> configs,
                                                  const DivergenceSettings& settings,
                                                  const Progress& progress = {});

}  // namespace headkv
