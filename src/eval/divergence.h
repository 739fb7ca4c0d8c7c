// How far a compressed cache moves the next-token distribution from that of the full cache, on
// plain text: the measure with the least noise there is.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "eval/config.h"
#include "eval/logged_run.h"
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

// What one configuration made of one chunk; the first prediction of a chunk needs no cache row and
// counts nowhere.
struct DivergenceAnswer {
    std::string method;
    double rows = 0;
    std::vector<double> divergence;       // [predictions]
    std::vector<double> same_best;        // 1 or 0
    std::vector<double> log_probability;  // of the token that followed
    std::int64_t kv_bytes = 0, kv_bytes_full = 0;
    double rows_kept = 0;  // mean a head
};
struct DivergenceChunk {
    std::int64_t chunk = 0;  // of the text, from 0
    double seconds = 0;
    std::vector<DivergenceAnswer> answers;  // full first, then the configurations in their order
};
nlohmann::json to_json(const DivergenceChunk& chunk);
// Nothing if the entry is not of this form (the chunk is then read again).
std::optional<DivergenceChunk> divergence_chunk_from_json(const nlohmann::json& json);

struct DivergenceRow {
    std::string method;
    double rows = 0;
    std::int64_t tokens = 0;    // predictions
    Estimate divergence;        // mean, nats a token; 95 % by chunk
    double divergence_95 = 0;   // 95 % of the predictions are below
    Estimate same_best;         // share of the predictions with the same best token
    double perplexity = 0;      // of the text behind the prefix
    Estimate dlog_probability;  // of the text, a token, minus full's
    double kv_bytes = 0, kv_bytes_full = 0, rows_kept = 0;  // means over the chunks
};
// Full first (its divergence is 0), then the configurations in their order.
std::vector<DivergenceRow> summarize(std::span<const DivergenceChunk> chunks, std::uint64_t seed);

// Where finished chunks are kept, so that a second call with the same identity goes on; without a
// file they are not.
struct DivergenceLog {
    std::filesystem::path file;
    nlohmann::json identity;
};
using DivergenceRun = LoggedRun<DivergenceChunk>;
// Every chunk is read once for all configurations. Errors (bad_input): a text shorter than one
// chunk, prefix or tokens below 2; those of the engine and of the log; interrupted.
Result<DivergenceRun> run_divergence(Engine& engine, std::span<const Token> text,
                                     std::span<const ConfigUnderTest> configs,
                                     const DivergenceSettings& settings,
                                     const Progress& progress = {}, const DivergenceLog& log = {});

}  // namespace headkv
