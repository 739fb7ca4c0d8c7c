// How well two sets of head scores agree.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "headkv/scores.h"

namespace headkv {

// Ranks from 1 on, the lowest first; equal values share their mean rank.
std::vector<double> ranks(std::span<const double> values);

// Correlation of two lists of equal length, -1..1; 0 where one of them does not vary.
double pearson(std::span<const double> a, std::span<const double> b);
double spearman(std::span<const double> a, std::span<const double> b);  // pearson of the ranks

// Share of the highest tenth of `a` (at least one; ties: the lower index) that is in that of `b`.
double top_decile_overlap(std::span<const double> a, std::span<const double> b);

// Scores of query heads summed over the group of each KV head, [layers][kv_heads].
std::vector<double> per_kv_head(std::span<const double> scores, const HeadShape& shape);

// The scores of one probe. Probes of the same unit (a needle, an example) share a text.
struct UnitScores {
    std::int64_t unit = 0;
    std::span<const double> scores;  // [layers][query_heads]
};

// Deals the units at random to two halves, averages the probes of each, correlates the means; the
// mean over a fixed number of deals of a fixed seed. Nothing from fewer than four probes or two
// units.
std::optional<ScoreReliability> split_half(std::span<const UnitScores> probes,
                                           const HeadShape& shape);

}  // namespace headkv
