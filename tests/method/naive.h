// Plain references of the method steps, written for being obviously right, and random inputs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "headkv/method.h"

namespace headkv::naive {

inline std::vector<float> random_values(std::size_t count, std::uint32_t seed) {
    std::mt19937 engine(seed);
    std::vector<float> values(count);
    for (float& value : values) {
        value = static_cast<float>(engine()) / 4294967296.0F;
        value = value * value * value;  // a few large, most small, as attention is
    }
    return values;
}

inline HeadScores random_scores(const HeadShape& shape, std::uint32_t seed) {
    HeadScores scores;
    scores.shape = shape;
    const auto values =
        random_values(static_cast<std::size_t>(shape.layers * shape.query_heads), seed);
    scores.mean.assign(values.begin(), values.end());
    return scores;
}

// What a method asks for of one layer, filled by `make(size, seed)`.
struct SomeLayer {
    static constexpr std::int64_t kDim = 4;
    template <class Make>
    SomeLayer(const LayerNeeds& needs, const HeadShape& shape, std::int64_t n, Make make) {
        const auto fill = [&](bool needed, std::vector<float>& to, std::int64_t size) {
            if (needed) to = make(static_cast<std::size_t>(size));
        };
        fill(needs.queries > 0, observed, shape.query_heads * n);
        fill(needs.keys, keys, shape.kv_heads * n * kDim);
        fill(needs.values, values, shape.kv_heads * n * kDim);
        fill(needs.future_queries, query_mean, shape.query_heads * kDim);
        fill(needs.future_queries, query_covariance, shape.query_heads * kDim * kDim);
        fill(needs.output_norms, output_norms, shape.query_heads * n);
        fill(needs.reconstruction, reconstruction, shape.kv_heads * n);
        fill(needs.recent_queries > 0, recent, shape.query_heads * n);
        // Like a text: each ninth token a mark, a few special ones. Not drawn: the same in all
        // layers.
        for (std::int64_t i = 0; needs.token_kinds && i < n; ++i) {
            kinds.push_back(i % 9 == 5    ? TokenKind::punctuation
                            : i % 97 == 1 ? TokenKind::special
                                          : TokenKind::text);
        }
        fill(needs.clusters.size > 0, cluster_products, shape.kv_heads * n);
    }
    LayerView view() const {
        return {observed,       keys,   values, query_mean, query_covariance, output_norms,
                reconstruction, recent, kinds,  {},         cluster_products};
    }

    std::vector<float> observed, keys, values, query_mean, query_covariance, output_norms,
        reconstruction, recent, cluster_products;
    std::vector<TokenKind> kinds;
};

inline SomeLayer random_layer(const LayerNeeds& needs, const HeadShape& shape, std::int64_t n,
                              std::uint32_t seed) {
    return {needs, shape, n, [&](std::size_t size) { return random_values(size, seed++); }};
}

// What a cache does with the rows that a selection takes back: kept [layers so far * kv_heads].
inline void apply(const std::vector<PromptSelection::Cut>& cuts, std::int64_t heads,
                  std::vector<std::vector<std::int32_t>>& kept) {
    for (const auto& cut : cuts) {
        for (std::size_t head = 0; head < cut.stay.size(); ++head) {
            auto& rows = kept[static_cast<std::size_t>(cut.layer * heads) + head];
            std::vector<std::int32_t> left;
            for (const auto index : cut.stay[head]) {
                left.push_back(rows.at(static_cast<std::size_t>(index)));
            }
            rows = std::move(left);
        }
    }
}

// observed [query_heads][n] -> [kv_heads][n - window]
inline std::vector<double> score(const std::vector<float>& observed, const HeadShape& shape,
                                 std::int64_t n, std::int64_t window, std::int64_t kernel,
                                 Pool pool, GroupReduce reduce) {
    const std::int64_t positions = std::max<std::int64_t>(n - window, 0);
    const auto at = [&](std::int64_t head, std::int64_t position) {
        double best = std::numeric_limits<double>::lowest();
        double sum = 0;
        for (std::int64_t i = head * shape.group(); i < (head + 1) * shape.group(); ++i) {
            const double value = observed[static_cast<std::size_t>(i * n + position)];
            best = std::max(best, value);
            sum += value;
        }
        return reduce == GroupReduce::max ? best : sum / static_cast<double>(shape.group());
    };
    std::vector<double> values;
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        for (std::int64_t position = 0; position < positions; ++position) {
            double best = std::numeric_limits<double>::lowest();
            double sum = 0;
            for (std::int64_t j = position - kernel / 2; j <= position + kernel / 2; ++j) {
                if (j < 0 || j >= positions) continue;
                best = std::max(best, at(head, j));
                sum += at(head, j);
            }
            values.push_back(pool == Pool::max ? best : sum / static_cast<double>(kernel));
        }
    }
    return values;
}

// Sorts everything: (value descending, position ascending).
inline std::vector<std::int32_t> top_k_window(const std::vector<float>& values, std::int64_t n,
                                              std::int64_t window, std::int64_t rows) {
    std::vector<std::int32_t> order(
        static_cast<std::size_t>(std::max<std::int64_t>(n - window, 0)));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
        return values[static_cast<std::size_t>(a)] > values[static_cast<std::size_t>(b)];
    });
    const std::int64_t recent = std::min({window, n, rows});
    const auto best = std::min(static_cast<std::int64_t>(order.size()), rows - recent);
    order.resize(static_cast<std::size_t>(best));
    for (std::int64_t position = n - recent; position < n; ++position) {
        order.push_back(static_cast<std::int32_t>(position));
    }
    std::sort(order.begin(), order.end());
    return order;
}

// One row at a time to the head with the largest unserved fraction.
inline std::vector<std::int64_t> largest_remainder(const std::vector<double>& weights,
                                                   std::int64_t total) {
    const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
    std::vector<std::int64_t> counts;
    std::vector<double> rest;
    for (const double weight : weights) {
        const double quota = weight / sum * static_cast<double>(total);
        counts.push_back(static_cast<std::int64_t>(quota));
        rest.push_back(quota - std::floor(quota));
    }
    while (std::accumulate(counts.begin(), counts.end(), std::int64_t{0}) < total) {
        const auto best = std::max_element(rest.begin(), rest.end());
        ++counts[static_cast<std::size_t>(best - rest.begin())];
        *best = -1;
    }
    return counts;
}

// Real-valued rows of head importance: raises one common level until the total fits.
inline std::vector<double> head_importance(const std::vector<double>& shares, double rows,
                                           double window, double beta, double limit) {
    const auto heads = static_cast<double>(shares.size());
    const double least = window + (rows - window) * (1 - 1 / beta);
    const auto amounts = [&](double level) {
        std::vector<double> result;
        for (const double share : shares) result.push_back(std::min(limit, least + level * share));
        return result;
    };
    double low = 0;
    double high = 1e12;
    for (int step = 0; step < 300; ++step) {
        const double level = (low + high) / 2;
        const auto trial = amounts(level);
        const double total = std::accumulate(trial.begin(), trial.end(), 0.0);
        (total > rows * heads ? high : low) = level;
    }
    return amounts(low);
}

// One layer of Ada-KV: sort all (value, position, head), count, blend with the uniform share.
inline std::vector<double> adaptive(const std::vector<float>& values, std::int64_t heads,
                                    std::int64_t total, std::int64_t window, double floor,
                                    bool normalize) {
    const auto positions = static_cast<std::int64_t>(values.size()) / heads;
    const std::int64_t beyond = total - window * heads;
    struct Entry {
        float value;
        std::int64_t position, head;
    };
    std::vector<Entry> entries;
    for (std::int64_t head = 0; head < heads; ++head) {
        std::vector<float> row(values.begin() + head * positions,
                               values.begin() + (head + 1) * positions);
        auto sorted = row;
        std::sort(sorted.begin(), sorted.end(), std::greater<>());
        double top = 0;
        for (std::int64_t i = 0; i < std::max<std::int64_t>(beyond / heads, 1); ++i) {
            top += sorted[static_cast<std::size_t>(i)];
        }
        const double all = std::accumulate(row.begin(), row.end(), 0.0);
        const auto scale = normalize ? static_cast<float>(top / all) : 1.0F;
        for (std::int64_t i = 0; i < positions; ++i) {
            entries.push_back({row[static_cast<std::size_t>(i)] * scale, i, head});
        }
    }
    std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
        if (a.value != b.value) return a.value > b.value;
        return std::pair(a.position, a.head) < std::pair(b.position, b.head);
    });
    std::vector<double> rows(static_cast<std::size_t>(heads),
                             static_cast<double>(window) +
                                 floor * static_cast<double>(beyond) / static_cast<double>(heads));
    for (std::int64_t i = 0; i < beyond; ++i) {
        rows[static_cast<std::size_t>(entries[static_cast<std::size_t>(i)].head)] += 1 - floor;
    }
    return rows;
}

}  // namespace headkv::naive
