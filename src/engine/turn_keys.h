// Keys turned on to other positions: what RoPE would have made of them there.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cache/sequence_cache.h"
#include "engine/compute.h"
#include "model/model_impl.h"

namespace headkv {

// Row `row` (of those held) of a head, `by` positions further on than it was stored for.
struct KeyTurn {
    std::int64_t head = 0, row = 0;
    std::int32_t by = 0;
};

// Positions inside the cache (2309.17453): of `held` rows of a head, which lay without a gap, those
// of `keep` (sorted indices) stay, and move on so that they end where the held ones did, without a
// gap again. Only what stands before the last gap moves. Appended to `turns`.
void close_gaps(std::int64_t head, std::span<const std::int32_t> keep, std::int64_t held,
                std::vector<KeyTurn>& turns);

// Error (failure): out of memory.
Result<void> turn_keys(const Compute& compute, const Model::Impl& model, std::int64_t layer,
                       std::span<const KeyTurn> turns, SequenceCache& cache);

}  // namespace headkv
