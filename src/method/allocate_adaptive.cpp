// Ada-KV's allocation: the heads of one layer compete for its rows (2407.11550).
#include <algorithm>
#include <cassert>
#include <numeric>

#include "headkv/method.h"
#include "method/allocate.h"
#include "method/top_k.h"

namespace headkv {
namespace {

// Share of a head's attention that its best `rows` positions hold: a head whose attention is spread
// thin gains little from rows.
float top_mass(std::span<const float> values, std::int64_t rows, std::vector<float>& best) {
    const auto add = [](double sum, float value) {
        return value > 0 ? sum + value : sum;  // a NaN is no attention
    };
    const double all = std::accumulate(values.begin(), values.end(), 0.0, add);
    if (!(all > 0)) return 0;
    top_k_threshold(values, rows, best);
    return static_cast<float>(std::accumulate(best.begin(), best.end(), 0.0, add) / all);
}

// How many of the layer's `best` values are each head's. Ties: lower position, then lower head, so
// that heads with equal values come out even.
std::vector<std::int64_t> count_best(std::span<const float> values, std::size_t heads,
                                     std::int64_t best, std::vector<float>& scratch) {
    auto [value, ties] = top_k_threshold(values, best, scratch);
    const std::size_t positions = values.size() / heads;
    std::vector<std::int64_t> counts(heads);
    for (std::size_t head = 0; head < heads; ++head) {
        const auto row = values.subspan(head * positions, positions);
        counts[head] = std::count_if(row.begin(), row.end(),
                                     [value = value](float other) { return other > value; });
    }
    for (std::size_t position = 0; position < positions && ties > 0; ++position) {
        for (std::size_t head = 0; head < heads && ties > 0; ++head) {
            if (values[head * positions + position] != value) continue;
            ++counts[head];
            --ties;
        }
    }
    return counts;
}

}  // namespace

std::vector<std::int64_t> allocate_adaptive(std::span<const float> values, std::int64_t heads,
                                            std::int64_t total, std::int64_t window, double floor,
                                            bool normalize) {
    assert(heads > 0 && static_cast<std::int64_t>(values.size()) % heads == 0);
    const auto head_count = static_cast<std::size_t>(heads);
    const std::int64_t positions = static_cast<std::int64_t>(values.size()) / heads;
    const std::int64_t beyond =
        std::clamp<std::int64_t>(total - window * heads, 0, positions * heads);
    const double mean = static_cast<double>(beyond) / static_cast<double>(heads);

    std::vector<float> scratch;
    std::vector<float> ranked(values.size());  // what the heads compete with
    for (std::size_t head = 0; head < head_count; ++head) {
        const auto offset = head * static_cast<std::size_t>(positions);
        const auto row = values.subspan(offset, static_cast<std::size_t>(positions));
        const float scale =
            normalize ? top_mass(row, std::max<std::int64_t>(beyond / heads, 1), scratch) : 1.0F;
        std::transform(row.begin(), row.end(), ranked.begin() + static_cast<std::ptrdiff_t>(offset),
                       [scale](float value) { return lowest_if_nan(value * scale); });
    }

    const auto counts = count_best(ranked, head_count, beyond, scratch);
    std::vector<double> amounts(head_count);
    std::transform(counts.begin(), counts.end(), amounts.begin(), [&](std::int64_t count) {
        return static_cast<double>(count) * (1 - floor) + mean * floor;
    });
    auto rows = round_to_total(amounts, beyond, positions);
    for (std::int64_t& row_count : rows) row_count += window;
    return rows;
}

}  // namespace headkv
