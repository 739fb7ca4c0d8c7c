#include "support/reference_methods.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

namespace headkv::test {
namespace {

using Values = std::vector<std::vector<double>>;  // [heads][positions]

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// Whole numbers that sum to round(sum of parts): floors, then one each by the largest fraction,
// lower index first; never above the limit.
std::vector<std::int64_t> whole(const std::vector<double>& parts, std::int64_t limit) {
    std::vector<std::int64_t> result;
    std::vector<std::pair<double, std::size_t>> fractions;
    double sum = 0;
    for (std::size_t i = 0; i < parts.size(); ++i) {
        const double low = std::floor(parts[i] + 1e-9);
        result.push_back(static_cast<std::int64_t>(low));
        fractions.emplace_back(-(parts[i] - low), i);
        sum += parts[i];
    }
    std::stable_sort(fractions.begin(), fractions.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first - 1e-9; });
    std::int64_t missing =
        std::llround(sum) - std::accumulate(result.begin(), result.end(), std::int64_t{0});
    for (std::size_t i = 0; missing > 0 && i < fractions.size(); ++i) {
        if (result[fractions[i].second] >= limit) continue;
        ++result[fractions[i].second];
        --missing;
    }
    return result;
}

// Parts above the limit are cut; what is cut goes to the others in proportion to `weights`, or
// equally where those weigh nothing.
std::vector<double> water_fill(std::vector<double> parts, const std::vector<double>& weights,
                               double limit) {
    for (std::size_t round = 0; round < parts.size(); ++round) {
        double surplus = 0, weight = 0, open = 0;
        for (std::size_t i = 0; i < parts.size(); ++i) {
            if (parts[i] > limit) {
                surplus += parts[i] - limit;
                parts[i] = limit;
            } else if (parts[i] < limit) {
                weight += weights[i];
                open += 1;
            }
        }
        if (surplus < 1e-9 || open == 0) break;
        for (std::size_t i = 0; i < parts.size(); ++i) {
            if (parts[i] >= limit) continue;
            parts[i] += surplus * (weight > 0 ? weights[i] / weight : 1 / open);
        }
    }
    return parts;
}

std::vector<double> pyramid_rows(const ReferenceMethod& method, const HeadShape& shape,
                                 std::int64_t tokens) {
    const auto w = static_cast<double>(method.window);
    const double beyond = method.rows - w, most = static_cast<double>(tokens) - w;
    double low = beyond / method.pyramid_beta, high = 2 * beyond - low;
    if (high >= most) {
        high = most;
        low = 2 * beyond - most;
    }
    std::vector<double> rows;
    for (std::int64_t l = 0; l < shape.layers; ++l) {
        const double depth =
            shape.layers < 2 ? 0.5 : static_cast<double>(l) / static_cast<double>(shape.layers - 1);
        rows.insert(rows.end(), at(shape.kv_heads), w + high - (high - low) * depth);
    }
    return rows;
}

std::vector<double> importance_rows(const ReferenceMethod& method, const HeadShape& shape,
                                    std::int64_t tokens) {
    const auto w = static_cast<double>(method.window);
    std::vector<double> share(at(shape.layers * shape.kv_heads));
    double sum = 0;
    for (std::size_t query = 0; query < method.scores.size(); ++query) {
        share[query / at(shape.group())] += method.scores[query];
        sum += method.scores[query];
    }
    const auto heads = static_cast<double>(share.size());
    for (double& s : share) s = sum > 0 ? s / sum : 1 / heads;
    const double pool = (method.rows - w) / method.beta;
    std::vector<double> rows;
    rows.reserve(share.size());
    for (const double s : share) rows.push_back(method.rows - pool + s * pool * heads);
    return water_fill(rows, share, static_cast<double>(tokens));
}

// Rows per (layer, head) of the methods that do not look at the prompt.
std::vector<std::int64_t> static_rows(const ReferenceMethod& method, const HeadShape& shape,
                                      std::int64_t tokens) {
    std::vector<double> rows(at(shape.layers * shape.kv_heads), method.rows);
    if (method.name == "pyramidkv") rows = pyramid_rows(method, shape, tokens);
    if (method.name.starts_with("headkv")) rows = importance_rows(method, shape, tokens);
    return whole(rows, tokens);
}

// Positions of the `count` largest, ties to the lower position.
std::vector<std::int32_t> best(const std::vector<double>& values, std::int64_t count) {
    std::vector<std::int32_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int32_t a, std::int32_t b) { return values[at(a)] > values[at(b)]; });
    order.resize(std::min(order.size(), at(count)));
    return order;
}

std::vector<double> pooled(const std::vector<double>& values, const ReferenceMethod& method) {
    const auto n = static_cast<std::int64_t>(values.size());
    std::vector<double> result;
    for (std::int64_t i = 0; i < n; ++i) {
        double most = 0, sum = 0;
        for (std::int64_t j = i - method.kernel / 2; j <= i + method.kernel / 2; ++j) {
            if (j < 0 || j >= n) continue;
            most = std::max(most, values[at(j)]);
            sum += values[at(j)];
        }
        result.push_back(method.average_pool ? sum / static_cast<double>(method.kernel) : most);
    }
    return result;
}

// [kv_heads][positions before the window]
Values head_values(const Values& observed, const HeadShape& shape, std::int64_t before,
                   const ReferenceMethod& method) {
    const bool early = method.mistake == Mistake::pool_before_group;
    Values result;
    for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
        std::vector<double> mean(at(before));
        for (std::int64_t member = 0; member < shape.group(); ++member) {
            std::vector<double> row = observed[at(head * shape.group() + member)];
            row.resize(at(before));
            if (early) row = pooled(row, method);
            for (std::size_t i = 0; i < mean.size(); ++i) {
                mean[i] += row[i] / static_cast<double>(shape.group());
            }
        }
        result.push_back(early ? mean : pooled(mean, method));
    }
    return result;
}

// Ada-KV: rows beyond the window of one layer's heads, by how many of the layer's best values are
// theirs.
std::vector<std::int64_t> adaptive_rows(const Values& values, double rows_beyond, double floor,
                                        std::int64_t before) {
    struct Entry {
        double value;
        std::size_t head;
    };
    std::vector<Entry> entries;
    for (std::size_t head = 0; head < values.size(); ++head) {
        double top = 0, all = 0;
        for (const std::int32_t i : best(values[head], std::llround(rows_beyond))) {
            top += values[head][at(i)];
        }
        for (const double value : values[head]) all += value;
        for (const double value : values[head]) {
            entries.push_back({all > 0 ? value * top / all : value, head});
        }
    }
    std::stable_sort(entries.begin(), entries.end(),
                     [](const Entry& a, const Entry& b) { return a.value > b.value; });
    const std::int64_t total = std::llround(rows_beyond * static_cast<double>(values.size()));
    std::vector<double> parts(values.size(), floor * rows_beyond);
    for (std::int64_t i = 0; i < total; ++i) parts[entries[at(i)].head] += 1 - floor;
    const std::vector<double> equal(values.size(), 1);
    return whole(water_fill(parts, equal, static_cast<double>(before)), before);
}

KeepLists streaming(const ReferenceMethod& method, const HeadShape& shape, std::int64_t tokens) {
    const std::vector<std::int64_t> rows = static_rows(method, shape, tokens);
    KeepLists result(at(shape.layers));
    for (std::size_t i = 0; i < rows.size(); ++i) {
        std::vector<std::int32_t>& kept = result[i / at(shape.kv_heads)].emplace_back();
        for (std::int64_t p = 0; p < tokens; ++p) {
            if (p < method.sinks || p >= tokens - (rows[i] - method.sinks)) {
                kept.push_back(static_cast<std::int32_t>(p));
            }
        }
    }
    return result;
}

double jaccard(const std::vector<std::int32_t>& a, const std::vector<std::int32_t>& b) {
    std::vector<std::int32_t> both;
    std::set_intersection(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(both));
    const std::size_t either = a.size() + b.size() - both.size();
    return either == 0 ? 1 : static_cast<double>(both.size()) / static_cast<double>(either);
}

}  // namespace

std::vector<std::vector<double>> observe(const Reference& reference, const ReferenceRun& run,
                                         std::int64_t layer, std::int64_t window, bool window_keys,
                                         double decay) {
    Values result;
    double all = 0;
    for (std::int64_t i = 0; i < window; ++i) all += std::pow(decay, i);
    for (std::int64_t head = 0; head < reference.shape().heads.query_heads; ++head) {
        std::vector<double> mean(at(run.tokens));
        for (std::int64_t query = run.tokens - window; query < run.tokens; ++query) {
            const std::vector<float> weights = reference.attention(
                run, layer, head, query, window_keys ? -1 : run.tokens - window);
            const double share = std::pow(decay, run.tokens - 1 - query) / all;
            for (std::size_t i = 0; i < weights.size(); ++i) {
                mean[i] += static_cast<double>(weights[i]) * share;
            }
        }
        result.push_back(mean);
    }
    return result;
}

KeepLists naive_keep(const Reference& reference, const ReferenceRun& run,
                     const ReferenceMethod& method) {
    const HeadShape& shape = reference.shape().heads;
    if (method.name == "streaming-llm") return streaming(method, shape, run.tokens);
    const std::int64_t before = run.tokens - method.window;
    const std::int64_t observed_rows =
        method.window - (method.mistake == Mistake::one_window_row_fewer ? 1 : 0);
    const std::vector<std::int64_t> rows = static_rows(method, shape, run.tokens);
    KeepLists result(at(shape.layers));
    for (std::int64_t layer = 0; layer < shape.layers; ++layer) {
        const Values values = head_values(
            observe(reference, run, layer, observed_rows,
                    method.mistake != Mistake::window_keys_left_out, method.query_decay),
            shape, before, method);
        std::vector<std::int64_t> beyond;
        if (method.name == "ada-kv") {
            beyond = adaptive_rows(values, method.rows - static_cast<double>(method.window),
                                   method.floor, before);
        }
        for (std::int64_t head = 0; head < shape.kv_heads; ++head) {
            const std::int64_t count = beyond.empty()
                                           ? rows[at(layer * shape.kv_heads + head)] - method.window
                                           : beyond[at(head)];
            std::vector<std::int32_t> kept = best(values[at(head)], count);
            std::sort(kept.begin(), kept.end());
            for (std::int64_t p = before; p < run.tokens; ++p) {
                kept.push_back(static_cast<std::int32_t>(p));
            }
            result[at(layer)].push_back(kept);
        }
    }
    return result;
}

double mean_jaccard(const KeepLists& a, const KeepLists& b) {
    double sum = 0, count = 0;
    for (std::size_t layer = 0; layer < a.size(); ++layer) {
        for (std::size_t head = 0; head < a[layer].size(); ++head) {
            sum += jaccard(a[layer][head], b[layer][head]);
            count += 1;
        }
    }
    return sum / count;
}

std::int64_t rows_in(const KeepLists& lists) {
    std::int64_t rows = 0;
    for (const auto& layer : lists) {
        for (const auto& head : layer) rows += static_cast<std::int64_t>(head.size());
    }
    return rows;
}

}  // namespace headkv::test
