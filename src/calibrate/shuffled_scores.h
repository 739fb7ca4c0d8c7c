// Head scores dealt anew, as a control: what is left of their use was never due to which heads
// they name.
#pragma once

#include <cstdint>

#include "headkv/scores.h"

namespace headkv {

// The same scores dealt at random over all layers. The query heads of a KV head stay together, so
// that the shares of KV heads are the same numbers in another order; scores of unknown KV heads are
// dealt one by one. The kind becomes "KIND-shuffled", so that no method takes such scores for
// its own unasked; reliability, which is of the heads that were measured, is gone; the settings
// name the seed. Deterministic for a seed.
HeadScores shuffled_scores(const HeadScores& scores, std::uint64_t seed);

}  // namespace headkv
