#include "calibrate/correlation.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>
#include <set>

#include "calibrate/head_scoring.h"
#include "calibrate/random.h"

namespace headkv {
namespace {

constexpr std::int64_t kSplits = 50;  // the mean's own error is then far below the second digit

std::vector<std::size_t> by_value(std::span<const double> values, bool falling) {
    std::vector<std::size_t> order(values.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return falling ? values[a] > values[b] : values[a] < values[b];
    });
    return order;
}

}  // namespace

std::vector<double> ranks(std::span<const double> values) {
    const auto order = by_value(values, false);
    std::vector<double> result(values.size());
    for (std::size_t first = 0; first < order.size();) {
        std::size_t end = first + 1;
        while (end < order.size() && values[order[end]] == values[order[first]]) ++end;
        const double shared = static_cast<double>(first + 1 + end) / 2;
        for (; first < end; ++first) result[order[first]] = shared;
    }
    return result;
}

double pearson(std::span<const double> a, std::span<const double> b) {
    assert(a.size() == b.size());
    if (a.empty()) return 0;
    const auto n = static_cast<double>(a.size());
    const double mean_a = std::accumulate(a.begin(), a.end(), 0.0) / n;
    const double mean_b = std::accumulate(b.begin(), b.end(), 0.0) / n;
    double both = 0, only_a = 0, only_b = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        both += (a[i] - mean_a) * (b[i] - mean_b);
        only_a += (a[i] - mean_a) * (a[i] - mean_a);
        only_b += (b[i] - mean_b) * (b[i] - mean_b);
    }
    if (only_a <= 0 || only_b <= 0) return 0;
    return std::clamp(both / std::sqrt(only_a * only_b), -1.0, 1.0);
}

double spearman(std::span<const double> a, std::span<const double> b) {
    return pearson(ranks(a), ranks(b));
}

double top_decile_overlap(std::span<const double> a, std::span<const double> b) {
    assert(a.size() == b.size());
    if (a.empty()) return 0;
    const std::size_t count = (a.size() + 9) / 10;
    const auto top_a = by_value(a, true), top_b = by_value(b, true);
    const std::set<std::size_t> in_a(top_a.begin(),
                                     top_a.begin() + static_cast<std::ptrdiff_t>(count));
    const auto common =
        std::count_if(top_b.begin(), top_b.begin() + static_cast<std::ptrdiff_t>(count),
                      [&](std::size_t head) { return in_a.contains(head); });
    return static_cast<double>(common) / static_cast<double>(count);
}

std::vector<double> per_kv_head(std::span<const double> scores, const HeadShape& shape) {
    const auto group = static_cast<std::size_t>(shape.group());
    std::vector<double> sums(scores.size() / group, 0.0);
    for (std::size_t i = 0; i < scores.size(); ++i) sums[i / group] += scores[i];
    return sums;
}

std::optional<ScoreReliability> split_half(std::span<const UnitScores> probes,
                                           const HeadShape& shape) {
    std::set<std::int64_t> all;
    for (const UnitScores& probe : probes) all.insert(probe.unit);
    if (probes.size() < 4 || all.size() < 2) return std::nullopt;
    std::vector<std::int64_t> units(all.begin(), all.end());
    Random random(1);
    ScoreReliability sum;
    for (std::int64_t split = 0; split < kSplits; ++split) {
        random.shuffle(units);
        const std::set<std::int64_t> first(
            units.begin(), units.begin() + static_cast<std::ptrdiff_t>(units.size() / 2));
        const std::size_t heads = probes[0].scores.size();
        ScoreMeans a(heads), b(heads);
        for (const UnitScores& probe : probes) {
            (first.contains(probe.unit) ? a : b).add(probe.scores);
        }
        sum.spearman += spearman(a.mean(), b.mean());
        sum.pearson += pearson(a.mean(), b.mean());
        const auto kv_a = per_kv_head(a.mean(), shape), kv_b = per_kv_head(b.mean(), shape);
        sum.spearman_kv += spearman(kv_a, kv_b);
        sum.pearson_kv += pearson(kv_a, kv_b);
    }
    constexpr auto n = static_cast<double>(kSplits);
    return ScoreReliability{sum.spearman / n, sum.pearson / n, sum.spearman_kv / n,
                            sum.pearson_kv / n, kSplits};
}

}  // namespace headkv
