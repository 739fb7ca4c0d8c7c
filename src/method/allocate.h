#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "headkv/scores.h"

namespace headkv {

// The limit of a plan that no prompt bounds.
constexpr std::int64_t kUnbounded = std::numeric_limits<std::int64_t>::max();

// Rows of all heads for a mean of `rows` a head.
std::int64_t total_rows(double rows, const HeadShape& shape);

// Whole rows out of `amounts` (>= 0, summing to `total` but for noise) by largest remainder, ties
// to the lower index, none above `limit`.
std::vector<std::int64_t> round_to_total(std::span<const double> amounts, std::int64_t total,
                                         std::int64_t limit);

}  // namespace headkv
