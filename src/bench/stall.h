// How long running answers stand still while another prompt is read beside them.
#pragma once

#include "bench/bench.h"

namespace headkv {

struct StallResult {
    double limit_ms = 0;    // BatchOptions::max_stall_ms
    double longest_ms = 0;  // longest wait of an answer for its next token while the prompt is read
    double step_ms = 0;     // median of the same with nothing beside
    double read_ms = 0;     // what reading the late prompt took
    std::int64_t late_tokens = 0;  // its length
    std::int64_t waits = 0;        // tokens that came meanwhile
};

constexpr std::int64_t kLeastLateTokens = 512;

// `what.slots` sequences of `what.depth` tokens answer; then a prompt of that depth, or of
// kLeastLateTokens if that is more, is read beside them by a Batch with `limit_ms`. Answers that
// come to an end begin again, so that there is always one that could stand still. Errors: those of
// the engine.
Result<StallResult> measure_stall(Engine& engine, const BenchCase& what, std::uint64_t seed,
                                  double limit_ms);

}  // namespace headkv
