// Allocate, from what is known before the prompt is read: budget, shape, head scores -> plan.
#include "method/allocate.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>

#include "headkv/method.h"

namespace headkv {
namespace {

// Most rows that a plan counts: keeps products of rows and heads inside 64 bits.
constexpr double kMostRows = 1099511627776.0;  // 2^40

std::size_t heads_of(const HeadShape& shape) {
    return static_cast<std::size_t>(shape.layers * shape.kv_heads);
}

// Hands `surplus` to the heads that have room, in proportion to `weights`; what does not fit goes
// round again. Ends once all is placed or every head is full.
void water_fill(std::vector<double>& amounts, std::span<const double> weights, double surplus,
                double limit) {
    // Below this nothing but rounding noise is left; the integer step places it.
    const double noise = 1e-9 * static_cast<double>(amounts.size());
    while (surplus > noise) {
        double weight_sum = 0;
        std::size_t open = 0;
        for (std::size_t i = 0; i < amounts.size(); ++i) {
            if (amounts[i] >= limit) continue;
            weight_sum += weights[i];
            ++open;
        }
        if (open == 0) return;
        double left = 0;
        for (std::size_t i = 0; i < amounts.size(); ++i) {
            if (amounts[i] >= limit) continue;
            // Only unimportant heads have room left: they share evenly.
            amounts[i] += surplus * (weight_sum > 0 ? weights[i] / weight_sum
                                                    : 1.0 / static_cast<double>(open));
            if (amounts[i] < limit) continue;
            left += amounts[i] - limit;
            amounts[i] = limit;
        }
        surplus = left;
    }
}

Plan make_plan(const HeadShape& shape, std::span<const double> amounts, double rows,
               std::int64_t limit) {
    const std::int64_t total = total_rows(rows, shape);
    return {shape.layers, shape.kv_heads, round_to_total(amounts, total, limit)};
}

}  // namespace

std::int64_t Plan::total() const {
    return std::accumulate(rows.begin(), rows.end(), std::int64_t{0});
}

std::int64_t total_rows(double rows, const HeadShape& shape) {
    return std::llround(std::min(rows, kMostRows) * static_cast<double>(heads_of(shape)));
}

std::vector<std::int64_t> round_to_total(std::span<const double> amounts, std::int64_t total,
                                         std::int64_t limit) {
    std::vector<std::int64_t> counts(amounts.size());
    std::vector<std::size_t> order(amounts.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::vector<double> fractions(amounts.size());
    for (std::size_t i = 0; i < amounts.size(); ++i) {
        const double whole = std::floor(amounts[i]);
        counts[i] = std::min(static_cast<std::int64_t>(whole), limit);
        fractions[i] = amounts[i] - whole;
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return fractions[a] > fractions[b]; });
    std::int64_t left = total - std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
    bool placed = true;
    while (left > 0 && placed) {  // one round, but for rounding noise
        placed = false;
        for (const std::size_t i : order) {
            if (left == 0) break;
            if (counts[i] >= limit) continue;
            ++counts[i];
            --left;
            placed = true;
        }
    }
    return counts;
}

std::vector<std::int64_t> largest_remainder(std::span<const double> weights, std::int64_t total) {
    std::vector<double> amounts(weights.size());
    std::transform(weights.begin(), weights.end(), amounts.begin(),
                   [](double weight) { return weight > 0 ? weight : 0.0; });
    const double sum = std::accumulate(amounts.begin(), amounts.end(), 0.0);
    for (double& amount : amounts) {
        amount = sum > 0 ? amount / sum : 1.0 / static_cast<double>(amounts.size());
        amount *= static_cast<double>(total);
    }
    return round_to_total(amounts, total, total);
}

std::vector<double> kv_head_shares(const HeadScores& scores, const HeadShape& shape) {
    assert(scores.mean.size() == static_cast<std::size_t>(shape.layers * shape.query_heads));
    const auto group = static_cast<std::size_t>(shape.group());
    std::vector<double> shares(heads_of(shape));
    for (std::size_t i = 0; i < shares.size(); ++i) {
        const auto first = scores.mean.begin() + static_cast<std::ptrdiff_t>(i * group);
        shares[i] = std::accumulate(first, first + static_cast<std::ptrdiff_t>(group), 0.0);
    }
    const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
    for (double& share : shares) {
        share = sum > 0 ? share / sum : 1.0 / static_cast<double>(shares.size());
    }
    return shares;
}

std::vector<double> reshaped_shares(std::vector<double> shares, double temperature, double shrink) {
    double sum = 0;
    for (double& share : shares) {
        if (temperature != 1) share = std::pow(share, temperature);
        sum += share;
    }
    const double even = 1.0 / static_cast<double>(shares.size());
    for (double& share : shares) {
        if (temperature != 1) share = sum > 0 ? share / sum : even;
        if (shrink > 0) share += (even - share) * shrink;
    }
    return shares;
}

Plan allocate_binary_heads(const HeadShape& shape, std::span<const double> shares, double rows,
                           std::int64_t least, std::int64_t limit) {
    rows = std::min({rows, static_cast<double>(limit), kMostRows});
    const auto heads = static_cast<std::int64_t>(heads_of(shape));
    least = std::min({least, static_cast<std::int64_t>(rows), limit});
    std::vector<std::size_t> order(heads_of(shape));
    std::iota(order.begin(), order.end(), std::size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return shares[a] > shares[b]; });
    std::int64_t left = total_rows(rows, shape);
    std::int64_t full = 0;
    // `limit` may be unbounded: compare before multiplying or adding.
    while (full < heads && left - (heads - full - 1) * least >= limit) {
        left -= limit;
        ++full;
    }
    std::vector<double> amounts(heads_of(shape), static_cast<double>(limit));
    for (auto i = full; i < heads; ++i) {
        amounts[order[static_cast<std::size_t>(i)]] =
            static_cast<double>(left) / static_cast<double>(heads - full);
    }
    return make_plan(shape, amounts, rows, limit);
}

Plan allocate_uniform(const HeadShape& shape, double rows, std::int64_t limit) {
    rows = std::min({rows, static_cast<double>(limit), kMostRows});
    return make_plan(shape, std::vector<double>(heads_of(shape), rows), rows, limit);
}

Plan allocate_pyramid(const HeadShape& shape, double rows, std::int64_t window, double beta,
                      std::int64_t limit) {
    rows = std::min({rows, static_cast<double>(limit), kMostRows});
    const double beyond = std::max(rows - static_cast<double>(window), 0.0);  // mean over layers
    const double room = std::max(static_cast<double>(limit - window), 0.0);
    const double top = std::min(2 * beyond - beyond / beta, room);
    const double bottom = 2 * beyond - top;
    std::vector<double> amounts;
    amounts.reserve(heads_of(shape));
    for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
        // 0 at the first layer, 1 at the last; a single layer is its own mean.
        const double depth =
            shape.layers > 1 ? static_cast<double>(layer) / static_cast<double>(shape.layers - 1)
                             : 0.5;
        const double amount = rows - beyond + top + (bottom - top) * depth;
        amounts.insert(amounts.end(), static_cast<std::size_t>(shape.kv_heads), amount);
    }
    return make_plan(shape, amounts, rows, limit);
}

Plan allocate_head_importance(const HeadShape& shape, std::span<const double> shares, double rows,
                              std::int64_t window, double beta, std::int64_t limit) {
    assert(shares.size() == heads_of(shape));
    const auto most = static_cast<double>(limit);
    rows = std::min({rows, most, kMostRows});
    const double beyond = std::max(rows - static_cast<double>(window), 0.0);
    const double pool = beyond / beta;  // a head, on average
    std::vector<double> amounts(shares.size(), rows - pool);
    water_fill(amounts, shares, pool * static_cast<double>(shares.size()), most);
    return make_plan(shape, amounts, rows, limit);
}

}  // namespace headkv
