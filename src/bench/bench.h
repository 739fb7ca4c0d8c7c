// Speed and memory of prefill and decode, measured case by case.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "headkv/engine.h"

namespace headkv {

// One line of the result table: a method at a depth with a number of sequences side by side.
struct BenchCase {
    std::int64_t depth = 0;  // prompt tokens before the measured decode; 0: one token
    std::int64_t slots = 1;  // sequences that decode together
    MethodConfig method;
    std::string name = {};  // for reports
};

struct BenchSettings {
    std::int64_t tokens = 32;  // decode steps measured
    std::int64_t repeats = 3;
    std::uint64_t seed = 1;  // of the pseudo-random token ids
};

// Medians over the repeats.
struct BenchResult {
    BenchCase what;
    std::int64_t prompt_tokens = 0;
    double prefill_ms = 0, compress_ms = 0, decode_ms = 0;
    double prefill_tok_s = 0, decode_tok_s = 0;  // decode: of all slots together
    double prefill_gflop_s = 0;                  // products and attention of the prefill
    double decode_gb_s = 0;  // weights once a step and rows held once a step and slot
    double rows_kept_mean = 0;
    std::int64_t kv_bytes = 0, kv_bytes_full = 0;       // of one sequence
    std::int64_t allocated_bytes = 0;                   // of all slots, at the end
    std::int64_t held_bytes = 0;                        // of all slots, at the end
    std::int64_t scratch_bytes = 0;                     // of the prefill
    std::int64_t rss_peak_bytes = 0;                    // highest of the repeats; weights included
    std::int64_t device_peak_bytes = 0;                 // the same of a device's memory
    std::vector<double> prefill_ms_all, decode_ms_all;  // [repeats]
    // What its prefill took beyond that of the case beside it (see case_beside()), as a share of
    // that one's: scoring that is part of the reading counts, as does whatever else differs. Both
    // of the same repeat, [repeats]; nothing where no case is beside.
    std::vector<double> overhead_all;
    double overhead = 0;           // median
    std::string overhead_of = {};  // name of the case beside; empty: none
};

// Index of the case whose prefill says what reading costs without choosing: of the same depth, the
// first that keeps rows by position alone, else the first that keeps all, rows in f16; of as many
// slots if there is one. Nothing at depth 0, for such a case itself, and where there is none.
std::optional<std::size_t> case_beside(const std::vector<BenchCase>& cases, std::size_t index);

// Called at the start of every repeat: what is to be measured beside us, a peer say. An error ends
// the bench.
using BenchRound = std::function<Result<void>(std::int64_t repeat)>;

// Called before and during each measurement with the number done and of all; false stops the work.
using BenchProgress = std::function<bool(std::int64_t done, std::int64_t total)>;

// Runs every case `repeats` times. The repeats of all cases are interleaved, and every other one
// goes through them backwards, so that a drift of the machine's speed reaches all of them alike.
// Errors: those of the engine, interrupted.
Result<std::vector<BenchResult>> run_bench(Engine& engine, const std::vector<BenchCase>& cases,
                                           const BenchSettings& settings,
                                           const BenchProgress& progress = {},
                                           const BenchRound& round = {});

// `count` ids of ordinary tokens, the same for a seed on every machine.
std::vector<Token> random_tokens(const Tokenizer& tokenizer, std::int64_t count,
                                 std::uint64_t seed);

// The middle value, or the mean of the two in the middle. Not of an empty list.
double median(std::vector<double> values);

}  // namespace headkv
