// Select: the values of one head -> the sorted positions that it keeps.
#include "method/select.h"

#include <algorithm>
#include <cassert>
#include <functional>
#include <numeric>

#include "headkv/method.h"
#include "method/top_k.h"

namespace headkv {

std::vector<std::int32_t> all_positions(std::int64_t n) {
    std::vector<std::int32_t> positions(static_cast<std::size_t>(n));
    std::iota(positions.begin(), positions.end(), 0);
    return positions;
}

namespace {

void append_range(std::vector<std::int32_t>& kept, std::int64_t begin, std::int64_t end) {
    for (std::int64_t position = begin; position < end; ++position) {
        kept.push_back(static_cast<std::int32_t>(position));
    }
}

// Cuts `best` down to its `k` largest values; returns the smallest of those.
float cut_to_best(std::vector<float>& best, std::size_t k) {
    const auto kth = best.begin() + static_cast<std::ptrdiff_t>(k - 1);
    std::nth_element(best.begin(), kth, best.end(), std::greater<>());
    best.resize(k);
    return best.back();
}

}  // namespace

Threshold top_k_threshold(std::span<const float> values, std::int64_t k, std::vector<float>& best) {
    constexpr float kLowest = -std::numeric_limits<float>::infinity();
    best.clear();
    k = std::min(k, static_cast<std::int64_t>(values.size()));
    if (k <= 0) return {};
    // One pass that collects what beats the k-th best so far, so that nearly every value of a long
    // prompt costs one comparison. A NaN beats nothing.
    const auto wanted = static_cast<std::size_t>(k);
    const std::size_t room = std::max<std::size_t>(4 * wanted, 1024);
    float bar = kLowest;
    for (const float value : values) {
        if (!(value > bar)) continue;
        best.push_back(value);
        if (best.size() == room) bar = cut_to_best(best, wanted);
    }
    const bool enough = best.size() >= wanted;  // else only lowest values are left to fill up with
    const float value = enough ? cut_to_best(best, wanted) : kLowest;
    const auto above =
        std::count_if(best.begin(), best.end(), [value](float other) { return other > value; });
    return {value, k - above};
}

std::vector<std::int32_t> select_top_k_window(std::span<const float> values, std::int64_t n,
                                              std::int64_t window, std::int64_t rows,
                                              std::int64_t protect, std::vector<float>& scratch) {
    const std::int64_t keep = std::min(rows, n);
    const std::int64_t before = std::max<std::int64_t>(n - window, 0);  // rows that compete
    const std::int64_t recent = std::min(keep, n - before);
    const std::int64_t first =
        std::clamp<std::int64_t>(keep - recent, 0, std::min(protect, before));
    assert(static_cast<std::int64_t>(values.size()) >= before);

    std::vector<std::int32_t> kept;
    kept.reserve(static_cast<std::size_t>(std::max<std::int64_t>(keep, 0)));
    append_range(kept, 0, first);
    if (keep > recent + first) {
        const auto rivals = values.subspan(static_cast<std::size_t>(first),
                                           static_cast<std::size_t>(before - first));
        auto [value, ties] = top_k_threshold(rivals, keep - recent - first, scratch);
        for (std::int64_t position = first; position < before; ++position) {
            const float score = lowest_if_nan(values[static_cast<std::size_t>(position)]);
            if (score < value || (score == value && --ties < 0)) continue;
            kept.push_back(static_cast<std::int32_t>(position));
        }
    }
    append_range(kept, n - recent, n);
    return kept;
}

std::vector<std::int32_t> select_top_k_window(std::span<const float> values, std::int64_t n,
                                              std::int64_t window, std::int64_t rows,
                                              std::int64_t protect) {
    std::vector<float> scratch;
    return select_top_k_window(values, n, window, rows, protect, scratch);
}

std::vector<std::int32_t> select_sinks_recent(std::int64_t n, std::int64_t sinks,
                                              std::int64_t rows) {
    const std::int64_t keep = std::clamp<std::int64_t>(rows, 0, n);
    const std::int64_t first = std::min(sinks, keep);
    std::vector<std::int32_t> kept;
    kept.reserve(static_cast<std::size_t>(keep));
    append_range(kept, 0, first);
    append_range(kept, n - (keep - first), n);
    return kept;
}

}  // namespace headkv
